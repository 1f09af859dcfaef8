"""The outbox: whatever dies, is lost, is late or arrives twice, every intent is sent exactly once."""

import contextlib
import random
from collections import Counter
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.ton.chain import ChainUnavailableError, MessageRefusedError
from billing.ton.outbox import (
    PAST_S,
    VALID_S,
    Intent,
    LaggingError,
    Outbox,
    WalletEmptyError,
    query_id_of,
    signed_part,
)  # fmt: skip
from billing.ton.wallet import OperatorWallet, WalletStateError
from billing.ton.wallet_messages import MESSAGES_MAX, Transfer, WalletData, external_boc, signed_body
from cocoon.addresses import Address
from cocoon.cells import Builder
from cocoon.contracts.messages import StateInit
from cocoon.wallets import state_init_of
from tests.memory_chain import MemoryChain
from tests.memory_outbox import MemoryOutbox
from tests.outbox_conformance import OutboxConformance, intent

GLOBAL_ID = -3
KEY = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
INIT = StateInit.decode(state_init_of("v5r1", KEY.public_key().public_bytes_raw(), global_id=GLOBAL_ID))
ROUNDS = 200


class TestMemoryOutbox(OutboxConformance):
    @pytest.fixture
    def store(self) -> MemoryOutbox:
        return MemoryOutbox()


class Killed(BaseException):
    """The process is gone."""


class Mortal:
    """A store or a chain whose process dies at one of its calls, before or after it took effect."""

    def __init__(self, target: Any, life: "Life") -> None:
        self._target = target
        self._life = life

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **named: Any) -> Any:
            self._life.spend()
            result = await getattr(self._target, name)(*args, **named)
            self._life.spend()
            return result

        return call


class Life:
    """So many calls, each counted before and after."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def spend(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


class World:
    """A wallet on a chain, its store, and whoever is active just now."""

    def __init__(self, *, deployed: bool = True) -> None:
        self.chain = MemoryChain()
        self.store = MemoryOutbox()
        if deployed:
            self.chain.deploy_wallet(INIT)
        else:
            self.chain.put(INIT.address, None, balance_nano=10**12)
        self.chain.mine()

    def outbox(self, life: Life | None = None) -> Outbox:
        wallet = OperatorWallet(KEY, global_id=GLOBAL_ID)
        if life is None:
            return Outbox(self.chain, self.store, wallet)
        chain: Any = Mortal(self.chain, life)
        store: Any = Mortal(self.store, life)
        return Outbox(chain, store, wallet)

    async def finish(self) -> None:
        """Step and mine until nothing is left to do."""
        for _ in range(ROUNDS):
            if not await self.outbox().step():
                return
            self.chain.mine(seconds=20)
        raise AssertionError("the outbox never came to its end")

    async def replay_everything(self) -> None:
        """Somebody who has kept every broadcast sends all of it again."""
        for boc in dict.fromkeys(self.chain.sent):
            try:
                await self.chain.send(boc)
            except MessageRefusedError:
                continue
        self.chain.mine()

    def delivered(self) -> Counter[bytes]:
        return Counter(one.body.hash for one in self.chain.delivered)


def once(intents: list[Intent]) -> Counter[bytes]:
    return Counter(one.transfer.body.hash for one in intents)


async def test_intents_are_sent_once_and_marked() -> None:
    world = World()
    intents = [intent(number) for number in range(5)]
    await world.store.enqueue(intents)

    await world.finish()
    await world.replay_everything()

    assert world.delivered() == once(intents)
    assert set(await world.store.delivered()) == {one.key for one in intents}
    assert await world.outbox().step() is False


async def test_a_wallet_that_is_not_deployed_deploys_itself_with_its_first_body() -> None:
    world = World(deployed=False)
    await world.store.enqueue([intent(1)])

    await world.finish()

    data = (await world.chain.account(INIT.address)).data
    assert data is not None
    assert WalletData.decode(data).seqno == 1


@pytest.mark.parametrize("weather", ["fair", "first broadcast lost", "everything lost for a while"])
@pytest.mark.parametrize("calls", range(28))
async def test_killed_at_every_step_it_sends_once(calls: int, weather: str) -> None:
    world = World()
    intents = [intent(number) for number in range(3)]
    await world.store.enqueue(intents)
    life = Life(calls)
    try:
        for number in range(4):
            await world.outbox(life).step()
            if weather == "fair" or (weather == "first broadcast lost" and number):
                world.chain.mine()
            else:
                world.chain.pool.clear()
                world.chain.mine(seconds=VALID_S)
    except Killed:
        pass

    await world.finish()
    await world.replay_everything()

    assert world.delivered() == once(intents)


@settings(max_examples=60)
@given(st.data())
async def test_no_sequence_of_deaths_and_losses_sends_twice_or_never(data: st.DataObject) -> None:
    world = World()
    intents: list[Intent] = []
    dice = random.Random(data.draw(st.integers(0, 2**32)))
    for move in data.draw(st.lists(st.sampled_from(
        ["enqueue", "step", "die", "die", "mine", "lose", "wait", "replay", "silence"]), max_size=40)):  # fmt: skip
        match move:
            case "enqueue":
                intents.append(intent(len(intents)))
                await world.store.enqueue(intents)
            case "step":
                await world.outbox().step()
            case "die":
                with contextlib.suppress(Killed):
                    await world.outbox(Life(dice.randrange(14))).step()
            case "mine":
                world.chain.mine()
            case "lose":
                world.chain.pool.clear()
            case "wait":
                world.chain.mine(seconds=dice.randrange(2 * (VALID_S + PAST_S)))
            case "replay":
                await world.replay_everything()
            case _:
                world.chain.unavailable = True
                with pytest.raises(ChainUnavailableError):
                    await world.chain.head()
                world.chain.unavailable = False

    await world.finish()
    await world.replay_everything()

    assert world.delivered() == once(intents)


async def test_an_open_body_is_sent_again_byte_for_byte() -> None:
    world = World()
    await world.store.enqueue([intent(1)])
    for _ in range(3):
        await world.outbox().step()
        world.chain.pool.clear()
        world.chain.mine()

    assert len(world.chain.sent) == 3
    assert len(set(world.chain.sent)) == 1


async def test_a_second_body_is_signed_only_when_the_first_can_never_be_executed() -> None:
    world = World()
    await world.store.enqueue([intent(1)])
    await world.outbox().step()
    (first,) = world.chain.pool
    world.chain.pool.clear()
    # Time is over, but a block of before may still hold it.
    world.chain.mine(seconds=VALID_S + PAST_S)
    await world.outbox().step()
    assert await world.store.pending() is not None
    world.chain.mine(seconds=10)
    world.chain.pool.clear()

    await world.outbox().step()
    assert await world.store.pending() is None
    await world.outbox().step()

    body = await world.store.pending()
    assert body is not None
    assert body.boc != first
    assert body.seqno == 0
    with pytest.raises(MessageRefusedError):
        await world.chain.send(first)


async def test_more_than_a_body_holds_goes_in_several() -> None:
    world = World()
    intents = [intent(number, value_nano=1) for number in range(MESSAGES_MAX + 3)]
    await world.store.enqueue(intents)
    await world.finish()

    assert world.delivered() == once(intents)
    assert len(world.chain.sent) == 2


async def test_what_the_wallet_cannot_pay_for_waits() -> None:
    world = World()
    world.chain.deploy_wallet(INIT, balance_nano=3 * 10**9)
    world.chain.mine()
    await world.store.enqueue([intent(number) for number in range(4)])
    await world.outbox().step()
    world.chain.mine()
    await world.outbox().step()

    assert len(world.chain.delivered) == 2
    with pytest.raises(WalletEmptyError):
        await world.outbox().step()


async def test_an_older_view_of_the_chain_signs_nothing() -> None:
    world = World()
    early = await world.chain.head()
    await world.store.enqueue([intent(1)])
    await world.finish()
    await world.store.enqueue([intent(2)])

    lagging: Any = MemoryChain()
    lagging.head = lambda: _value(early)
    lagging.account = world.chain.account

    outbox = Outbox(lagging, world.store, OperatorWallet(KEY, global_id=GLOBAL_ID))
    with pytest.raises(LaggingError):
        await outbox.step()
    assert await world.store.pending() is None


async def _value(value: Any) -> Any:
    return value


async def test_a_seqno_that_somebody_else_used_frees_the_intents() -> None:
    world = World()
    await world.store.enqueue([intent(1)])
    await world.outbox().step()
    world.chain.pool.clear()
    stranger = signed_body(
        KEY, [Transfer(Address(0, bytes(32)), 5, Builder().end())], seqno=0, valid_until=world.chain.now + 60,
        wallet_id=WalletData.decode(INIT.data).wallet_id,
    )  # fmt: skip
    await world.chain.send(external_boc(INIT.address, stranger))
    world.chain.mine()
    await world.finish()
    await world.replay_everything()

    assert world.delivered()[intent(1).transfer.body.hash] == 1
    assert len(world.chain.delivered) == 2


async def test_who_is_not_active_any_more_neither_stores_nor_sends() -> None:
    world = World()
    await world.store.enqueue([intent(1)])
    allowed = [1]

    async def require_active() -> None:
        if not allowed:
            raise Killed
        allowed.pop()

    wallet = OperatorWallet(KEY, global_id=GLOBAL_ID)
    outbox = Outbox(world.chain, world.store, wallet, require_active)
    with pytest.raises(Killed):
        await outbox.step()
    assert await world.store.pending() is not None
    with pytest.raises(Killed):
        await outbox.step()
    assert world.chain.sent == []
    await world.finish()
    await world.store.enqueue([intent(2)])
    with pytest.raises(Killed):
        await outbox.step()
    assert await world.store.pending() is None


async def test_another_contract_at_the_wallets_address_is_refused() -> None:
    world = World()
    world.chain.put(INIT.address, Builder().uint(1, 8).end(), code=Builder().end())
    world.chain.mine()
    await world.store.enqueue([intent(1)])
    with pytest.raises(WalletStateError):
        await world.outbox().step()


def test_a_query_id_is_the_same_for_the_same_key() -> None:
    assert query_id_of("claim:1") == query_id_of("claim:1") != query_id_of("claim:2")
    assert 0 <= query_id_of("x") < 2**64


@pytest.mark.parametrize("init", [None, INIT])
def test_the_signed_part_is_read_out_of_its_message(init: StateInit | None) -> None:
    body = signed_body(KEY, [intent(1).transfer], wallet_id=1, seqno=0, valid_until=1)
    assert signed_part(external_boc(INIT.address, body, init)).hash == body.hash


def test_a_transfer_is_read_back_as_it_was_written() -> None:
    for number in range(6):
        transfer = intent(number).transfer
        assert Transfer.decode(transfer.encode()).encode().hash == transfer.encode().hash


def test_a_wallet_never_prints_its_key() -> None:
    wallet = OperatorWallet(KEY, global_id=GLOBAL_ID)
    assert repr(wallet) == f"OperatorWallet({INIT.address})"
