"""One suite over every store: what a key's limits mean does not depend on where they are counted."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from cocoon.clock import SystemClock
from gateway.limiter import SlicedLimiter
from gateway.limits import LimitState, RateLimitedError
from gateway.memory_slices import InMemorySlices, SharedLimits
from gateway.redis.slices import RedisSlices
from gateway.slices import SliceStore
from tests.limit_values import Caller, a_limiter, a_principal

POLL_S_MAX = 60.0


@pytest.fixture(params=["memory", "redis"])
async def limiter(request: pytest.FixtureRequest) -> AsyncIterator[SlicedLimiter]:
    store: SliceStore = InMemorySlices(SharedLimits(SystemClock()))
    if request.param == "redis":
        store = RedisSlices(request.getfixturevalue("redis_url"), "test", timeout_s=5.0)
    limiter = a_limiter(store)
    running = asyncio.ensure_future(limiter.run())
    yield limiter
    assert not limiter.alone
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await limiter.close()


class Key(Caller):
    """One API key with its limits."""

    def __init__(self, limiter: SlicedLimiter, **limits: int) -> None:
        super().__init__(limiter, a_principal(**limits))

    async def refused(self, tokens_estimate: int = 0) -> RateLimitedError:
        with pytest.raises(RateLimitedError) as caught:
            await self.acquire(tokens_estimate)
        return caught.value

    async def acquire_in_time(self, tokens_estimate: int = 0) -> None:
        """Until a request passes, waiting as refusals say."""
        deadline = time.monotonic() + POLL_S_MAX
        while time.monotonic() < deadline:
            try:
                await self.acquire(tokens_estimate)
            except RateLimitedError as error:
                await asyncio.sleep(min(error.retry_after_s, POLL_S_MAX))
            else:
                return
        pytest.fail("no request passed in time")

    async def spend_all(self) -> tuple[float, float]:
        """Acquire until refused; when that refusal was asked for (monotonic seconds), and the wait that it named.

        A minute's worth is not counted off: a slow machine is given more, because the bucket refills meanwhile.
        """
        deadline = time.monotonic() + POLL_S_MAX
        while (before := time.monotonic()) < deadline:
            try:
                await self.acquire()
            except RateLimitedError as error:
                return before, error.retry_after_s
        pytest.fail("no request was refused")


async def test_a_minutes_worth_of_requests_passes_at_once_and_then_no_more(limiter: SlicedLimiter) -> None:
    key = Key(limiter, requests_per_min=20)
    states = [(await key.acquire()).state for _ in range(20)]
    refusal = await key.refused()

    assert [state.requests.remaining for state in states if state.requests] == list(range(19, -1, -1))
    assert all(state.tokens is None for state in states)
    assert refusal.scope == "requests"
    assert 0 < refusal.retry_after_s <= 3.0
    assert refusal.state.requests is not None
    assert refusal.state.requests.remaining == 0
    assert 50 < refusal.state.requests.reset_s <= 60


async def test_a_request_passes_after_the_time_that_the_refusal_named(limiter: SlicedLimiter) -> None:
    key = Key(limiter, requests_per_min=60)
    before, told = await key.spend_all()

    await key.acquire_in_time()

    assert 0 < told <= 1.0
    assert time.monotonic() - before >= told * 0.9


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
    assert 10 < refusal.retry_after_s <= 12
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

    assert 25 < refusal.retry_after_s <= 31


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
