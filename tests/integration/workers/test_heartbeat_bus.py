"""Heartbeats between gateway processes, over a real Redis."""

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from cocoon.clock import ManualClock, SystemClock
from tests.fixtures_redis import RedisServer
from tests.unit.workers.worker_values import MODEL, a_heartbeat, a_worker
from workers.errors import HeartbeatBusUnavailableError
from workers.redis import heartbeats
from workers.redis.heartbeats import CHANNEL, KEY_PREFIX, TTL_MS, HeartbeatBus
from workers.registry import LIVE_S, Registry

DEADLINE_S = 60.0
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)


async def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


class Process:
    """One gateway process as far as heartbeats go; its registry's time stands still unless moved."""

    def __init__(self, redis_url: str) -> None:
        self.clock = ManualClock()
        self.registry = Registry(self.clock)
        self.registry.replace_enrolments([a_worker(self.clock, 1), a_worker(self.clock, 2)])
        self.bus = HeartbeatBus(redis_url, self.registry, self.clock, random.Random(1))

    def live(self) -> list[str]:
        return sorted(target.name for target in self.registry.targets_for(MODEL))


@contextlib.asynccontextmanager
async def _running(redis_url: str, *, connected: bool = True) -> AsyncIterator[Process]:
    process = Process(redis_url)
    task = asyncio.ensure_future(process.bus.run())
    try:
        if connected:
            await _until(lambda: process.bus.connected)
        yield process
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await process.bus.close()


async def test_every_process_hears_a_heartbeat_sent_to_one(redis_url: str) -> None:
    async with _running(redis_url) as one, _running(redis_url) as other:
        await one.bus.publish(ONE, a_heartbeat(running=3))
        assert one.live() == ["worker-1"]

        await _until(lambda: other.live() == ["worker-1"])

        assert other.registry.members()[0].load.in_flight_estimate == 3


async def test_a_process_that_starts_later_loads_the_current_picture(redis_url: str) -> None:
    async with _running(redis_url) as one:
        await one.bus.publish(ONE, a_heartbeat(running=2))
        await one.bus.publish(TWO, a_heartbeat(draining=True))
        async with _running(redis_url) as late:
            assert late.live() == ["worker-1"]
            assert [member.load.draining for member in late.registry.members()] == [False, True]


async def test_a_stored_heartbeat_is_as_old_as_it_is(redis_url: str, redis_server: RedisServer) -> None:
    async with _running(redis_url) as one:
        await one.bus.publish(ONE, a_heartbeat())
        redis_server.command("PEXPIRE", f"{KEY_PREFIX}{ONE}", str(TTL_MS // 2))
        async with _running(redis_url) as late:
            assert late.live() == ["worker-1"]
            late.clock.advance(LIVE_S / 2 + 0.1)
            assert late.live() == []


async def test_a_heartbeat_is_stored_no_longer_than_it_means_anything(
    redis_url: str, redis_server: RedisServer
) -> None:
    async with _running(redis_url) as one:
        await one.bus.publish(ONE, a_heartbeat())

        left_ms = int(redis_server.command("PTTL", f"{KEY_PREFIX}{ONE}").strip()[1:])

        assert 0 < left_ms <= LIVE_S * 1000


async def test_messages_that_are_no_heartbeats_are_ignored(redis_url: str, redis_server: RedisServer) -> None:
    async with _running(redis_url) as one, _running(redis_url) as other:
        for rubbish in ("", "{}", "not json", "x" * 5000, '{"worker_id":"1","heartbeat":{}}', "\u00e9"):
            redis_server.command("PUBLISH", CHANNEL, rubbish)
        await one.bus.publish(ONE, a_heartbeat())

        await _until(lambda: other.live() == ["worker-1"])

        assert other.bus.connected


async def test_losing_redis_keeps_the_last_picture_and_says_so_once(own_redis: RedisServer) -> None:
    async with _running(own_redis.url) as process:
        await process.bus.publish(ONE, a_heartbeat())
        with capture_logs() as logs:
            own_redis.kill()
            await _until(lambda: not process.bus.connected)
            process.clock.advance(100 * LIVE_S)
            with pytest.raises(HeartbeatBusUnavailableError):
                await process.bus.publish(TWO, a_heartbeat())

        assert process.live() == ["worker-1", "worker-2"]
        assert [entry["event"] for entry in logs] == ["heartbeat_bus_disconnected"]


async def test_after_redis_comes_back_heartbeats_flow_and_the_silent_go(own_redis: RedisServer) -> None:
    async with _running(own_redis.url) as one, _running(own_redis.url) as other:
        await one.bus.publish(ONE, a_heartbeat())
        await one.bus.publish(TWO, a_heartbeat())
        await _until(lambda: other.live() == ["worker-1", "worker-2"])
        own_redis.kill()
        await _until(lambda: not one.bus.connected and not other.bus.connected)
        own_redis.start()
        await _until(lambda: one.bus.connected and other.bus.connected)
        other.clock.advance(LIVE_S / 2)
        await one.bus.publish(TWO, a_heartbeat(running=1))
        await _until(lambda: other.registry.members()[1].load.in_flight_estimate == 1)

        other.clock.advance(LIVE_S / 2 + 0.1)

        assert other.live() == ["worker-2"]


async def test_a_redis_that_hangs_without_closing_is_noticed(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "SILENCE_S_MAX", 0.2)
    monkeypatch.setattr(heartbeats, "TIMEOUT_S", 3.0)
    async with _running(own_redis.url) as process:
        # Quiet is not hanging: several silences pass while it answers.
        deadline = time.monotonic() + 1.0
        await _until(lambda: time.monotonic() > deadline)
        assert process.bus.connected

        own_redis.freeze()
        await _until(lambda: not process.bus.connected)

        own_redis.thaw()
        await _until(lambda: process.bus.connected)


async def test_a_process_without_redis_still_takes_the_heartbeats_sent_to_it() -> None:
    async with _running("redis://127.0.0.1:1/0", connected=False) as process:
        with pytest.raises(HeartbeatBusUnavailableError) as caught:
            await process.bus.publish(ONE, a_heartbeat())
        await _until(lambda: process.registry.held)
        process.clock.advance(100 * LIVE_S)

        assert caught.value.transient
        assert process.live() == ["worker-1"]


async def test_real_time_takes_a_silent_worker_out(redis_url: str) -> None:
    clock = SystemClock()
    registry = Registry(clock)
    registry.replace_enrolments([a_worker(clock, 1)])
    silent_at = clock.monotonic() + 0.3
    registry.note_heartbeat(ONE, a_heartbeat(), silent_at - LIVE_S)
    models = registry.models()
    assert models == {MODEL: 1} or clock.monotonic() >= silent_at

    await _until(lambda: registry.models() == {MODEL: 0})
