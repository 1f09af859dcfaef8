"""The chain through a real liteserver interface: proofs, and every way in which a liteserver can fail us."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.ton.chain import (
    AccountStatus,
    BlockRef,
    ChainError,
    ChainProofError,
    ChainUnavailableError,
    MessageRefusedError,
)  # fmt: skip
from billing.ton.liteclient import LiteChain
from billing.ton.outbox import Intent, Outbox
from billing.ton.proofs import ForeignChainError
from billing.ton.settings import Liteserver, liteservers_setting, read_liteservers
from billing.ton.wallet import OperatorWallet
from billing.ton.wallet_keys import ChainWalletKeys
from billing.ton.wallet_messages import Transfer
from cli.anchors import NoPayoutContractError, anchor_of
from cli.dev.address import free_port
from cocoon.addresses import Address
from cocoon.cells import Builder
from cocoon.clock import SystemClock
from cocoon.contracts.codes import code_of
from cocoon.contracts.payout import ACCOUNT_CODE, Fund, PayoutConfig, PostAnchor, payout_init
from cocoon.contracts.payout import CODE as PAYOUT
from cocoon.contracts.records import NO_HASH
from tests.fixtures_chain import LocalChain
from tests.memory_outbox import MemoryOutbox

GLOBAL_ID = -3
TON = 10**9
PATIENCE_S = 60.0
POLL_S = 0.02


def somebody(name: str) -> Address:
    return Address(0, hashlib.sha256(f"lite:{name}".encode()).digest())


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"operator:{name}".encode()).digest())


def operator(name: str) -> OperatorWallet:
    return OperatorWallet(key_of(name), global_id=GLOBAL_ID)


def lite(chain: LocalChain, *, answer_s: float = 30.0) -> LiteChain:
    return LiteChain(read_liteservers(chain.config), SystemClock(), global_id=GLOBAL_ID, answer_s=answer_s)


@pytest.fixture(scope="module")
def broken_chain() -> Iterator[LocalChain]:
    """A chain of this module's own, on which faults are set: it is up and without any at the end of every test."""
    chain = LocalChain()
    try:
        chain.start()
        yield chain
    finally:
        chain.close()


@pytest.fixture
async def shared(local_chain: LocalChain) -> AsyncIterator[LiteChain]:
    async with lite(local_chain) as opened:
        yield opened


@pytest.fixture
async def own(broken_chain: LocalChain) -> AsyncIterator[LiteChain]:
    async with lite(broken_chain) as opened:
        yield opened
    broken_chain.fault(clear=True)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait; what fails for now is asked again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(ChainUnavailableError):
                if await holds():
                    return
            await asyncio.sleep(POLL_S)


async def reached(chain: LiteChain, seqno: int) -> BlockRef:
    async def there() -> bool:
        return (await chain.head()).seqno >= seqno

    await until(there)
    return await chain.head()


async def emptied(chain: LiteChain, store: MemoryOutbox, wallet: OperatorWallet) -> None:
    """Step until nothing is left."""

    async def done() -> bool:
        return not await Outbox(chain, store, wallet).step()

    await until(done)


def payments(name: str, count: int) -> list[Intent]:
    return [
        Intent(f"{name}:{number}", Transfer(somebody(f"{name}:{number}"), TON, Builder().end(), bounce=False))
        for number in range(count)
    ]


async def test_an_account_is_proven_absent_then_there_then_as_it_was(
    local_chain: LocalChain, shared: LiteChain
) -> None:
    address = somebody("absent")
    before = await shared.head()
    assert (await shared.account(address, before)).status is AccountStatus.ABSENT

    first = await reached(shared, local_chain.faucet(address, 3 * TON).seqno)
    second = await reached(shared, local_chain.faucet(address, 4 * TON).seqno)

    found = [await shared.account(address, block) for block in (before, first, second)]
    assert [one.balance_nano for one in found] == [0, 3 * TON, 7 * TON]
    assert [one.status for one in found] == ["absent", "uninitialised", "uninitialised"]
    assert [one.block for one in found] == [before, first, second]
    assert before.gen_utime <= first.gen_utime <= second.gen_utime


async def test_intents_arrive_and_the_past_is_proven(local_chain: LocalChain, shared: LiteChain) -> None:
    wallet, store = operator("arrive"), MemoryOutbox()
    await reached(shared, local_chain.faucet(wallet.address, 100 * TON).seqno)
    for batch in range(3):
        await store.enqueue(payments(f"arrive{batch}", 7))
        await emptied(shared, store, wallet)

    async def there() -> bool:
        return (await shared.account(somebody("arrive2:6"))).balance_nano == TON

    await until(there)
    past = await shared.transactions(wallet.address, limit=64)
    assert [len(one.outgoing) for one in past] == [7, 7, 7, 0]
    assert [one.lt for one in past] == sorted((one.lt for one in past), reverse=True)
    assert await shared.transactions(wallet.address, after_lt=past[1].lt) == past[:1] or len(past) == 4
    assert {one.destination for one in past[0].outgoing} == {somebody(f"arrive2:{number}") for number in range(7)}
    assert all(one.succeeded for one in past[:3])
    assert await shared.transactions(somebody("nothing")) == []


async def test_a_deployed_wallets_key_is_read_from_its_proven_data(local_chain: LocalChain, shared: LiteChain) -> None:
    wallet, store = operator("key"), MemoryOutbox()
    keys = ChainWalletKeys(shared)
    await reached(shared, local_chain.faucet(wallet.address, 10 * TON).seqno)
    before = await keys.wallet(wallet.address)
    await store.enqueue(payments("key", 1))
    await emptied(shared, store, wallet)
    found = await keys.wallet(wallet.address)

    assert before is None
    assert found is not None
    assert found.public_key == key_of("key").public_key().public_bytes_raw()


async def test_an_anchor_is_read_from_a_real_payout_contract(local_chain: LocalChain, shared: LiteChain) -> None:
    wallet, store = operator("anchor"), MemoryOutbox()
    config = PayoutConfig(wallet.address, wallet.address, 500, 60, NO_HASH, code_of(ACCOUNT_CODE))
    init = payout_init(code_of(PAYOUT), config)
    await reached(shared, local_chain.faucet(wallet.address, 10 * TON).seqno)
    await store.enqueue([Intent("deploy", Transfer(init.address, TON, Fund(1, 0).encode(), init))])
    await emptied(shared, store, wallet)

    async def deployed() -> bool:
        return (await shared.account(init.address)).status is AccountStatus.ACTIVE

    await until(deployed)
    empty = await anchor_of(shared, init.address)
    first, second = (PostAnchor(number, somebody("log").account, 5 * number, somebody(f"root {number}").account)
                     for number in (1, 2))  # fmt: skip
    for number, one in enumerate((first, second)):
        await store.enqueue([Intent(f"anchor {number}", Transfer(init.address, TON // 10, one.encode()))])
    await emptied(shared, store, wallet)

    async def posted() -> bool:
        return (await anchor_of(shared, init.address)).count == 2

    await until(posted)
    found = await anchor_of(shared, init.address)
    assert (empty.count, found.size, found.origin_hash, found.root) == (0, 10, second.origin_hash, second.root)
    with pytest.raises(NoPayoutContractError):
        await anchor_of(shared, wallet.address)


async def test_more_transactions_than_one_answer_has_are_joined(local_chain: LocalChain, shared: LiteChain) -> None:
    address = somebody("many")
    for _ in range(20):
        seqno = local_chain.faucet(address, TON).seqno
    await reached(shared, seqno)

    past = await shared.transactions(address, limit=64)

    assert len(past) == 20
    assert len(await shared.transactions(address, limit=18)) == 18
    assert [one.lt for one in await shared.transactions(address, after_lt=past[17].lt, limit=64)] == [
        one.lt for one in past[:17]
    ]


async def test_what_a_wallet_refuses_is_refused(local_chain: LocalChain, shared: LiteChain) -> None:
    wallet = operator("refused")
    block = await reached(shared, local_chain.faucet(wallet.address, TON).seqno)
    transfer = payments("refused", 1)[0].transfer
    with pytest.raises(MessageRefusedError):
        await shared.send(wallet.sign([transfer], seqno=0, valid_until=block.gen_utime - 1))
    with pytest.raises(MessageRefusedError):
        await shared.send(wallet.sign([transfer], seqno=5, valid_until=block.gen_utime + 60))


async def test_a_liteserver_of_another_network_is_refused(local_chain: LocalChain) -> None:
    async with LiteChain(read_liteservers(local_chain.config), SystemClock(), global_id=-239) as chain:
        with pytest.raises(ForeignChainError):
            await chain.head()


async def test_a_lie_about_an_account_is_found_out(broken_chain: LocalChain, own: LiteChain) -> None:
    honest, lied_about = somebody("honest"), somebody("lied about")
    broken_chain.faucet(lied_about, TON)
    block = await reached(own, broken_chain.faucet(honest, TON).seqno)
    broken_chain.fault(lie_about=str(lied_about))

    with pytest.raises(ChainProofError):
        await own.account(lied_about, block)
    with pytest.raises(ChainProofError):
        await own.transactions(lied_about)
    assert (await own.account(honest, block)).balance_nano == TON
    broken_chain.fault(clear=True)
    assert (await own.account(lied_about, block)).balance_nano == TON


async def test_an_account_cannot_be_hidden(broken_chain: LocalChain, own: LiteChain) -> None:
    hidden = somebody("hidden")
    block = await reached(own, broken_chain.faucet(hidden, TON).seqno)
    broken_chain.fault(hide=str(hidden))

    with pytest.raises(ChainProofError):
        await own.account(hidden, block)
    broken_chain.fault(clear=True)
    assert (await own.account(hidden, block)).balance_nano == TON


async def test_a_head_never_goes_back_and_one_that_is_far_behind_is_none(
    broken_chain: LocalChain, own: LiteChain
) -> None:
    for _ in range(45):
        seqno = broken_chain.advance(1).seqno
    # No block comes in between, however long this takes: the lag below is what it says.
    broken_chain.fault(halt=True)
    known = await reached(own, seqno)
    broken_chain.fault(lag_blocks=3)
    near = await own.head()
    broken_chain.fault(lag_blocks=40)

    assert near.seqno >= known.seqno
    with pytest.raises(ChainUnavailableError, match="behind"):
        await own.head()
    broken_chain.fault(clear=True)
    assert (await own.head()).seqno >= known.seqno


async def test_a_block_that_a_lagging_liteserver_has_not_seen_is_no_answer(
    broken_chain: LocalChain, own: LiteChain
) -> None:
    for _ in range(6):
        seqno = broken_chain.faucet(somebody("lagging"), TON).seqno
    block = await reached(own, seqno)
    broken_chain.fault(lag_blocks=5)
    found = None
    with suppress(ChainUnavailableError):
        found = await own.account(somebody("lagging"), block)

    # Either it says that it does not know the block, or what it says is proven as of that block; never older state.
    assert found is None or (found.block, found.balance_nano) == (block, 6 * TON)


@pytest.mark.parametrize("kill", [False, True])
async def test_a_liteserver_that_restarts_is_found_again(broken_chain: LocalChain, own: LiteChain, kill: bool) -> None:
    address = somebody(f"restart {kill}")
    block = await reached(own, broken_chain.faucet(address, TON).seqno)
    broken_chain.restart(kill=kill)

    async def there() -> bool:
        return (await own.account(address)).balance_nano == TON

    await until(there)
    assert (await own.head()).seqno >= block.seqno


async def test_a_closed_connection_costs_no_answer(broken_chain: LocalChain, own: LiteChain) -> None:
    for _ in range(3):
        await own.head()
        broken_chain.fault(close_connections=True)
        await asyncio.gather(*(own.head() for _ in range(5)))


async def test_silence_and_refusal_are_one_error(broken_chain: LocalChain, own: LiteChain) -> None:
    block = await own.head()
    async with lite(broken_chain, answer_s=2.0) as chain:
        broken_chain.fault(silent=True)
        asked = await asyncio.gather(
            chain.head(), chain.account(somebody("s")), chain.account(somebody("s"), block),
            chain.transactions(somebody("s")), chain.send(b""), return_exceptions=True,
        )  # fmt: skip
        broken_chain.fault(silent=False, refuse=True)
        with pytest.raises(ChainUnavailableError):
            await chain.head()
        broken_chain.fault(clear=True)
        await reached(chain, block.seqno)
    assert [type(one) for one in asked] == [ChainUnavailableError] * 5


async def test_another_liteserver_answers_for_one_that_is_gone(local_chain: LocalChain) -> None:
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    gone = Liteserver("127.0.0.1", free_port(), key)
    servers = (gone, *read_liteservers(local_chain.config))
    async with LiteChain(servers, SystemClock(), global_id=GLOBAL_ID) as chain:
        block = await chain.head()
        assert (await chain.account(somebody("gone"), block)).block == block


@pytest.mark.parametrize("fault", ["drop", "duplicate", "delay", "kill"])
async def test_what_the_network_does_to_a_message_never_sends_it_twice_or_never(
    broken_chain: LocalChain, own: LiteChain, fault: str
) -> None:
    wallet, store = operator(fault), MemoryOutbox()
    await reached(own, broken_chain.faucet(wallet.address, 100 * TON).seqno)
    intents = payments(fault, 4)
    await store.enqueue(intents)
    if fault == "kill":
        with suppress(ChainError):
            await Outbox(own, store, wallet).step()
        broken_chain.restart(kill=True)
    else:
        broken_chain.fault(**{fault: 1})
    await emptied(own, store, wallet)
    await store.enqueue(payments(f"{fault} again", 1))
    await emptied(own, store, wallet)

    async def there() -> bool:
        return (await own.account(somebody(f"{fault} again:0"))).balance_nano == TON

    await until(there)
    found = [(await own.account(one.transfer.destination)).balance_nano for one in intents]
    assert found == [TON] * 4


def test_liteservers_are_read_from_a_file_of_tons_form(local_chain: LocalChain) -> None:
    (server,) = read_liteservers(local_chain.config)
    (said,) = json.loads(local_chain.config.read_text())["liteservers"]

    assert (server.host, server.port) == ("127.0.0.1", said["port"])
    assert liteservers_setting({"COCOON_LITESERVERS": str(local_chain.config)}) == (server,)
    assert liteservers_setting({}) is None
