"""Wallets as the chain has them: the present key of one that was changed, and nothing of what is no wallet."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.ton.chain import ChainUnavailableError
from billing.ton.wallet_keys import ChainWalletKeys
from cocoon.addresses import Address
from cocoon.cells import Builder, Cell
from cocoon.contracts.messages import StateInit
from cocoon.ton_proof import ProofSignatureError, prove_wallet, sign_proof
from cocoon.wallets import KINDS, WalletKind, encode_state_init, owner_key, state_init_of
from tests.memory_chain import MemoryChain

FIRST = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
PRESENT = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
NOW = 1_800_000_000


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def changed(kind: WalletKind) -> tuple[StateInit, Cell]:
    """A wallet as it was deployed, and its data since its key was changed."""
    deployed = StateInit.decode(state_init_of(kind, public(FIRST), global_id=-3))
    return deployed, StateInit.decode(state_init_of(kind, public(PRESENT), global_id=-3)).data


@pytest.mark.parametrize("kind", KINDS)
async def test_the_present_key_proves_the_wallet_and_the_first_one_does_not(kind: WalletKind) -> None:
    deployed, data = changed(kind)
    chain = MemoryChain()
    chain.put(deployed.address, data, code=deployed.code)
    chain.mine()
    raw = encode_state_init(deployed.encode())

    async def prove(key: Ed25519PrivateKey) -> bytes:
        proof = sign_proof(key, deployed.address, domain="gw.example", timestamp=NOW, payload="c")
        proven = await prove_wallet(
            proof, deployed.address, raw, domains=["gw.example"], payload="c", now_s=NOW, keys=ChainWalletKeys(chain)
        )
        return proven.public_key

    assert await prove(PRESENT) == public(PRESENT)
    with pytest.raises(ProofSignatureError):
        await prove(Ed25519PrivateKey.generate())


async def test_what_is_no_wallet_has_no_key() -> None:
    chain, code = MemoryChain(), Builder().uint(7, 8).end()
    _, data = changed("v4r2")
    chain.put(Address(0, bytes(32)), None)
    chain.put(Address(0, b"\x01" * 32), data, code=code)
    chain.mine()
    keys = ChainWalletKeys(chain)

    assert [await keys.wallet(Address(0, bytes([number]) * 32)) for number in range(3)] == [None] * 3


async def test_silence_is_an_error_and_not_a_missing_wallet() -> None:
    chain = MemoryChain()
    chain.unavailable = True
    with pytest.raises(ChainUnavailableError):
        await ChainWalletKeys(chain).wallet(Address(0, bytes(32)))


def test_a_wallet_that_obeys_no_signature_has_no_key() -> None:
    init = StateInit.decode(state_init_of("v5r1", public(FIRST), global_id=-3))
    data = Builder().uint(0, 1).uint(init.data.read(1, 321), 321).end()

    assert owner_key(init.code.hash, init.data) == public(FIRST)
    assert owner_key(init.code.hash, data) is None
    assert owner_key(init.code.hash, Builder().end()) is None
    assert owner_key(bytes(32), init.data) is None
