"""Rate limits that all replicas share, kept in Redis.

One round trip decides requests and tokens together; keys without limits cost none. When Redis does not answer within
`TIMEOUT_S`, the process decides alone with the key's full limit: stated overshoot is one limit per process for as
long as Redis is away. Corrections of token estimates travel with the key's next request, or in batches.
"""

import asyncio
import contextlib
import hashlib
import importlib.resources
import uuid
from collections.abc import Callable
from typing import Any, Protocol, cast

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from cocoon.clock import Clock
from gateway.limits import Buckets, Concurrency, Limits, LimitState, LimitWindow, Permit, Spending, window

TIMEOUT_S = 0.05
"""For one decision, connecting included."""
CONNECTIONS_MAX = 32
FAILURES_MAX = 3
"""After this many failures in a row Redis counts as away..."""
PROBE_S = 1.0
"""...and is asked again this often."""
CORRECT_S = 0.1
CORRECTIONS_MAX = 10_000
"""Keys with corrections under way; more are dropped, which only makes the estimate stand."""
CORRECTION_TIMEOUT_S = 1.0
CORRECTION_BATCH_MAX = 100
KEY_PREFIX = "cocoon:limit:"

_SCRIPT = importlib.resources.files("gateway.redis").joinpath("spend.lua").read_text("utf-8")
_SCRIPT_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_log = structlog.get_logger(__name__)


class _Client(Protocol):
    """What is used of `redis.asyncio.Redis`."""

    async def evalsha(self, sha: str, numkeys: int, *keys_and_args: str | int) -> Any: ...

    async def eval(self, script: str, numkeys: int, *keys_and_args: str | int) -> Any: ...

    async def aclose(self) -> None: ...


class RedisLimiter:
    """The limiter of a gateway of several processes. `run` must be running; concurrency is counted per process."""

    def __init__(self, redis_url: str, clock: Clock) -> None:
        self._clock = clock
        self._redis = _open_client(redis_url)
        self._concurrency = Concurrency()
        self._alone = Buckets()
        self._corrections: dict[uuid.UUID, tuple[int, int]] = {}
        self._failures = 0
        self._probe_at = 0.0
        self._degraded = False

    @property
    def degraded(self) -> bool:
        """Whether this process decides alone."""
        return self._degraded

    async def acquire(
        self,
        key_id: uuid.UUID,
        *,
        requests_per_min: int | None,
        tokens_per_min: int | None,
        concurrency_max: int | None,
        tokens_estimate: int,
    ) -> Permit:
        """See `gateway.limits.Limiter.acquire`."""
        if concurrency_max is not None:
            self._concurrency.enter(key_id, concurrency_max)
        try:
            limits = Limits.of(requests_per_min, tokens_per_min, tokens_estimate)
            correct: Callable[[int], None] | None = None
            state = LimitState()
            if requests_per_min is not None or tokens_per_min is not None:
                spending, correct = await self._spend(key_id, limits)
                state = spending.require()
        except BaseException:
            if concurrency_max is not None:
                self._concurrency.leave(key_id)
            raise

        def release(tokens_used: int) -> None:
            if concurrency_max is not None:
                self._concurrency.leave(key_id)
            if correct is not None and tokens_used != limits.tokens_cost:
                correct(tokens_used - limits.tokens_cost)

        return Permit(state, release)

    async def run(self) -> None:
        """Send corrections until cancelled."""
        while True:
            await asyncio.sleep(CORRECT_S)
            if self._corrections and not self._degraded:
                await self.flush()

    async def flush(self) -> None:
        """Send the corrections so far; what cannot be sent is dropped."""
        corrections, self._corrections = self._corrections, {}
        pending = list(corrections.items())
        try:
            async with asyncio.timeout(CORRECTION_TIMEOUT_S):
                for start in range(0, len(pending), CORRECTION_BATCH_MAX):
                    async with asyncio.TaskGroup() as group:
                        for key_id, (limit, tokens) in pending[start : start + CORRECTION_BATCH_MAX]:
                            group.create_task(self._call(key_id, 0, 0, limit, 0, tokens))
        except* (RedisError, OSError) as failures:
            _log.debug("limit_corrections_dropped", keys=len(pending), error=type(failures.exceptions[0]).__name__)

    async def close(self) -> None:
        """Send what is left and close the connections."""
        await self.flush()
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()

    async def _spend(self, key_id: uuid.UUID, limits: Limits) -> tuple[Spending, Callable[[int], None] | None]:
        """The decision, and how to correct its tokens later: where they were charged."""
        spending = await self._spend_shared(key_id, limits)
        tokens_per_min = limits.tokens
        if spending is not None:
            if tokens_per_min is None:
                return spending, None
            return spending, lambda tokens: self._note_correction(key_id, tokens_per_min, tokens)
        spending = self._alone.spend(key_id, limits, self._clock.monotonic())
        if tokens_per_min is None:
            return spending, None
        return spending, lambda tokens: self._alone.correct(
            key_id, tokens_per_min=tokens_per_min, tokens=tokens, now=self._clock.monotonic()
        )

    async def _spend_shared(self, key_id: uuid.UUID, limits: Limits) -> Spending | None:
        now = self._clock.monotonic()
        if self._degraded:
            if now < self._probe_at:
                return None
            # One request asks; the others need not wait for the answer.
            self._probe_at = now + PROBE_S
        _, correction = self._corrections.pop(key_id, (0, 0))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._call(
                    key_id, limits.requests or 0, 1, limits.tokens or 0, limits.tokens_cost, correction
                )
        except (RedisError, OSError) as error:
            self._note_failure(error)
            return None
        self._note_success()
        return _spending(limits, answer)

    async def _call(
        self, key_id: uuid.UUID, requests: int, requests_cost: int, tokens: int, tokens_cost: int, correction: int
    ) -> list[int]:
        arguments = (f"{KEY_PREFIX}{key_id}", requests, requests_cost, tokens, tokens_cost, correction)
        try:
            return await self._redis.evalsha(_SCRIPT_SHA, 1, *arguments)
        except NoScriptError:
            return await self._redis.eval(_SCRIPT, 1, *arguments)

    def _note_correction(self, key_id: uuid.UUID, tokens_per_min: int, tokens: int) -> None:
        _, before = self._corrections.get(key_id, (0, 0))
        if key_id in self._corrections or len(self._corrections) < CORRECTIONS_MAX:
            self._corrections[key_id] = (tokens_per_min, before + tokens)

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= FAILURES_MAX and not self._degraded:
            self._degraded = True
            self._probe_at = self._clock.monotonic() + PROBE_S
            _log.warning("limiter_degraded", error=type(error).__name__)

    def _note_success(self) -> None:
        self._failures = 0
        if self._degraded:
            self._degraded = False
            _log.info("limiter_recovered")


def _spending(limits: Limits, answer: list[int]) -> Spending:
    requests_wait_us, tokens_wait_us, requests_full_us, tokens_full_us = answer
    return Spending(
        requests_wait_us / 1e6,
        tokens_wait_us / 1e6,
        LimitState(
            requests=None if limits.requests is None else _window(limits.requests, requests_full_us),
            tokens=None if limits.tokens is None else _window(limits.tokens, tokens_full_us),
        ),
    )


def _window(limit: int, full_in_us: int) -> LimitWindow:
    return window(full_in_us / 1e6, limit=limit, now=0.0)


def _open_client(redis_url: str) -> _Client:
    pool = cast("Any", redis.asyncio.BlockingConnectionPool).from_url(
        redis_url,
        max_connections=CONNECTIONS_MAX,
        timeout=TIMEOUT_S,
        socket_timeout=CORRECTION_TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    return cast("_Client", redis.asyncio.Redis.from_pool(pool))
