"""Whoever shows a proof owns the wallet, said so to us, lately and for this challenge; every other proof is refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pytoniq.contract.wallets.wallet import WALLET_V3_R2_CODE, WALLET_V4_R2_CODE, WalletV3R2, WalletV4R2
from pytoniq.contract.wallets.wallet_v5 import WALLET_V5_R1_CODE, WalletV5R1
from pytoniq_core.crypto.keys import mnemonic_new, mnemonic_to_private_key

from cocoon import wallets
from cocoon.cells import Cell, cell_of
from cocoon.delegation import verify_signature
from cocoon.errors import CocoonError, MalformedError
from cocoon.mnemonic import read_words, wallet_key
from cocoon.ton_proof import (
    CLOCK_SKEW_S_MAX,
    PROOF_AGE_S_MAX,
    Domain,
    ForeignChallengeError,
    ForeignDomainError,
    ForeignStateInitError,
    OnChainWallet,
    ProofSignatureError,
    ProofTimeError,
    ProvenWallet,
    TonProof,
    proof_digest,
    prove_wallet,
    sign_proof,
    verify_proof,
)
from cocoon.wallets import (
    KINDS,
    Address,
    UnknownWalletError,
    WalletError,
    WalletKind,
    address_of,
    encode_state_init,
    state_init_of,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "ton_proof.json").read_text())
NOW = 1_790_000_000
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
DOMAINS = {"gateway.example", "other.example"}
GLOBAL_ID = -239


class _Provider:
    """pytoniq asks a provider for the state of what it builds; nothing is deployed."""

    network_global_id = GLOBAL_ID

    async def raw_get_account_state(self, address: object, block: object = None) -> tuple[None, None]:
        return None, None


def _wallet(kind: WalletKind = "v4r2", key: Ed25519PrivateKey = KEY) -> tuple[Address, bytes]:
    state_init = state_init_of(kind, key.public_key().public_bytes_raw(), global_id=GLOBAL_ID)
    return address_of(state_init), encode_state_init(state_init)


def _proof(address: Address, key: Ed25519PrivateKey = KEY, **changes: Any) -> TonProof:
    asked = {"domain": "gateway.example", "timestamp": NOW, "payload": "challenge-1"} | changes
    return sign_proof(key, address, **asked)


def _verify(proof: TonProof, address: Address, state_init: bytes, **changes: Any) -> ProvenWallet:
    asked = {"domains": DOMAINS, "payload": "challenge-1", "now_s": NOW} | changes
    return verify_proof(proof, address, state_init, **asked)


# What is accepted


@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_of_a_wallet_proves_it(kind: WalletKind) -> None:
    address, state_init = _wallet(kind)
    proven = _verify(_proof(address), address, state_init)
    assert (proven.address, proven.public_key) == (address, PUBLIC)


def test_codes_addresses_and_state_inits_are_those_of_pytoniq() -> None:
    codes = {"v3r2": WALLET_V3_R2_CODE, "v4r2": WALLET_V4_R2_CODE, "v5r1": WALLET_V5_R1_CODE}
    assert {form.kind: form.code_hash for form in wallets.FORMS} == {kind: code.hash for kind, code in codes.items()}

    async def built() -> dict[WalletKind, Any]:
        provider: Any = _Provider()
        return {
            "v3r2": await WalletV3R2.from_data(provider, PUBLIC),
            "v4r2": await WalletV4R2.from_data(provider, PUBLIC),
            "v5r1": await WalletV5R1.from_data(provider, PUBLIC, network_global_id=GLOBAL_ID),
        }

    for kind, wallet in asyncio.run(built()).items():
        state_init = state_init_of(kind, PUBLIC, global_id=GLOBAL_ID)
        assert str(address_of(state_init)) == wallet.address.to_str(is_user_friendly=False)
        # A bag that another program wrote is read too.
        theirs = wallet.state_init.serialize().to_boc()
        assert wallets.read_state_init(theirs) == wallets.StateInit(kind, state_init.hash, PUBLIC)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_verify(kind: WalletKind) -> None:
    vector = VECTORS["wallets"][kind]
    address = Address.parse(vector["address"])
    proof = msgspec.json.decode(json.dumps(vector["proof"]), type=TonProof)
    state_init = msgspec.json.decode(json.dumps(vector["state_init"]), type=bytes)
    assert proof_digest(address, proof.domain.value, proof.timestamp, proof.payload).hex() == vector["digest"]
    proven = verify_proof(
        proof, address, state_init, domains={VECTORS["domain"]}, payload=VECTORS["payload"], now_s=VECTORS["timestamp"]
    )
    assert proven.public_key.hex() == VECTORS["public_key"]
    assert encode_state_init(state_init_of(kind, proven.public_key, global_id=VECTORS["global_id"])) == state_init


def test_a_mnemonic_gives_the_key_that_wallets_derive() -> None:
    words = mnemonic_new()
    public, _ = mnemonic_to_private_key(words)
    key = wallet_key(read_words("  " + "\n".join(words).upper() + " "))
    assert key.public_key().public_bytes_raw() == public
    assert wallet_key(tuple(VECTORS["mnemonic"].split())).public_key().public_bytes_raw().hex() == VECTORS["public_key"]


def test_a_mistyped_mnemonic_is_refused_without_showing_it() -> None:
    words = VECTORS["mnemonic"].split()
    with pytest.raises(MalformedError, match="not 23"):
        read_words(" ".join(words[:-1]))
    with pytest.raises(MalformedError, match="mistyped") as refused:
        read_words(" ".join([*words[:-1], "zebra"]))
    assert not any(word in str(refused.value).split() for word in words)


# Attacks


def test_a_replayed_challenge_is_refused() -> None:
    address, state_init = _wallet()
    with pytest.raises(ForeignChallengeError):
        _verify(_proof(address, payload="challenge-0"), address, state_init)


@pytest.mark.parametrize("domain", ["evil.example", "", "gateway.example.evil", "Gateway.example"])
def test_a_proof_for_another_domain_is_refused(domain: str) -> None:
    address, state_init = _wallet()
    with pytest.raises(ForeignDomainError):
        _verify(_proof(address, domain=domain), address, state_init)


def test_a_misstated_length_of_the_domain_is_refused() -> None:
    address, state_init = _wallet()
    proof = msgspec.structs.replace(_proof(address), domain=Domain(3, "gateway.example"))
    with pytest.raises(ForeignDomainError):
        _verify(proof, address, state_init)


@pytest.mark.parametrize("age", [PROOF_AGE_S_MAX + 1, -CLOCK_SKEW_S_MAX - 1, NOW])
def test_an_old_or_future_proof_is_refused(age: int) -> None:
    address, state_init = _wallet()
    with pytest.raises(ProofTimeError):
        _verify(_proof(address, timestamp=NOW - age), address, state_init)


def test_the_state_init_of_another_wallet_is_refused() -> None:
    victim, _ = _wallet(key=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    _, own = _wallet()
    with pytest.raises(ForeignStateInitError, match="from the chain"):
        _verify(_proof(victim), victim, own)


def test_another_address_than_was_signed_is_refused() -> None:
    address, state_init = _wallet()
    basechain = _proof(address)
    masterchain = Address(-1, address.account)
    with pytest.raises(ProofSignatureError):
        _verify(basechain, masterchain, state_init)


def test_somebody_elses_signature_is_refused() -> None:
    address, state_init = _wallet()
    with pytest.raises(ProofSignatureError):
        _verify(_proof(address, Ed25519PrivateKey.generate()), address, state_init)


def test_every_tampered_bit_of_the_signature_is_refused() -> None:
    address, state_init = _wallet()
    proof = _proof(address)
    for bit in range(0, 512, 7):
        tampered = bytearray(proof.signature)
        tampered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProofSignatureError):
            _verify(msgspec.structs.replace(proof, signature=bytes(tampered)), address, state_init)


def _custom(code: Cell, data: Cell) -> tuple[Address, bytes]:
    root = cell_of((0b00110, 5), refs=(code, data))
    return address_of(root), encode_state_init(root)


def test_a_contract_that_is_no_wallet_is_refused() -> None:
    data = state_init_of("v4r2", PUBLIC, global_id=GLOBAL_ID).refs[1]
    address, state_init = _custom(cell_of((0xDEAD, 16)), data)
    with pytest.raises(UnknownWalletError, match="code unknown"):
        _verify(_proof(address), address, state_init)


def test_a_wallet_that_others_command_is_refused() -> None:
    code, data = state_init_of("v5r1", PUBLIC, global_id=GLOBAL_ID).refs
    key = int.from_bytes(PUBLIC, "big")
    deaf = cell_of((0, 1), (0, 32), (1, 32), (key, 256), (0, 1))
    address, state_init = _custom(code, deaf)
    with pytest.raises(WalletError, match="does not obey signatures"):
        _verify(_proof(address), address, state_init)
    extended = cell_of((1, 1), (0, 32), (1, 32), (key, 256), (1, 1), refs=(data,))
    address, state_init = _custom(code, extended)
    with pytest.raises(WalletError, match="not that of a new wallet"):
        _verify(_proof(address), address, state_init)


@pytest.mark.parametrize("raw", [b"", b"\x00" * 40, bytes(9000)])
def test_what_is_no_state_init_is_refused(raw: bytes) -> None:
    address, _ = _wallet()
    with pytest.raises(WalletError, match="not the state init"):
        _verify(_proof(address), address, raw)


@pytest.mark.parametrize("order_low", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "ee" + "ff" * 31])
def test_a_key_of_small_order_proves_nothing(order_low: str) -> None:
    # Under such a key R = identity, S = 0 verifies for some or all messages; every wallet can hold one.
    state_init = state_init_of("v4r2", bytes.fromhex(order_low), global_id=GLOBAL_ID)
    address = address_of(state_init)
    forged = msgspec.structs.replace(_proof(address), signature=b"\x01" + bytes(63))
    with pytest.raises(ProofSignatureError):
        _verify(forged, address, encode_state_init(state_init))


@pytest.mark.parametrize("text", ["", "0:00", "1:" + "00" * 32, "0:" + "0g" * 32, "EQ" + "A" * 46, "0:" + "00" * 33])
def test_what_is_no_raw_address_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        Address.parse(text)


# A wallet whose key was changed


class _Chain:
    """Wallets as a chain would have them."""

    def __init__(self, **wallets_by_address: OnChainWallet) -> None:
        self._wallets = wallets_by_address

    async def wallet(self, address: Address) -> OnChainWallet | None:
        return self._wallets.get(str(address))


async def _prove(proof: TonProof, address: Address, state_init: bytes, keys: _Chain | None) -> ProvenWallet:
    return await prove_wallet(proof, address, state_init, domains=DOMAINS, payload="challenge-1", now_s=NOW, keys=keys)


async def test_a_stale_key_gives_way_to_the_one_on_the_chain() -> None:
    address, state_init = _wallet()
    new = Ed25519PrivateKey.generate()
    public = new.public_key().public_bytes_raw()
    known = wallets.FORMS[1].code_hash
    with pytest.raises(ProofSignatureError):
        await _prove(_proof(address, new), address, state_init, None)
    chain = _Chain(**{str(address): OnChainWallet(known, public)})
    assert (await _prove(_proof(address, new), address, state_init, chain)).public_key == public
    with pytest.raises(ProofSignatureError):
        await _prove(_proof(address, Ed25519PrivateKey.generate()), address, state_init, chain)
    with pytest.raises(ProofSignatureError):
        await _prove(_proof(address, new), address, state_init, _Chain())
    other = _Chain(**{str(address): OnChainWallet(bytes(32), public)})
    with pytest.raises(UnknownWalletError):
        await _prove(_proof(address, new), address, state_init, other)


async def test_the_chain_excuses_neither_domain_nor_time_nor_challenge() -> None:
    address, state_init = _wallet()
    chain = _Chain(**{str(address): OnChainWallet(wallets.FORMS[1].code_hash, PUBLIC)})
    changes: tuple[dict[str, Any], ...] = (
        {"domain": "evil.example"}, {"timestamp": NOW - 9999}, {"payload": "challenge-0"},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(CocoonError) as refused:
            await _prove(_proof(address, **change), address, state_init, chain)
        assert refused.type in (ForeignDomainError, ProofTimeError, ForeignChallengeError)


def test_vectors_were_signed_by_their_key() -> None:
    for vector in VECTORS["wallets"].values():
        proof = msgspec.json.decode(json.dumps(vector["proof"]), type=TonProof)
        verify_signature(bytes.fromhex(VECTORS["public_key"]), bytes.fromhex(vector["digest"]), proof.signature)
