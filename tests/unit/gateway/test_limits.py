"""GCRA and the limiter in memory; what both limiters share is tested in tests/integration/limits."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.clock import ManualClock
from gateway.limits import (
    PERIOD_S,
    Buckets,
    Limits,
    LimitState,
    LocalLimiter,
    Permit,
    RateLimitedError,
    spent,
    wait_s,
    window,
)

KEY = uuid.UUID(int=1)


async def _acquire(limiter: LocalLimiter, key_id: uuid.UUID = KEY, **limits: int | None) -> Permit:
    wanted: dict[str, int | None] = {
        "requests_per_min": None,
        "tokens_per_min": None,
        "concurrency_max": None,
        "tokens_estimate": 0,
        **limits,
    }
    return await limiter.acquire(key_id, **wanted)  # type: ignore[arg-type]


@given(
    limit=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 200_000)), min_size=1, max_size=60),
)
def test_no_minute_brings_more_than_two_limits_and_no_window_more_than_its_share(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    full_at, now = 0.0, 0.0
    admitted: list[tuple[float, int]] = []
    for step, wanted in steps:
        now += step
        cost = min(wanted, limit)
        if wait_s(full_at, limit=limit, cost=cost, now=now) == 0:
            full_at = spent(full_at, limit=limit, cost=cost, now=now)
            admitted.append((now, cost))
    for first, (start, _) in enumerate(admitted):
        total = 0
        for end, cost in admitted[first:]:
            total += cost
            # A full bucket, and what has dripped in since.
            assert total <= limit + (end - start) * limit / PERIOD_S + 1


@given(limit=st.integers(1, 10**9), cost=st.integers(1, 10**9), used_s=st.floats(0, 200))
def test_waiting_as_long_as_told_is_enough_and_less_is_not(limit: int, cost: int, used_s: float) -> None:
    cost = min(cost, limit)
    wait = wait_s(used_s, limit=limit, cost=cost, now=0.0)
    assert wait_s(used_s, limit=limit, cost=cost, now=wait + 1e-9) == 0

    if wait > 1e-3:
        assert wait_s(used_s, limit=limit, cost=cost, now=wait - 1e-4) > 0


@given(limit=st.integers(1, 10**9))
def test_the_whole_limit_fits_into_a_full_bucket_whatever_its_size(limit: int) -> None:
    assert wait_s(0.0, limit=limit, cost=limit, now=0.0) == 0
    full_at = spent(0.0, limit=limit, cost=limit, now=0.0)
    assert window(full_at, limit=limit, now=0.0).remaining == 0
    assert window(0.0, limit=limit, now=0.0).remaining == limit


def test_a_window_says_what_is_left_and_when_all_is_back() -> None:
    full_at = spent(0.0, limit=60, cost=15, now=100.0)

    state = window(full_at, limit=60, now=100.0)

    assert (state.limit, state.remaining, state.reset_s) == (60, 45, 15.0)


def test_what_is_given_back_does_not_pile_up_above_the_limit() -> None:
    full_at = spent(0.0, limit=60, cost=-600, now=100.0)

    assert window(full_at, limit=60, now=100.0).remaining == 60
    assert wait_s(full_at, limit=60, cost=60, now=100.0) == 0
    assert spent(full_at, limit=60, cost=60, now=100.0) == 160.0


def test_neither_limit_is_spent_when_the_other_is_reached() -> None:
    buckets = Buckets()
    both = Limits.of(10, 100, 100)
    buckets.spend(KEY, both, 0.0)
    refused = buckets.spend(KEY, both, 0.0)

    assert refused.tokens_wait_s == pytest.approx(60.0)
    assert refused.state.requests is not None
    assert refused.state.requests.remaining == 9


def test_memory_for_keys_is_bounded_and_idle_keys_go_first() -> None:
    buckets = Buckets(keys_max=10)
    one = Limits.of(60, None, 0)
    busy = uuid.UUID(int=999)
    for _ in range(60):
        buckets.spend(busy, one, 0.0)
    for number in range(100):
        buckets.spend(uuid.UUID(int=number), one, number * 0.5)
        assert len(buckets) <= 10

    assert buckets.spend(busy, Limits.of(60, None, 0), 0.0).requests_wait_s > 0


def test_memory_is_bounded_even_when_every_key_is_in_use() -> None:
    buckets = Buckets(keys_max=10)
    for number in range(100):
        buckets.spend(uuid.UUID(int=number), Limits.of(1, None, 0), 0.0)

    assert len(buckets) == 10


async def test_time_brings_requests_back_one_by_one() -> None:
    clock = ManualClock()
    limiter = LocalLimiter(clock)
    for _ in range(6):
        await _acquire(limiter, requests_per_min=6)
    with pytest.raises(RateLimitedError) as caught:
        await _acquire(limiter, requests_per_min=6)
    assert (caught.value.scope, caught.value.retry_after_s) == ("requests", pytest.approx(10.0))

    clock.advance(9.99)
    with pytest.raises(RateLimitedError):
        await _acquire(limiter, requests_per_min=6)
    clock.advance(0.01)
    await _acquire(limiter, requests_per_min=6)

    with pytest.raises(RateLimitedError):
        await _acquire(limiter, requests_per_min=6)


async def test_a_request_that_is_refused_holds_no_place() -> None:
    limiter = LocalLimiter(ManualClock())
    permit = await _acquire(limiter, requests_per_min=1, concurrency_max=1)
    permit.release(0)
    with pytest.raises(RateLimitedError) as caught:
        await _acquire(limiter, requests_per_min=1, concurrency_max=1)
    assert caught.value.scope == "requests"

    assert limiter._concurrency.running(KEY) == 0
    assert limiter._concurrency._running == {}


async def test_a_key_without_limits_leaves_no_trace() -> None:
    limiter = LocalLimiter(ManualClock())
    permit = await _acquire(limiter, tokens_estimate=10**9)
    permit.release(5)

    assert permit.state == LimitState()
    assert len(limiter._buckets) == 0
