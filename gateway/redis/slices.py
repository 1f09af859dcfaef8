"""What all processes share of the limits, kept in Redis: one call of one script for up to `BATCH_MAX` budgets.

A script is atomic and runs on Redis's clock, so that processes need not agree about the time. Everything expires by
itself. A Redis that starts empty names a new generation; `slices.lua` says how it keeps its gates shut until everybody
has said what they know.
"""

import asyncio
import contextlib
import hashlib
import importlib.resources
from collections.abc import Sequence
from typing import Any, Protocol, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from cocoon.cancellation import cancellation_kept
from gateway.slices import (
    CONTENDED_S,
    EXTRA_PARTS,
    GRACE_S,
    LIVE_S,
    Answer,
    Ask,
    Exchanged,
    FlowAnswer,
    FlowAsk,
    SlicesUnavailableError,
    StockAnswer,
)

TIMEOUT_S = 0.5
"""For one exchange, connecting included. No request waits for it, see `gateway.limiter`."""
BATCH_MAX = 200
"""Budgets in one call of the script, which stops everybody else in Redis for as long: a few milliseconds."""
FIELDS = 10
"""Numbers of one budget, as the script counts them."""
KEY_PREFIX = "cocoon:limit:"
GENERATION_KEY = "cocoon:limits:generation"
PROCESSES_KEY = "cocoon:limits:processes"

_SCRIPT = importlib.resources.files("gateway.redis").joinpath("slices.lua").read_text("utf-8")
_SCRIPT_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class _Client(Protocol):
    """What is used of `redis.asyncio.Redis`."""

    async def evalsha(self, sha: str, numkeys: int, *keys_and_args: str | int) -> Any: ...

    async def eval(self, script: str, numkeys: int, *keys_and_args: str | int) -> Any: ...

    async def aclose(self) -> None: ...


class RedisSlices:
    """One process's access to the shared limits; `process` is its name, different from every other's."""

    def __init__(self, redis_url: str, process: str, *, timeout_s: float = TIMEOUT_S, grace_s: float = GRACE_S) -> None:
        self._redis = _open_client(redis_url, timeout_s)
        self._process = process
        self._timeout_s = timeout_s
        self._grace_us = int(grace_s * 1e6)

    async def exchange(self, generation: str, asks: Sequence[Ask]) -> Exchanged:
        """See `gateway.slices.SliceStore.exchange`."""
        answers: list[Answer] = []
        processes = 1
        for first in range(0, max(len(asks), 1), BATCH_MAX):
            batch = asks[first : first + BATCH_MAX]
            try:
                with cancellation_kept():
                    async with asyncio.timeout(self._timeout_s):
                        raw = await self._call(generation, batch)
            except (RedisError, OSError) as error:
                raise SlicesUnavailableError(type(error).__name__) from error
            named, processes = raw[0].decode(), raw[1]
            if named != generation:
                return Exchanged(named, processes, None)
            answers += (_answer(ask, numbers) for ask, numbers in zip(batch, raw[2:], strict=True))
        return Exchanged(generation, processes, answers)

    async def close(self) -> None:
        """See `gateway.slices.SliceStore.close`."""
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()

    async def _call(self, generation: str, asks: Sequence[Ask]) -> list[Any]:
        keys = [GENERATION_KEY, PROCESSES_KEY, *(KEY_PREFIX + ask.name for ask in asks)]
        arguments: list[str | int] = [
            generation, self._process, int(LIVE_S * 1e6), self._grace_us, int(CONTENDED_S * 1e6), EXTRA_PARTS,
        ]  # fmt: skip
        for ask in asks:
            numbers: tuple[int, ...] = ask[1:]
            arguments += ("flow" if isinstance(ask, FlowAsk) else "stock", *numbers)
            arguments += (0,) * (FIELDS - 1 - len(numbers))
        try:
            return await self._redis.evalsha(_SCRIPT_SHA, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._redis.eval(_SCRIPT, len(keys), *keys, *arguments)


def _answer(ask: Ask, numbers: list[int]) -> Answer:
    if isinstance(ask, FlowAsk):
        return FlowAnswer(*numbers)
    share, free, idle, contended, young_us = numbers
    return StockAnswer(share, free, idle, bool(contended), young_us)


def _open_client(redis_url: str, timeout_s: float) -> _Client:
    # One exchange at a time, so one connection.
    pool = cast("Any", redis.asyncio.BlockingConnectionPool).from_url(
        redis_url,
        max_connections=2,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return cast("_Client", redis.asyncio.Redis.from_pool(pool))
