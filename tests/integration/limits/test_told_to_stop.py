"""Who talks to Redis can be told to stop at any moment, once: redis-py forgets it in the moment of a write's end."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from cocoon.clock import SystemClock
from gateway.redis.slices import RedisSlices
from workers.redis.heartbeats import HeartbeatBus
from workers.registry import Registry

PATIENCE_S = 60.0
TIMEOUT_S = 60.0
MOMENTS = 150
"""Rounds of the event loop after which it is told: two exchanges, or a subscription from its beginning, take fewer."""


async def stopped_at_any_moment(work: Callable[[], Awaitable[None]]) -> None:
    for moment in range(MOMENTS):
        task = asyncio.ensure_future(work())
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        _, going_on = await asyncio.wait({task}, timeout=PATIENCE_S)
        assert not going_on, f"told after {moment} rounds"
        assert task.cancelled()


async def test_a_loop_of_exchanges_ends_when_told(redis_url: str) -> None:
    slices = RedisSlices(redis_url, "stops", timeout_s=TIMEOUT_S)
    await slices.exchange("", [])

    async def exchange_for_ever() -> None:
        while True:
            await slices.exchange("", [])

    await stopped_at_any_moment(exchange_for_ever)
    await slices.close()


async def test_a_follower_of_heartbeats_ends_when_told(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.redis.heartbeats.TIMEOUT_S", TIMEOUT_S)
    clock = SystemClock()
    bus = HeartbeatBus(redis_url, Registry(clock), clock, random.Random(1))

    await stopped_at_any_moment(bus.run)
    await bus.close()
