"""A worker with a stake: its tickets and receipts name the contract that answers for them."""

import asyncio
import base64
import pathlib

from httpx import Response

from cocoon.bundle import ReceiptBundle
from cocoon.clock import SystemClock
from cocoon.contracts.stake import delegation_statement
from cocoon.delegation import verify_signature
from cocoon.enrolment import Keyset
from cocoon.receipt import ReceiptHead
from cocoon.ticket import Ticket
from gateway.signing import development_key
from tests.escrow_command import TON, WALLET, cocoon, keep_words
from tests.fixtures_chain import LocalChain
from tests.fixtures_gateway import NETWORK_SECRET, Stack, chat
from tests.scripted_engine import until
from tests.stake_values import GLOBAL_ID, OPERATOR, STAKED, STAKED_SEED, a_staked_key
from workers.agent.staking import StakedKey

PATH = "/v1/chat/completions"


def environment(folder: pathlib.Path, staked: StakedKey) -> dict[str, str]:
    key, config = folder / "staked.key", folder / "stake.config"
    key.touch(0o600)
    key.write_text(STAKED_SEED.hex())
    config.write_text(base64.b64encode(staked.config).decode())
    return {
        "COCOON_STAKED_KEY_FILE": str(key), "COCOON_STAKE_CONFIG_FILE": str(config), "COCOON_GLOBAL_ID": str(GLOBAL_ID),
    }  # fmt: skip


def operator_key() -> bytes:
    return development_key(bytes.fromhex(NETWORK_SECRET), global_id=GLOBAL_ID, clock=SystemClock()).operator_key


async def test_a_staked_workers_receipts_name_its_stake(stack: Stack, tmp_path: pathlib.Path) -> None:
    staked = a_staked_key(operator_key=operator_key())
    account = staked.address.account
    await stack.start_gateway(upstream=False)
    await stack.start_worker("staked", stack.engine, **environment(tmp_path, staked))
    async with stack.client() as client:
        job = (await client.post(PATH, json=chat())).headers["x-request-id"]
        found = await stack.until_true(
            lambda: client.get(f"/v1/receipts/{job}"), lambda answer: answer.status_code == 200
        )
    bundle = ReceiptBundle.decode(found.content)
    assert bundle.keyset is not None
    # Whoever has the bundle can see whose key stands behind the receipt.
    assert bundle.stake == staked.config
    keyset, head = Keyset.decode(bundle.keyset), ReceiptHead.decode(bundle.head)

    assert head.stake == Ticket.decode(bundle.ticket).stake == account
    assert keyset.stake_addr == str(staked.address)
    statement = delegation_statement(
        global_id=GLOBAL_ID, stake=account, receipt_key=keyset.receipt_pk, not_after=keyset.not_after
    )
    verify_signature(STAKED.public_key().public_bytes_raw(), statement, keyset.delegation)
    [row] = await stack.rows("SELECT s.address FROM stakes AS s JOIN workers AS w USING (worker_id)")
    assert row["address"] == str(staked.address)
    await stack.check_books()


async def test_a_stake_for_another_operators_tickets_is_refused(stack: Stack, tmp_path: pathlib.Path) -> None:
    await stack.start_gateway()
    settings = stack.worker_environment("staked", stack.engine) | environment(tmp_path, a_staked_key())
    stack.start("staked", ["worker"], settings)
    await until(lambda: "stake_refused" in stack.log("staked"))

    assert "another operator key" in stack.log("staked")
    assert await stack.rows("SELECT FROM workers") == []
    assert await stack.rows("SELECT FROM stakes") == []


async def test_a_stake_opened_with_the_gateways_terms_stands_behind_a_worker(
    stack: Stack, local_chain: LocalChain, tmp_path: pathlib.Path
) -> None:
    await stack.start_gateway(
        upstream=False, COCOON_OPERATOR_WALLET=str(OPERATOR), COCOON_PAYOUT_CONTRACT=str(OPERATOR),
        COCOON_STAKE_UNBOND_S_MIN="600",
    )  # fmt: skip
    local_chain.faucet(WALLET.address, 20 * TON)
    files = {"COCOON_STAKED_KEY_FILE": str(tmp_path / "key"), "COCOON_STAKE_CONFIG_FILE": str(tmp_path / "config")}
    opened = await asyncio.to_thread(
        cocoon, "worker", "stake", "open", "--gateway-url", f"http://127.0.0.1:{stack.port}", "--amount", "10",
        "--operator", str(OPERATOR), "--mnemonic-file", str(keep_words(tmp_path)), chain=local_chain, **files,
    )  # fmt: skip
    assert opened.returncode == 0, opened.stderr
    assert "Bonded 10 TON." in opened.stdout
    assert "returns after 600 s" in opened.stdout

    told = dict(line.split("=", 1) for line in opened.stdout.splitlines() if line.startswith("COCOON_"))
    await stack.start_worker("staked", stack.engine, **told)
    [row] = await stack.rows("SELECT s.address FROM stakes AS s JOIN workers AS w USING (worker_id)")
    assert f"Stake {row['address']}: live." in opened.stdout


async def test_a_stake_that_returns_too_soon_is_refused(stack: Stack, tmp_path: pathlib.Path) -> None:
    await stack.start_gateway()
    staked = a_staked_key(operator_key=operator_key(), unbond_s=86_399)
    stack.start("staked", ["worker"], stack.worker_environment("staked", stack.engine) | environment(tmp_path, staked))
    await until(lambda: "stake_refused" in stack.log("staked"))

    assert "86400 are asked" in stack.log("staked")


async def test_a_worker_gets_requests_when_the_chain_has_shown_its_stake_and_until_it_is_slashed(
    stack: Stack, tmp_path: pathlib.Path
) -> None:
    staked = a_staked_key(operator_key=operator_key())
    await stack.start_gateway(processes=2, upstream=False, COCOON_STAKE_PER_UNIT_NANO="1000000000")
    await stack.start_worker("staked", stack.engine, **environment(tmp_path, staked))
    async with stack.client() as client:

        async def served(status: int, times: int) -> None:
            """Connections of their own, so that both processes are asked; it takes them a moment to have looked."""
            agreed = 0

            def judge(answer: Response) -> bool:
                nonlocal agreed
                agreed = agreed + 1 if answer.status_code == status else 0
                return agreed == times

            await stack.until_true(lambda: client.post(PATH, json=chat(), headers={"connection": "close"}), judge)

        assert (await client.get("/v1/workers/stake")).json()["unit_nano"] == 10**9
        await served(503, 2)
        await bond(stack, str(staked.address), "live", 10**9)
        await served(200, 12)
        [row] = await stack.rows("SELECT sum(amount_nano) AS nano FROM stake_covers")
        assert 0 < row["nano"] <= 10**9
        await bond(stack, str(staked.address), "slashed", 0)
        await served(503, 12)
    await stack.check_books()


async def bond(stack: Stack, address: str, state: str, nano: int) -> None:
    """What the biller would have seen."""
    await stack.rows(
        "UPDATE stakes SET state = $2, bond_nano = $3, owner = '0:' || repeat('44', 32), staked_key = $4,"
        " unbond_s = 86400, seen_seqno = 1, seen_at = now() WHERE address = $1",
        address, state, nano, bytes(32),
    )  # fmt: skip
