"""One suite over every store: what a key's limits mean does not depend on where they are counted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.limiter import SlicedLimiter
from gateway.limits import LimitState, RateLimitedError
from gateway.memory_slices import InMemorySlices, SharedLimits
from gateway.redis.slices import RedisSlices
from gateway.slices import SliceStore
from tests.limit_values import Caller, a_limiter, a_principal
from tests.store_clock import StoreClock

REFUSALS_MAX = 10
DEADLINE_S = 60.0


@pytest.fixture
async def limiter(clock: StoreClock) -> AsyncIterator[SlicedLimiter]:
    store: SliceStore = InMemorySlices(SharedLimits(clock))
    if clock.redis is not None:
        store = RedisSlices(clock.redis.url, "test", timeout_s=DEADLINE_S)
    limiter = a_limiter(store, clock)
    running = asyncio.ensure_future(limiter.run())
    yield limiter
    assert not limiter.alone
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await limiter.close()


class Key(Caller):
    """One API key with its limits."""

    def __init__(self, limiter: SlicedLimiter, **limits: Any) -> None:
        super().__init__(limiter, a_principal(**limits))

    async def refused(self, tokens_estimate: int = 0) -> RateLimitedError:
        with pytest.raises(RateLimitedError) as caught:
            await self.acquire(tokens_estimate)
        return caught.value

    async def acquire_in_time(self, clock: StoreClock) -> float:
        """Seconds until a request passes, waiting as refusals say."""
        start = clock.monotonic()
        for _ in range(REFUSALS_MAX):
            try:
                await self.acquire()
            except RateLimitedError as error:
                clock.advance(error.retry_after_s)
            else:
                return clock.monotonic() - start
        pytest.fail("no request passed, however long it waited")


async def test_a_minutes_worth_of_requests_passes_at_once_and_then_no_more(limiter: SlicedLimiter) -> None:
    key = Key(limiter, requests_per_min=20)
    states = [(await key.acquire()).state for _ in range(20)]
    refusal = await key.refused()

    assert [state.requests.remaining for state in states if state.requests] == list(range(19, -1, -1))
    assert all(state.tokens is None for state in states)
    assert refusal.scope == "requests"
    assert refusal.retry_after_s == pytest.approx(3.0, abs=1e-3)
    assert refusal.state.requests is not None
    assert refusal.state.requests.remaining == 0
    assert refusal.state.requests.reset_s == pytest.approx(60.0, abs=1e-3)


async def test_a_request_passes_after_the_time_that_the_refusal_named(
    limiter: SlicedLimiter, clock: StoreClock
) -> None:
    key = Key(limiter, requests_per_min=60)
    for _ in range(60):
        await key.acquire()
    told = (await key.refused()).retry_after_s

    waited = await key.acquire_in_time(clock)

    assert told == pytest.approx(1.0, abs=1e-3)
    assert waited == pytest.approx(told, abs=1e-3)
    await key.refused()


async def test_keys_do_not_share_limits(limiter: SlicedLimiter) -> None:
    one, other = Key(limiter, requests_per_min=1), Key(limiter, requests_per_min=1)
    await one.acquire()

    await one.refused()
    await other.acquire()


async def test_concurrent_requests_get_exactly_the_limit(limiter: SlicedLimiter) -> None:
    key = Key(limiter, requests_per_min=25)
    answers = await asyncio.gather(*(key.acquire() for _ in range(60)), return_exceptions=True)

    assert sum(not isinstance(answer, BaseException) for answer in answers) == 25
    assert sum(isinstance(answer, RateLimitedError) for answer in answers) == 35


async def test_tokens_are_charged_by_their_estimate(limiter: SlicedLimiter) -> None:
    key = Key(limiter, tokens_per_min=1000)
    permit = await key.acquire(600)
    refusal = await key.refused(600)

    assert permit.state.requests is None
    assert permit.state.tokens is not None
    assert (permit.state.tokens.limit, permit.state.tokens.remaining) == (1000, 400)
    assert refusal.scope == "tokens"
    assert refusal.retry_after_s == pytest.approx(12.0, abs=1e-3)
    await key.acquire(400)


async def test_tokens_that_were_not_used_come_back(limiter: SlicedLimiter) -> None:
    key = Key(limiter, tokens_per_min=1000)
    permit = await key.acquire(1000)
    await key.refused(500)

    permit.release(100)

    await key.acquire(890)
    await key.refused(100)


async def test_tokens_beyond_the_estimate_are_charged_afterwards(limiter: SlicedLimiter) -> None:
    key = Key(limiter, tokens_per_min=1000)
    permit = await key.acquire(100)
    permit.release(1500)

    refusal = await key.refused(1)

    assert refusal.retry_after_s == pytest.approx(30.06, abs=1e-3)


async def test_releasing_twice_gives_back_once(limiter: SlicedLimiter) -> None:
    key = Key(limiter, tokens_per_min=1000)
    first = await key.acquire(500)
    await key.acquire(500)
    for _ in range(3):
        first.release(0)

    await key.acquire(500)
    await key.refused(100)


async def test_an_estimate_above_the_limit_passes_when_nothing_else_was_used(limiter: SlicedLimiter) -> None:
    key = Key(limiter, tokens_per_min=1000)
    permit = await key.acquire(10**9)
    assert permit.state.tokens is not None
    assert permit.state.tokens.remaining == 0

    permit.release(10)

    await key.acquire(980)


async def test_a_request_refused_for_its_tokens_spends_no_request(limiter: SlicedLimiter) -> None:
    key = Key(limiter, requests_per_min=10, tokens_per_min=100)
    await key.acquire(100)
    for _ in range(5):
        refusal = await key.refused(100)

    assert refusal.state.requests is not None
    assert refusal.state.requests.remaining == 9
    assert refusal.scope == "tokens"


async def test_requests_at_once_are_limited_and_places_come_back(limiter: SlicedLimiter) -> None:
    key = Key(limiter, concurrency_max=2)
    first, _ = await key.acquire(), await key.acquire()
    refusal = await key.refused()
    assert (refusal.scope, refusal.state) == ("concurrency", LimitState())
    assert refusal.retry_after_s > 0

    first.release(0)
    first.release(0)

    await key.acquire()
    await key.refused()


async def test_a_request_refused_by_the_minute_holds_no_place(limiter: SlicedLimiter) -> None:
    key = Key(limiter, requests_per_min=2, concurrency_max=2)
    permits = [await key.acquire(), await key.acquire()]
    for permit in permits:
        permit.release(0)

    assert [(await key.refused()).scope for _ in range(4)] == ["requests"] * 4


async def test_very_large_limits_work(limiter: SlicedLimiter) -> None:
    key = Key(limiter, requests_per_min=10**6, tokens_per_min=10**12)
    permit = await key.acquire(10**9)
    permit.release(5)

    state = (await key.acquire(1)).state

    assert state.tokens is not None
    assert state.tokens.remaining > 10**12 - 10**7
