"""A worker key for whoever proves a wallet, over a real gateway: given once for each challenge, refused to everybody
else."""

import asyncio
import base64
import datetime as dt
import random
import string
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.postgres.pool import open_pool
from cli.dev.address import free_port
from cli.enrol import read_wallet_answer, sign_request, ton_connect_link
from cli.main import main
from cocoon.clock import ManualClock, SystemClock, system_random
from cocoon.enrolment import ENROL_PATH, EnrolAnswer
from cocoon.ids import WORKER_KEY_PREFIX, is_secret_key
from cocoon.mnemonic import wallet_key
from cocoon.ton_proof import sign_proof
from cocoon.wallet_enrolment import (
    CHALLENGE_PATH,
    WALLET_KEY_PATH,
    WalletChallenge,
    WalletKeyAnswer,
    WalletKeyRequest,
)
from cocoon.wallets import KINDS, Address, encode_state_init, state_init_of
from gateway.postgres import wallets as store
from gateway.postgres.keys import KeyStore
from gateway.postgres.standing import StandingStore
from gateway.wallet_keys import CHALLENGE_S, ChallengeRefusedError, Challenges
from tests.fixtures_chain import LocalChain
from tests.fixtures_gateway import NETWORK_SECRET, Stack
from tests.integration.gateway.test_workers_api import assert_refused, enrolment

DOMAIN = "127.0.0.1"
WORDS = Path(__file__).parents[2] / "vectors" / "ton_proof.json"


def mnemonic() -> str:
    return msgspec.json.decode(WORDS.read_bytes())["mnemonic"]


async def challenge(client: httpx.AsyncClient) -> WalletChallenge:
    answer = await client.post(CHALLENGE_PATH)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    return msgspec.json.decode(answer.content, type=WalletChallenge)


async def signed(client: httpx.AsyncClient, key: Ed25519PrivateKey, **changes: Any) -> WalletKeyRequest:
    asked = {"kind": "v4r2", "domain": DOMAIN, "clock": SystemClock()} | changes
    return sign_request(key, asked.pop("kind"), await challenge(client), **asked)


async def sent(client: httpx.AsyncClient, asked: WalletKeyRequest) -> httpx.Response:
    return await client.post(WALLET_KEY_PATH, content=msgspec.json.encode(asked))


async def issued(client: httpx.AsyncClient, key: Ed25519PrivateKey, **changes: Any) -> WalletKeyAnswer:
    answer = await sent(client, await signed(client, key, **changes))
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=WalletKeyAnswer)


async def enrols(stack: Stack, key: str) -> httpx.Response:
    async with stack.client(key) as client:
        return await client.post(ENROL_PATH, json=enrolment())


async def until_enrols(stack: Stack, key: str, status: int) -> httpx.Response:
    """A process follows the table of keys within a second."""
    return await stack.until_true(lambda: enrols(stack, key), lambda answer: answer.status_code == status)


async def test_a_wallet_gets_a_worker_key_that_enrols_workers_at_every_process(stack: Stack) -> None:
    await stack.start_gateway(processes=2)
    async with stack.client("nobody") as client:
        for kind in KINDS:
            made = await issued(client, Ed25519PrivateKey.generate(), kind=kind)
            assert is_secret_key(made.key)
            assert made.key.startswith(WORKER_KEY_PREFIX)
            assert not made.rotated
            answer = await until_enrols(stack, made.key, 200)
            worker_id = msgspec.json.decode(answer.content, type=EnrolAnswer).worker_id
            [row] = await stack.rows(
                "SELECT k.wallet, k.role FROM workers AS w JOIN api_keys AS k ON k.id = w.key_id"
                " WHERE w.worker_id = $1",
                worker_id,
            )
            assert (row["wallet"], row["role"]) == (made.address, "worker")
    async with open_pool(stack.database_url, application="test") as pool:
        listed = await StandingStore(pool).workers()
    assert (listed[0].wallet, listed[0].state) == (made.address, "enrolled")
    # The secret is nowhere but in the answer.
    assert made.key not in stack.log(characters=None)


async def test_asking_again_replaces_the_secret_of_the_same_key(gateway: Stack) -> None:
    key = Ed25519PrivateKey.generate()
    async with gateway.client("nobody") as client:
        first = await issued(client, key)
        await until_enrols(gateway, first.key, 200)
        second = await issued(client, key, keep_s=600)
        assert (second.rotated, second.key_id, second.address) == (True, first.key_id, first.address)
        await until_enrols(gateway, second.key, 200)
        assert (await enrols(gateway, first.key)).status_code == 200
        third = await issued(client, key)
        await until_enrols(gateway, third.key, 200)
        await until_enrols(gateway, second.key, 401)
    assert len(await gateway.rows("SELECT 1 FROM workers")) == 1


async def test_a_challenge_is_taken_once_by_whichever_process(stack: Stack) -> None:
    await stack.start_gateway(processes=2)
    async with stack.client("nobody") as client:
        asked = await signed(client, Ed25519PrivateKey.generate())
        answers = await asyncio.gather(*(sent(client, asked) for _ in range(8)))
        assert sorted(answer.status_code for answer in answers) == [200] + [403] * 7
        for answer in answers:
            if answer.status_code != 200:
                assert_refused(answer, 403, "wallet_challenge_refused")
        # Nor does a fresh signature under the same challenge get another key.
        assert_refused(await sent(client, asked), 403, "wallet_challenge_refused")


async def test_what_proves_nothing_is_refused_with_its_reason(gateway: Stack) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    old = ManualClock(SystemClock().now() - dt.timedelta(seconds=900))
    async with gateway.client("nobody") as client:
        good = await signed(client, key)
        stranger = await signed(client, other)
        both = {"address": stranger.address, "state_init": stranger.state_init}
        cases = [
            (await signed(client, key, domain="evil.example"), "ton_proof_domain"),
            (await signed(client, key, clock=old), "ton_proof_expired"),
            (msgspec.structs.replace(good, address=stranger.address), "ton_proof_state_init"),
            (msgspec.structs.replace(good, **both), "ton_proof_signature"),
            (msgspec.structs.replace(good, state_init=stranger.state_init), "ton_proof_state_init"),
            (msgspec.structs.replace(good, proof=stranger.proof), "ton_proof_signature"),
            (msgspec.structs.replace(good, state_init=b"rubbish"), "wallet_refused"),
            (msgspec.structs.replace(good, network="-239"), "wallet_network"),
        ]  # fmt: skip
        for asked, code in cases:
            assert_refused(await sent(client, asked), 403, code)
        forged = sign_proof(
            key, Address.parse(good.address), domain=DOMAIN, timestamp=good.proof.timestamp, payload="x"
        )
        assert_refused(await sent(client, msgspec.structs.replace(good, proof=forged)), 403, "wallet_challenge_refused")
        assert_refused(await sent(client, msgspec.structs.replace(good, address="EQabc")), 400, "invalid_request")
        assert_refused(await client.post(WALLET_KEY_PATH, content=b"{}"), 400, "invalid_type")
        assert_refused(await client.post(WALLET_KEY_PATH, content=b"x" * 20_000), 413, "body_too_large")
        # None of that used the challenge up.
        assert (await sent(client, good)).status_code == 200
    assert len(await gateway.rows("SELECT 1 FROM api_keys WHERE wallet IS NOT NULL")) == 1


async def test_a_contract_that_is_no_wallet_gets_no_key(gateway: Stack) -> None:
    from cocoon.cells import cell_of

    key = Ed25519PrivateKey.generate()
    data = state_init_of("v4r2", key.public_key().public_bytes_raw(), global_id=-3).refs[1]
    root = cell_of((0b00110, 5), refs=(cell_of((7, 8)), data))
    async with gateway.client("nobody") as client:
        given = await challenge(client)
        address = Address(0, root.hash)
        proof = sign_proof(
            key, address, domain=DOMAIN, timestamp=int(SystemClock().now().timestamp()), payload=given.payload
        )
        asked = WalletKeyRequest(address=str(address), state_init=encode_state_init(root), proof=proof)
        assert_refused(await sent(client, asked), 403, "wallet_code_unknown")


async def test_a_wallet_whose_key_was_revoked_gets_no_other(gateway: Stack) -> None:
    key = Ed25519PrivateKey.generate()
    async with gateway.client("nobody") as client:
        made = await issued(client, key)
        async with open_pool(gateway.database_url, application="test") as pool:
            await KeyStore(pool, random.SystemRandom()).revoke(str(made.key_id))
        assert_refused(await sent(client, await signed(client, key)), 403, "wallet_barred")


async def test_one_wallet_and_all_together_are_limited(gateway: Stack) -> None:
    key = Ed25519PrivateKey.generate()
    async with gateway.client("nobody") as client:
        made = await issued(client, key)
        await gateway.rows(
            "INSERT INTO wallet_proofs (challenge_sha256, wallet, first, expires_at)"
            " SELECT sha256(n::text::bytea), $1, FALSE, now() FROM generate_series(1, $2) AS n",
            made.address, store.PROOFS_PER_DAY_MAX,
        )  # fmt: skip
        refused = await sent(client, await signed(client, key))
        assert_refused(refused, 429, "wallet_limit")
        assert int(refused.headers["retry-after"]) > 0
        await gateway.rows(
            "INSERT INTO wallet_proofs (challenge_sha256, wallet, first, expires_at)"
            " SELECT sha256(('f' || n)::bytea), 'w' || n, TRUE, now() FROM generate_series(1, $1) AS n",
            store.FIRST_PER_HOUR_MAX,
        )  # fmt: skip
        assert_refused(await sent(client, await signed(client, Ed25519PrivateKey.generate())), 429, "wallet_limit")


async def test_a_gateway_without_domains_gives_no_keys(stack: Stack) -> None:
    await stack.start_gateway(COCOON_WALLET_DOMAINS=" , ")
    async with stack.client("nobody") as client:
        assert_refused(await client.post(CHALLENGE_PATH), 403, "wallet_enrolment_off")


# The command


def enrol(stack: Stack, folder: Path, *arguments: str, given: str | None = None) -> Any:
    url = f"http://127.0.0.1:{stack.port}"
    command = ["worker", "enrol", "--gateway-url", url, "--key-file", str(folder / "worker.key"), *arguments]
    return CliRunner().invoke(main, command, input=given)


async def test_the_command_enrols_by_mnemonic_and_keeps_the_key_private(gateway: Stack, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text(mnemonic())
    words.chmod(0o644)
    refused = await asyncio.to_thread(enrol, gateway, tmp_path, "--mnemonic-file", str(words))
    assert refused.exit_code == 1
    assert "chmod 600" in refused.output
    words.chmod(0o600)
    done = await asyncio.to_thread(enrol, gateway, tmp_path, "--mnemonic-file", str(words), "--wallet", "v4r2")
    assert done.exit_code == 0, done.output
    key_file = tmp_path / "worker.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    key = key_file.read_text().strip()
    assert key not in done.output
    assert not set(mnemonic().split()) & set(done.output.split())
    await until_enrols(gateway, key, 200)


async def test_the_command_takes_a_ton_connect_wallets_answer(gateway: Stack, tmp_path: Path) -> None:
    """A wallet here is whoever answers the printed request in TON Connect's JSON."""
    async with gateway.client("nobody") as client:
        given = await challenge(client)
    link, request = ton_connect_link(given, "https://gateway.example/tonconnect-manifest.json")
    assert given.payload in request
    assert link.startswith("tc://?v=2&r=%7B")
    key = wallet_key(tuple(mnemonic().split()))
    asked = msgspec.to_builtins(sign_request(key, "v5r1", given, domain=DOMAIN, clock=SystemClock()))
    items = [
        {"name": "ton_addr", "address": asked["address"], "network": asked["network"],
         "walletStateInit": asked["state_init"], "publicKey": "00"},
        {"name": "ton_proof", "proof": asked["proof"]},
    ]  # fmt: skip
    event = msgspec.json.encode({"event": "connect", "id": 1, "payload": {"items": items}}).decode()
    answer = tmp_path / "answer.json"
    answer.write_text(event)
    done = await asyncio.to_thread(enrol, gateway, tmp_path, "--ton-connect", "--answer", str(answer))
    assert done.exit_code == 0, done.output
    account = {"address": asked["address"], "chain": "-3", "walletStateInit": asked["state_init"]}
    from_sdk = {"account": account, "connectItems": {"tonProof": {"name": "ton_proof", "proof": asked["proof"]}}}
    assert read_wallet_answer(msgspec.json.encode(from_sdk).decode()) == read_wallet_answer(event)
    again = await asyncio.to_thread(enrol, gateway, tmp_path, "--ton-connect", given=event)
    assert again.exit_code == 1
    assert "wallet_challenge_refused" in again.output
    assert "tc://?v=2" in again.output


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"payload": {"items": []}}', '{"payload": 1}', '{"account": {}}'])
def test_what_is_no_wallets_answer_is_refused(text: str) -> None:
    from cli.enrol import EnrolError

    with pytest.raises(EnrolError, match="not a wallet's answer"):
        read_wallet_answer(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "either"), (("--ton-connect", "--mnemonic-file", "x"), "either"), (("--mnemonic-file", "/none"), "No such")],
)
def test_the_command_says_what_it_needs(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["worker", "enrol", "--gateway-url", "http://127.0.0.1:1", "--key-file", str(tmp_path / "k"), *arguments]
    )
    assert done.exit_code != 0
    assert said in done.output


def test_a_plain_gateway_elsewhere_is_refused(tmp_path: Path) -> None:
    words = tmp_path / "w"
    words.write_text("x")
    words.chmod(0o600)
    done = CliRunner().invoke(
        main,
        [
            "worker",
            "enrol",
            "--gateway-url",
            "http://gateway.example",
            "--key-file",
            "k",
            "--mnemonic-file",
            str(words),
        ],
    )
    assert done.exit_code == 1
    assert "must be https" in done.output


# Challenges


def test_a_challenge_is_good_at_every_process_until_it_ends() -> None:
    clock = ManualClock()
    secret = bytes.fromhex(NETWORK_SECRET)
    payload, ends = Challenges(secret, clock, system_random()).make()
    assert ends == clock.now().timestamp() + CHALLENGE_S
    other = Challenges(secret, clock, system_random())
    clock.advance(CHALLENGE_S - 1)
    assert other.seconds_left(payload) == 1
    clock.advance(1)
    with pytest.raises(ChallengeRefusedError):
        other.seconds_left(payload)


def test_a_challenge_that_was_altered_or_is_another_networks_is_refused() -> None:
    clock = ManualClock()
    challenges = Challenges(bytes(32), clock, system_random())
    payload, _ = challenges.make()
    foreign, _ = Challenges(bytes(31) + b"\x01", clock, system_random()).make()
    # Every other character at the end: its unused bits must not make a second spelling of one challenge.
    spellings = [payload[:-1] + other for other in string.ascii_letters + string.digits + "-_=" if other != payload[-1]]
    spellings += [
        payload[:position] + ("A" if payload[position] != "A" else "B") + payload[position + 1 :]
        for position in range(len(payload))
    ]
    for altered in spellings:
        with pytest.raises(ChallengeRefusedError):
            challenges.seconds_left(altered)
    for text in (foreign, "", payload[:-4], payload + "AAAA", "é", payload.removeprefix("cocoon")):
        with pytest.raises(ChallengeRefusedError):
            challenges.seconds_left(text)


# The chain


async def test_a_wallet_whose_state_init_is_stale_is_asked_of_the_chain(stack: Stack, local_chain: LocalChain) -> None:
    await stack.start_gateway(COCOON_LITESERVERS=str(local_chain.config))
    async with stack.client("nobody") as client:
        # Nothing is deployed at that address, so the chain has no other key to offer.
        assert_refused(await sent(client, await stale(client)), 403, "ton_proof_state_init")
        await issued(client, Ed25519PrivateKey.generate())


async def test_a_chain_that_does_not_answer_refuses_nobody_for_good(stack: Stack, tmp_path: Path) -> None:
    key = base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    gone = {"ip": 0x7F000001, "port": free_port(), "id": {"@type": "pub.ed25519", "key": key}}
    config = tmp_path / "liteservers.json"
    config.write_bytes(msgspec.json.encode({"liteservers": [gone]}))
    await stack.start_gateway(COCOON_LITESERVERS=str(config))
    async with stack.client("nobody") as client:
        refused = await sent(client, await stale(client))
        assert_refused(refused, 503, "chain_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert "127.0.0.1" not in refused.text
        await issued(client, Ed25519PrivateKey.generate())


async def stale(client: httpx.AsyncClient) -> WalletKeyRequest:
    """A request with the state init of another wallet than the one that signed."""
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    asked = await signed(client, Ed25519PrivateKey.generate())
    return msgspec.structs.replace(asked, state_init=encode_state_init(state_init_of("v4r2", other, global_id=-3)))
