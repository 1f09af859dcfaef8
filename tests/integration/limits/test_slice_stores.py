"""One suite over every store of shared limits: Redis must agree with the model in memory, ask by ask."""

import contextlib
import time
import uuid
from collections.abc import Callable

import pytest

from gateway.memory_slices import InMemorySlices, SharedLimits
from gateway.redis.slices import BATCH_MAX, KEY_PREFIX, RedisSlices
from gateway.slices import Answer, Ask, FlowAnswer, FlowAsk, SliceStore, SlicesUnavailableError, StockAnswer, StockAsk
from tests.fixtures_redis import RedisServer
from tests.store_clock import StoreClock

Opener = Callable[[str], SliceStore]
TIMEOUT_S = 60.0
FAR_MS = 600_000


@pytest.fixture
def opened(clock: StoreClock) -> Opener:
    """A process's access, by its name, to a store that is old enough to give everything."""
    if clock.redis is None:
        shared = SharedLimits(clock)
        return lambda process: InMemorySlices(shared, process)
    url = clock.redis.url
    return lambda process: RedisSlices(url, process, timeout_s=TIMEOUT_S)


@pytest.fixture
def young(clock: StoreClock) -> Opener:
    """The same, but the store has just forgotten everything."""
    if clock.redis is None:
        shared = SharedLimits(clock, grace_s=60)
        shared.forget()
        return lambda process: InMemorySlices(shared, process)
    clock.forget()
    url = clock.redis.url
    return lambda process: RedisSlices(url, process, timeout_s=TIMEOUT_S, grace_s=60)


class Process:
    """Asks in the store's own generation."""

    def __init__(self, opened: Opener, name: str) -> None:
        self._store = opened(name)
        self._generation = ""
        self.processes = 0

    async def ask(self, *asks: Ask) -> list[Answer]:
        while True:
            exchanged = await self._store.exchange(self._generation, asks)
            self.processes = exchanged.processes
            self._generation = exchanged.generation
            if exchanged.answers is not None:
                return exchanged.answers

    async def flow(self, ask: FlowAsk) -> FlowAnswer:
        [answer] = await self.ask(ask)
        assert isinstance(answer, FlowAnswer)
        return answer

    async def stock(self, ask: StockAsk) -> StockAnswer:
        [answer] = await self.ask(ask)
        assert isinstance(answer, StockAnswer)
        return answer

    async def close(self) -> None:
        await self._store.close()


def flow(
    name: str, limit: int, *, need: int = 0, least: int | None = None, want: int = 0, spent: int = 0, known_us: int = 0
) -> FlowAsk:
    return FlowAsk(name, limit, max(1, limit // 20), known_us, spent, need if least is None else least, need, want)


def stock(
    name: str, limit: int, *, held: int = 0, used: int | None = None, need: int = 0, least: int | None = None,
    want: int = 0, settled: int = 0, ttl_ms: int = FAR_MS,
) -> StockAsk:  # fmt: skip
    need = max(need, held)
    return StockAsk(
        name, limit, max(1, limit // 20), settled, held, held if used is None else used,
        need if least is None else least, need, max(want, need), ttl_ms,
    )  # fmt: skip


async def test_a_flow_gives_what_is_needed_until_it_is_empty_and_says_when_it_is_full(opened: Opener) -> None:
    one, other, name = Process(opened, "a"), Process(opened, "b"), str(uuid.uuid4())
    first = await one.flow(flow(name, 60, need=40))
    second = await other.flow(flow(name, 60, need=30))
    third = await other.flow(flow(name, 60, need=30, least=1))

    assert (first.granted, second.granted) == (40, 0)
    assert third.granted == 20
    assert (first.full_in_us, third.full_in_us) == (40e6, 60e6)
    await one.close()
    await other.close()


async def test_a_flow_gives_more_than_is_needed_only_from_plenty(opened: Opener) -> None:
    process, name = Process(opened, "a"), str(uuid.uuid4())

    assert (await process.flow(flow(name, 100, need=1, want=10))).granted == 11
    assert (await process.flow(flow(name, 100, want=80))).granted == 22
    assert (await process.flow(flow(name, 100, need=64, want=80))).granted == 64
    await process.close()


async def test_what_a_flow_is_given_back_is_there_again_but_never_more_than_all(opened: Opener) -> None:
    process, name = Process(opened, "a"), str(uuid.uuid4())
    await process.flow(flow(name, 50, need=50))
    assert (await process.flow(flow(name, 50, spent=-30, need=30))).granted == 30
    await process.flow(flow(name, 50, spent=-900))

    assert (await process.flow(flow(name, 50, need=51))).granted == 0
    assert (await process.flow(flow(name, 50, need=50))).granted == 50
    await process.close()


async def test_a_flow_can_owe_more_than_a_minute(opened: Opener) -> None:
    process, name = Process(opened, "a"), str(uuid.uuid4())
    answer = await process.flow(flow(name, 60, spent=90, need=1))

    assert answer.granted == 0
    assert answer.full_in_us == 90e6
    await process.close()


async def test_shares_of_a_stock_add_up_to_the_limit_and_come_back(opened: Opener) -> None:
    one, other, name = Process(opened, "a"), Process(opened, "b"), str(uuid.uuid4())
    assert (await one.stock(stock(name, 10, need=7))).share == 7
    refused = await other.stock(stock(name, 10, need=4))
    partly = await other.stock(stock(name, 10, need=4, least=1))

    assert (refused.share, refused.free, refused.idle, refused.contended) == (0, 3, 7, True)
    assert (partly.share, partly.free) == (3, 0)
    told = await one.stock(stock(name, 10, held=2))
    assert (told.share, told.free, told.contended) == (2, 5, True)
    assert (await other.stock(stock(name, 10, held=3, need=8))).share == 8
    await one.close()
    await other.close()


async def test_what_is_settled_counts_whoever_knows_it(opened: Opener) -> None:
    one, other, name = Process(opened, "a"), Process(opened, "b"), str(uuid.uuid4())
    await one.stock(stock(name, 10**15, settled=9 * 10**14, need=10**13))

    answer = await other.stock(stock(name, 10**15, settled=5, need=10**14))
    assert answer.share == 0
    assert (await other.stock(stock(name, 10**15, settled=99, need=9 * 10**13))).share == 9 * 10**13
    await one.close()
    await other.close()


async def test_what_is_held_is_kept_even_above_a_limit_that_was_lowered(opened: Opener) -> None:
    process, name = Process(opened, "a"), str(uuid.uuid4())
    await process.stock(stock(name, 10, need=8))
    answer = await process.stock(stock(name, 5, held=8, need=9))

    assert (answer.share, answer.free) == (8, -3)
    await process.close()


async def test_the_share_of_a_dead_process_returns(opened: Opener, clock: StoreClock) -> None:
    dead, living, name = Process(opened, "a"), Process(opened, "b"), str(uuid.uuid4())
    await dead.stock(stock(name, 5, need=5, ttl_ms=200))
    clock.advance(0.199)
    assert (await living.stock(stock(name, 5, need=1))).share == 0

    clock.advance(0.002)
    assert (await living.stock(stock(name, 5, need=5))).share == 5
    await dead.close()
    await living.close()


async def test_a_flow_refills_with_time(opened: Opener, clock: StoreClock) -> None:
    process, name = Process(opened, "a"), str(uuid.uuid4())
    await process.flow(flow(name, 60, need=60))
    clock.advance(2.5)

    assert (await process.flow(flow(name, 60, need=3))).granted == 0
    clock.advance(0.5)
    assert (await process.flow(flow(name, 60, need=3))).granted == 3
    await process.close()


async def test_processes_are_counted(opened: Opener) -> None:
    processes = [Process(opened, name) for name in "abc"]
    for process in processes:
        await process.ask()

    assert [process.processes for process in processes] == [1, 2, 3]
    for process in processes:
        await process.close()


async def test_nothing_happens_in_a_generation_that_is_not_the_stores(opened: Opener) -> None:
    store, name = opened("a"), str(uuid.uuid4())
    exchanged = await store.exchange("another", [flow(name, 10, need=10)])
    other = Process(opened, "b")

    assert exchanged.answers is None
    assert (await other.flow(flow(name, 10, need=10))).granted == 10
    await store.close()
    await other.close()


async def test_more_asks_than_fit_one_call_are_answered_in_order(opened: Opener) -> None:
    process, name = Process(opened, "a"), str(uuid.uuid4())
    asks = [flow(f"{name}{number}", 1000, need=number + 1) for number in range(BATCH_MAX + 50)]
    answers = await process.ask(*asks)

    assert [answer.granted for answer in answers if isinstance(answer, FlowAnswer)] == list(range(1, BATCH_MAX + 51))
    await process.close()


async def test_a_store_that_forgot_gives_one_slice_in_all_until_everybody_has_spoken(young: Opener) -> None:
    one, other, name = Process(young, "a"), Process(young, "b"), str(uuid.uuid4())
    granted = [(await process.flow(flow(name, 100, need=2))).granted for process in (one, other, one)]
    held_back = await other.flow(flow(name, 100, need=2))
    shares = [
        (await process.stock(stock(name + "s", 100, need=need))).share for process, need in ((one, 4), (other, 2))
    ]

    assert granted == [2, 2, 0]
    assert (await other.flow(flow(name, 100, need=1))).granted == 1
    assert held_back.granted == 0
    assert held_back.young_us == 60e6
    assert shares == [4, 0]
    await one.close()
    await other.close()


async def test_a_store_that_forgot_believes_what_processes_know(young: Opener) -> None:
    one, other, name = Process(young, "a"), Process(young, "b"), str(uuid.uuid4())
    told = await one.flow(flow(name, 60, known_us=50_000_000))
    await other.stock(stock(name + "s", 10, held=9))
    refused = await one.stock(stock(name + "s", 10, need=2))

    assert told.full_in_us == 50e6
    assert (await other.flow(flow(name, 60, need=11))).granted == 0
    assert (refused.share, refused.free) == (0, 1)
    await one.close()
    await other.close()


async def test_redis_keeps_nothing_for_longer_than_it_matters(redis_url: str, redis_server: RedisServer) -> None:
    process, name = Process(lambda process: RedisSlices(redis_url, process, timeout_s=TIMEOUT_S), "a"), "x"
    began = time.monotonic()
    await process.ask(flow(name, 60, need=10), stock(name + "s", 10, need=1, ttl_ms=5000))

    for key, longest_ms in ((name, 11_000), (name + "s", 6_000)):
        left_ms = int(redis_server.command("PTTL", KEY_PREFIX + key).strip()[1:])
        passed_ms = (time.monotonic() - began) * 1000
        # -2: the key has expired.
        assert max(longest_ms - passed_ms - 100, -2) <= left_ms <= longest_ms + 1
    await process.close()


async def test_a_flushed_script_cache_is_refilled(redis_url: str, redis_server: RedisServer) -> None:
    process = Process(lambda process: RedisSlices(redis_url, process, timeout_s=TIMEOUT_S), "a")
    await process.flow(flow("x", 2, need=1))
    assert redis_server.command("SCRIPT", "FLUSH") == b"+OK\r\n"

    assert (await process.flow(flow("x", 2, need=1))).granted == 1
    await process.close()


async def test_a_redis_that_does_not_answer_is_given_up_in_time(own_redis: RedisServer) -> None:
    store = RedisSlices(own_redis.url, "a", timeout_s=0.1)
    deadline = time.monotonic() + TIMEOUT_S
    while not await _answers(store):
        assert time.monotonic() < deadline
    own_redis.freeze()
    with pytest.raises(SlicesUnavailableError):
        await store.exchange("", [])
    own_redis.thaw()
    own_redis.kill()
    with pytest.raises(SlicesUnavailableError):
        await store.exchange("", [])
    await store.close()


async def _answers(store: RedisSlices) -> bool:
    with contextlib.suppress(SlicesUnavailableError):
        await store.exchange("", [])
        return True
    return False
