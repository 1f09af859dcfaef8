"""One process's limiter: who waits, who is refused, and what happens when the store is slow, away or forgets.

Time stands unless a test moves it, so that nothing refills because the machine is slow.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from cocoon.clock import ManualClock
from gateway.limiter import LimitTerms, SlicedLimiter
from gateway.limits import LimitState, LimitsUnknownError, RateLimitedError, SpendLimitError
from gateway.memory_slices import InMemorySlices, InMemorySpend, SharedLimits
from gateway.permits import SlicedPermit
from gateway.slices import Ask, Exchanged, SlicesUnavailableError, SpendAsk, SpendBooks, SpendUnavailableError
from tests import limit_values
from tests.limit_values import Caller, a_principal

DEADLINE_S = 60.0


class FickleStore:
    """A store that can be away, or never answer."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._store = InMemorySlices(SharedLimits(self.clock))
        self.away = False
        self.silent = False
        self.exchanges = 0

    async def exchange(self, generation: str, asks: Sequence[Ask]) -> Exchanged:
        self.exchanges += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.away:
            raise SlicesUnavailableError
        return await self._store.exchange(generation, asks)

    async def close(self) -> None:
        await self._store.close()


class NoBooks:
    """Books that cannot be read."""

    async def spent(self, asks: Sequence[SpendAsk]) -> list[int]:
        del asks
        raise SpendUnavailableError


def a_limiter(store: FickleStore, books: SpendBooks | None = None, **members: Any) -> SlicedLimiter:
    return limit_values.a_limiter(store, store.clock, books, **members)


async def served(limiter: SlicedLimiter, work: Awaitable[SlicedPermit]) -> SlicedPermit:
    """The permit, with an exchange for whoever waits and none by itself."""
    asking = asyncio.ensure_future(work)
    while not asking.done():
        await asyncio.sleep(0)
        await limiter.exchange()
    return asking.result()


@contextlib.asynccontextmanager
async def running(limiter: SlicedLimiter) -> AsyncIterator[SlicedLimiter]:
    task = asyncio.ensure_future(limiter.run())
    try:
        yield limiter
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until_shared(limiter: SlicedLimiter) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while limiter.alone:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def until_alone(limiter: SlicedLimiter, clock: ManualClock) -> None:
    """Until the limiter has noticed that its store is away, which it asks for something every so often."""
    deadline = time.monotonic() + DEADLINE_S
    while not limiter.alone:
        assert time.monotonic() < deadline
        clock.advance(LimitTerms().exchange_s)
        await asyncio.sleep(0.005)


async def test_a_key_without_limits_never_asks_anybody() -> None:
    store = FickleStore()
    caller = Caller(a_limiter(store), a_principal())
    for _ in range(10):
        permit = await caller.acquire(10**9, 10**9)
        permit.release(7, 7)
        permit.settled()
        assert permit.state == LimitState()

    assert store.exchanges == 0


async def test_a_warm_slice_admits_without_asking() -> None:
    store = FickleStore()
    limiter = a_limiter(store)
    caller = Caller(limiter, a_principal(requests_per_min=10_000))
    for _ in range(20):
        await served(limiter, caller.acquire())
        store.clock.advance(0.02)
    await limiter.exchange()
    before = store.exchanges
    for _ in range(5):
        await caller.acquire()
    assert store.exchanges == before


async def test_a_request_that_is_cancelled_while_it_waits_leaves_nothing_behind() -> None:
    store = FickleStore()
    store.silent = True
    limiter = a_limiter(store)
    caller = Caller(limiter, a_principal(concurrency_max=1))
    waiting = asyncio.ensure_future(caller.acquire())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    store.silent = False

    async with running(limiter):
        permit = await caller.acquire()
        with pytest.raises(RateLimitedError):
            await caller.acquire()
        permit.release(0)
        permit.release(0)
        await caller.acquire()
        with pytest.raises(RateLimitedError):
            await caller.acquire()


async def test_a_store_that_does_not_answer_costs_bounded_time() -> None:
    store = FickleStore()
    store.silent = True
    async with running(a_limiter(store, terms=LimitTerms(wait_s=0.05))) as limiter:
        caller = Caller(limiter, a_principal(requests_per_min=100))
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(5):
                await caller.acquire()
            with pytest.raises(RateLimitedError) as caught:
                await caller.acquire()
    assert 0 < caught.value.retry_after_s <= 1.0


async def test_alone_a_process_has_its_part_says_so_once_and_pays_it_back() -> None:
    store = FickleStore()
    with capture_logs() as logs:
        async with running(a_limiter(store, processes=4, terms=LimitTerms(retry_s=0.01))) as limiter:
            caller = Caller(limiter, a_principal(requests_per_min=400))
            await caller.acquire()
            store.away = True
            await until_alone(limiter, store.clock)
            passed = 0
            with contextlib.suppress(RateLimitedError):
                while passed < 400:
                    await caller.acquire()
                    passed += 1
            store.away = False
            await until_shared(limiter)
            state = (await caller.acquire()).state
    # A slice of 20 at once, give or take what was held.
    assert 15 <= passed <= 25
    assert state.requests is not None
    assert state.requests.remaining <= 400 - passed
    assert [log["event"] for log in logs] == ["limits_alone", "limits_shared"]


async def test_alone_at_least_one_request_runs_at_once() -> None:
    store = FickleStore()
    store.away = True
    async with running(a_limiter(store, processes=8)) as limiter:
        await until_alone(limiter, store.clock)
        caller = Caller(limiter, a_principal(concurrency_max=2))
        permit = await caller.acquire()
        with pytest.raises(RateLimitedError) as caught:
            await caller.acquire()
        permit.release(0)
        await caller.acquire()
    assert caught.value.scope == "concurrency"


async def test_spend_that_cannot_be_read_is_no_reason_to_spend() -> None:
    limiter = a_limiter(FickleStore(), books=NoBooks(), terms=LimitTerms(wait_s=0.05))
    async with running(limiter):
        with pytest.raises(LimitsUnknownError):
            await Caller(limiter, a_principal(spend_day_nano_max=100)).acquire(0, 1)


async def test_alone_what_others_spend_is_unknown_and_a_used_up_limit_is_not() -> None:
    store, books = FickleStore(), InMemorySpend()
    store.away = True
    async with running(a_limiter(store, books=books, processes=2)) as limiter:
        await until_alone(limiter, store.clock)
        caller = Caller(limiter, a_principal(spend_day_nano_max=1000))
        async with asyncio.timeout(DEADLINE_S):
            while True:
                # Until the books have been read.
                with contextlib.suppress(LimitsUnknownError):
                    await caller.acquire(0, 50)
                    break
                await asyncio.sleep(0.01)
        with pytest.raises(LimitsUnknownError):
            await caller.acquire(0, 50)
        with pytest.raises(SpendLimitError) as caught:
            await caller.acquire(0, 1001)
    assert "does not cover" in str(caught.value)


async def test_a_lowered_limit_counts_at_once_and_a_removed_one_is_gone() -> None:
    async with running(a_limiter(FickleStore())) as limiter:
        caller = Caller(limiter, a_principal(requests_per_min=1000))
        for _ in range(30):
            await caller.acquire()
        lowered = a_principal(requests_per_min=1)
        caller.principal = type(lowered)(
            key_id=caller.principal.key_id, customer_id=lowered.customer_id, name="test", requests_per_min=1
        )
        # Three hundredths of the minute are used, of whatever limit there is.
        answers = await asyncio.gather(caller.acquire(), caller.acquire(), return_exceptions=True)
        assert any(isinstance(answer, RateLimitedError) for answer in answers)
        caller.principal = type(lowered)(key_id=caller.principal.key_id, customer_id=lowered.customer_id, name="test")
        for _ in range(30):
            assert (await caller.acquire()).state == LimitState()
