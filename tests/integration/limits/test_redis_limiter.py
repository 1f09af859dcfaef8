"""What only the shared limiter does: share, degrade, recover, cost nothing where there is nothing to count."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from cocoon.clock import SystemClock
from gateway.limits import LimitState, Permit, RateLimitedError
from gateway.redis import limiter as redis_limiter
from gateway.redis.limiter import RedisLimiter
from tests.fixtures_redis import RedisServer

DEADLINE_S = 10.0


async def _acquire(
    limiter: RedisLimiter,
    key_id: uuid.UUID,
    *,
    requests: int | None = None,
    tokens: int | None = None,
    concurrency: int | None = None,
    estimate: int = 0,
) -> Permit:
    return await limiter.acquire(
        key_id,
        requests_per_min=requests,
        tokens_per_min=tokens,
        concurrency_max=concurrency,
        tokens_estimate=estimate,
    )


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy test machine may be slower than production's budget."""
    monkeypatch.setattr(redis_limiter, "TIMEOUT_S", 5.0)


@pytest.fixture
async def pair(redis_url: str, patient: None) -> AsyncIterator[tuple[RedisLimiter, RedisLimiter]]:
    one, other = RedisLimiter(redis_url, SystemClock()), RedisLimiter(redis_url, SystemClock())
    yield one, other
    await one.close()
    await other.close()


async def _degrade(limiter: RedisLimiter) -> None:
    for _ in range(redis_limiter.FAILURES_MAX):
        await _acquire(limiter, uuid.uuid4(), requests=1)
    assert limiter.degraded


def test_production_waits_for_redis_no_longer_than_50_ms() -> None:
    assert redis_limiter.TIMEOUT_S <= 0.05


async def test_replicas_share_one_limit(pair: tuple[RedisLimiter, RedisLimiter]) -> None:
    key = uuid.uuid4()
    answers = await asyncio.gather(
        *(_acquire(limiter, key, requests=30) for limiter in pair for _ in range(30)), return_exceptions=True
    )

    assert sum(isinstance(answer, Permit) for answer in answers) == 30
    assert sum(isinstance(answer, RateLimitedError) for answer in answers) == 30


async def test_a_correction_reaches_the_other_replicas(pair: tuple[RedisLimiter, RedisLimiter]) -> None:
    one, other = pair
    key = uuid.uuid4()
    permit = await _acquire(one, key, tokens=1000, estimate=1000)
    permit.release(10)
    with pytest.raises(RateLimitedError):
        await _acquire(other, key, tokens=1000, estimate=900)

    sender = asyncio.ensure_future(one.run())
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                await _acquire(other, key, tokens=1000, estimate=900)
                break
            except RateLimitedError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def test_state_in_redis_expires_with_the_limit(
    pair: tuple[RedisLimiter, RedisLimiter], redis_server: RedisServer
) -> None:
    key = uuid.uuid4()
    await _acquire(pair[0], key, requests=60, tokens=600, estimate=100)

    left_ms = int(redis_server.command("PTTL", f"{redis_limiter.KEY_PREFIX}{key}").strip()[1:])

    assert 9_000 < left_ms <= 11_100


async def test_a_flushed_script_cache_is_refilled(
    pair: tuple[RedisLimiter, RedisLimiter], redis_server: RedisServer
) -> None:
    key = uuid.uuid4()
    await _acquire(pair[0], key, requests=2)
    assert redis_server.command("SCRIPT", "FLUSH") == b"+OK\r\n"
    await _acquire(pair[0], key, requests=2)

    with pytest.raises(RateLimitedError):
        await _acquire(pair[0], key, requests=2)


async def test_keys_without_limits_never_ask_redis() -> None:
    limiter = RedisLimiter("redis://127.0.0.1:1/0", SystemClock())
    for _ in range(10):
        permit = await _acquire(limiter, uuid.uuid4(), concurrency=3, estimate=10**9)
        assert permit.state == LimitState()
        permit.release(7)

    assert limiter._failures == 0
    assert limiter._corrections == {}
    await limiter.close()


async def test_without_redis_each_process_keeps_the_full_limit_and_says_so_once() -> None:
    limiter = RedisLimiter("redis://127.0.0.1:1/0", SystemClock())
    key = uuid.uuid4()
    with capture_logs() as logs:
        permits = [await _acquire(limiter, key, requests=10, tokens=1000, estimate=100) for _ in range(10)]
        with pytest.raises(RateLimitedError) as caught:
            await _acquire(limiter, key, requests=10, tokens=1000, estimate=100)
        permits[0].release(0)

    assert [entry["event"] for entry in logs] == ["limiter_degraded"]
    assert caught.value.retry_after_s > 0
    assert permits[0].state.requests is not None
    assert permits[0].state.requests.remaining == 9
    await limiter.close()


async def test_a_frozen_redis_costs_bounded_time_and_is_asked_rarely(own_redis: RedisServer) -> None:
    limiter = RedisLimiter(own_redis.url, SystemClock())
    own_redis.freeze()
    await _degrade(limiter)
    limiter._probe_at = SystemClock().monotonic() + 60

    start = time.monotonic()
    for _ in range(200):
        await _acquire(limiter, uuid.uuid4(), requests=1)

    assert time.monotonic() - start < 1.0
    own_redis.thaw()
    await limiter.close()


async def test_a_redis_that_comes_back_is_used_again(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_limiter, "PROBE_S", 0.05)
    limiter = RedisLimiter(own_redis.url, SystemClock())
    key = uuid.uuid4()
    await _acquire(limiter, key, requests=1)
    own_redis.kill()
    await _degrade(limiter)
    own_redis.start()

    deadline = time.monotonic() + DEADLINE_S
    with capture_logs() as logs:
        while limiter.degraded:
            assert time.monotonic() < deadline
            await _acquire(limiter, uuid.uuid4(), requests=100)
            await asyncio.sleep(0.01)

    assert [entry["event"] for entry in logs] == ["limiter_recovered"]
    await limiter.close()


async def test_a_cancelled_request_gives_its_place_back(own_redis: RedisServer, patient: None) -> None:
    limiter = RedisLimiter(own_redis.url, SystemClock())
    key = uuid.uuid4()
    own_redis.freeze()
    waiting = asyncio.ensure_future(_acquire(limiter, key, requests=5, concurrency=1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    own_redis.thaw()

    await _acquire(limiter, key, requests=5, concurrency=1)
    await limiter.close()


async def test_corrections_take_bounded_room(monkeypatch: pytest.MonkeyPatch, redis_url: str, patient: None) -> None:
    monkeypatch.setattr(redis_limiter, "CORRECTIONS_MAX", 3)
    limiter = RedisLimiter(redis_url, SystemClock())
    for _ in range(10):
        (await _acquire(limiter, uuid.uuid4(), tokens=100, estimate=50)).release(1)

    assert len(limiter._corrections) == 3
    await limiter.close()
    assert limiter._corrections == {}
