"""A wallet's batch, as pytoniq makes and reads it, and as the double of the chain obeys it."""

import asyncio
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pytoniq import WalletV5R1
from pytoniq_core import Cell as TheirCell
from pytoniq_core.tlb.transaction import MessageAny

from billing.ton.chain import MessageRefusedError
from billing.ton.wallet_messages import MESSAGES_MAX, Transfer, WalletData, external_boc, external_message, signed_body
from cocoon.addresses import Address
from cocoon.cells import Builder, Cell, write_boc
from cocoon.contracts.messages import StateInit
from cocoon.errors import MalformedError
from cocoon.wallets import state_init_of
from tests.memory_chain import MemoryChain

SEED = bytes([3]) * 32
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
GLOBAL_ID = -3
INIT = StateInit.decode(state_init_of("v5r1", KEY.public_key().public_bytes_raw(), global_id=GLOBAL_ID))
WALLET_ID = WalletData.decode(INIT.data).wallet_id


class TheirMessage:
    """What pytoniq's wallet takes for a message."""

    def __init__(self, transfer: Transfer) -> None:
        self.send_mode = 3
        self.message = self
        self._cell = theirs(transfer.encode())

    def serialize(self) -> Any:
        return self._cell


def theirs(cell: Cell) -> Any:
    return TheirCell.one_from_boc(write_boc(cell))


def transfers(count: int) -> list[Transfer]:
    return [
        Transfer(
            Address(0, number.to_bytes(32, "big")), (number + 1) * 10**9, Builder().uint(number, 32).end(),
            INIT if number == 1 else None, bounce=number % 2 == 0,
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("one", transfers(3), ids=["plain", "deploying", "bouncing"])
def test_a_transfer_is_what_pytoniq_reads(one: Transfer) -> None:
    message: Any = MessageAny.deserialize(theirs(one.encode()).begin_parse())

    assert message.info.dest.hash_part == one.destination.account
    assert message.info.value.grams == one.value_nano
    assert (bool(message.info.bounce), bool(message.info.ihr_disabled), message.info.src) == (one.bounce, True, None)
    assert message.body.hash == one.body.hash
    assert (None if message.init is None else message.init.serialize().hash) == (
        None if one.state_init is None else one.state_init.encode().hash
    )


@pytest.mark.parametrize("count", [1, 2, MESSAGES_MAX])
def test_a_batch_is_signed_as_pytoniq_signs_it(count: int) -> None:
    batch = transfers(count)
    wallet: Any = object.__new__(WalletV5R1)
    other = wallet.raw_create_transfer_msg(
        private_key=SEED + KEY.public_key().public_bytes_raw(), seqno=7, wallet_id=WALLET_ID,
        messages=[TheirMessage(one) for one in batch], valid_until=1_900_000_000,
    )  # fmt: skip

    assert signed_body(KEY, batch, wallet_id=WALLET_ID, seqno=7, valid_until=1_900_000_000).hash == other.hash


def test_an_external_message_is_what_pytoniq_reads() -> None:
    body = signed_body(KEY, transfers(1), wallet_id=WALLET_ID, seqno=0, valid_until=2_000_000_000)
    message: Any = MessageAny.deserialize(theirs(external_message(INIT.address, body, INIT)).begin_parse())

    assert message.info.dest.hash_part == INIT.address.account
    assert message.init.serialize().hash == INIT.encode().hash
    assert message.body.hash == body.hash


@pytest.mark.parametrize("count", [0, MESSAGES_MAX + 1])
def test_a_batch_has_1_to_255_messages(count: int) -> None:
    with pytest.raises(MalformedError):
        signed_body(KEY, transfers(count), wallet_id=WALLET_ID, seqno=0, valid_until=1)


async def test_the_double_obeys_a_batch_once() -> None:
    chain = MemoryChain()
    wallet = chain.deploy_wallet(INIT)
    chain.mine()
    body = signed_body(KEY, transfers(3), wallet_id=WALLET_ID, seqno=0, valid_until=chain.now + 60)
    boc = external_boc(wallet, body)
    await chain.send(boc)
    await chain.send(boc)

    assert chain.mine() == 1
    assert [one.value_nano for one in chain.delivered] == [1 * 10**9, 2 * 10**9, 3 * 10**9]
    data = (await chain.account(wallet)).data
    assert data is not None
    assert WalletData.decode(data).seqno == 1
    (transaction,) = await chain.transactions(wallet)
    assert len(transaction.outgoing) == 3
    with pytest.raises(MessageRefusedError):
        await chain.send(boc)


@pytest.mark.parametrize("wrong", ["seqno", "wallet_id", "valid_until", "signature"])
def test_the_double_refuses_what_a_wallet_refuses(wrong: str) -> None:
    async def attempt() -> None:
        chain = MemoryChain()
        wallet = chain.deploy_wallet(INIT)
        chain.mine()
        said = {"wallet_id": WALLET_ID, "seqno": 0, "valid_until": chain.now + 60}
        if wrong in said:
            said[wrong] += -1000 if wrong == "valid_until" else 1
        key = Ed25519PrivateKey.generate() if wrong == "signature" else KEY
        await chain.send(external_boc(wallet, signed_body(key, transfers(1), **said)))

    with pytest.raises(MessageRefusedError):
        asyncio.run(attempt())
