"""How fast one API key may go: requests per minute, tokens per minute, requests at once.

GCRA (the generic cell rate algorithm): one number per limit says when the bucket will be full again. Here is the port,
the arithmetic, and an implementation in memory; `gateway.redis.limiter` shares the numbers between replicas.
Tokens are charged by their upper bound when a request is admitted and corrected when it is over.
"""

import uuid
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, Protocol

import msgspec

from cocoon.clock import Clock
from gateway.errors import GatewayError

PERIOD_S = 60.0
"""Limits are per minute, and a minute's worth may come at once."""
LOCAL_KEYS_MAX = 100_000
"""Keys remembered in memory; the oldest full buckets are forgotten first."""
CONCURRENCY_RETRY_S = 1.0
"""When to ask again while as many requests as allowed are running."""
_ROUNDING = 1e-6
"""A bucket that is full but for a rounding error is full."""

Scope = Literal["requests", "tokens", "concurrency"]


class LimitWindow(msgspec.Struct, frozen=True):
    """One limit after a decision: `remaining` of `limit`; `reset_s` seconds until all of it is back."""

    limit: int
    remaining: int
    reset_s: float


class LimitState(msgspec.Struct, frozen=True):
    """What the `x-ratelimit-*` headers say; None for a limit that the key does not have."""

    requests: LimitWindow | None = None
    tokens: LimitWindow | None = None


class RateLimitedError(GatewayError):
    """The API key is over its limit."""

    code: ClassVar[str] = "rate_limit_exceeded"
    transient: ClassVar[bool] = True

    def __init__(self, *, retry_after_s: float, scope: Scope, state: LimitState) -> None:
        super().__init__(f"the key's limit of {scope} is reached")
        self.retry_after_s = retry_after_s
        self.scope: Scope = scope
        self.state = state


class Permit:
    """Leave to run one request. `release` must be called however the request ends."""

    __slots__ = ("_release", "state")

    def __init__(self, state: LimitState, release: Callable[[int], None] | None = None) -> None:
        self.state = state
        self._release = release

    def release(self, tokens_used: int) -> None:
        """The request is over and used this many tokens (0 when it failed). Never waits; later calls do nothing."""
        release, self._release = self._release, None
        if release is not None:
            release(tokens_used)


class Limiter(Protocol):
    """Decides whether a key may send another request now. None for a limit means there is none."""

    async def acquire(
        self,
        key_id: uuid.UUID,
        *,
        requests_per_min: int | None,
        tokens_per_min: int | None,
        concurrency_max: int | None,
        tokens_estimate: int,
    ) -> Permit:
        """Leave for one request that uses at most `tokens_estimate` tokens.

        An estimate above the whole limit is charged as the whole limit, so that it passes when nothing else runs.

        Raises:
            RateLimitedError: a limit is reached; nothing is counted.
        """
        ...


class Limits(NamedTuple):
    """The per-minute limits of a key and what a request asks of them; a `tokens_cost` above the limit is cut to it."""

    requests: int | None
    tokens: int | None
    tokens_cost: int

    @staticmethod
    def of(requests_per_min: int | None, tokens_per_min: int | None, tokens_estimate: int) -> "Limits":
        """Limits with the estimate cut to what can ever be granted."""
        cost = max(tokens_estimate, 0)
        return Limits(requests_per_min, tokens_per_min, cost if tokens_per_min is None else min(cost, tokens_per_min))


class Spending(NamedTuple):
    """A decision: seconds to wait for each limit (both 0 when admitted), and the state after it."""

    requests_wait_s: float
    tokens_wait_s: float
    state: LimitState

    def require(self) -> LimitState:
        """The state of an admitted request.

        Raises:
            RateLimitedError: it was not admitted.
        """
        if self.requests_wait_s <= 0 and self.tokens_wait_s <= 0:
            return self.state
        scope: Scope = "requests" if self.requests_wait_s >= self.tokens_wait_s else "tokens"
        raise RateLimitedError(
            retry_after_s=max(self.requests_wait_s, self.tokens_wait_s), scope=scope, state=self.state
        )


def wait_s(full_at: float, *, limit: int, cost: int, now: float) -> float:
    """Seconds until `cost` fits under `limit` per minute; 0 when it fits now. `full_at`: when the bucket is full."""
    wait = max(full_at - now, 0.0) + cost * PERIOD_S / limit - PERIOD_S
    return wait if wait > _ROUNDING else 0.0


def spent(full_at: float, *, limit: int, cost: int, now: float) -> float:
    """When the bucket will be full again after spending `cost`; a negative cost gives back."""
    return max(full_at, now) + cost * PERIOD_S / limit


def window(full_at: float, *, limit: int, now: float) -> LimitWindow:
    """What is left at `now`."""
    reset_s = max(full_at - now, 0.0)
    remaining = int((PERIOD_S - reset_s) * limit / PERIOD_S + _ROUNDING)
    return LimitWindow(limit=limit, remaining=max(remaining, 0), reset_s=reset_s)


class Buckets:
    """GCRA in memory: for each key when its two buckets are full again, on a clock the caller reads."""

    def __init__(self, keys_max: int = LOCAL_KEYS_MAX) -> None:
        self._full_at: dict[uuid.UUID, tuple[float, float]] = {}
        self._keys_max = keys_max

    def __len__(self) -> int:
        return len(self._full_at)

    def spend(self, key_id: uuid.UUID, limits: Limits, now: float) -> Spending:
        """Spend one request and its tokens, or neither."""
        requests_at, tokens_at = self._full_at.get(key_id, (now, now))
        requests_wait = tokens_wait = 0.0
        if limits.requests is not None:
            requests_wait = wait_s(requests_at, limit=limits.requests, cost=1, now=now)
        if limits.tokens is not None:
            tokens_wait = wait_s(tokens_at, limit=limits.tokens, cost=limits.tokens_cost, now=now)
        if requests_wait <= 0 and tokens_wait <= 0:
            if limits.requests is not None:
                requests_at = spent(requests_at, limit=limits.requests, cost=1, now=now)
            if limits.tokens is not None:
                tokens_at = spent(tokens_at, limit=limits.tokens, cost=limits.tokens_cost, now=now)
            self._put(key_id, requests_at, tokens_at, now)
        state = LimitState(
            requests=None if limits.requests is None else window(requests_at, limit=limits.requests, now=now),
            tokens=None if limits.tokens is None else window(tokens_at, limit=limits.tokens, now=now),
        )
        return Spending(requests_wait, tokens_wait, state)

    def correct(self, key_id: uuid.UUID, *, tokens_per_min: int, tokens: int, now: float) -> None:
        """Charge `tokens` more after the fact, or give them back when negative."""
        requests_at, tokens_at = self._full_at.get(key_id, (now, now))
        self._put(key_id, requests_at, spent(tokens_at, limit=tokens_per_min, cost=tokens, now=now), now)

    def _put(self, key_id: uuid.UUID, requests_at: float, tokens_at: float, now: float) -> None:
        if len(self._full_at) >= self._keys_max and key_id not in self._full_at:
            # Full buckets say nothing; if all are in use, the longest known one is forgotten.
            idle = [key for key, full_at in self._full_at.items() if max(full_at) <= now]
            for key in idle or [next(iter(self._full_at))]:
                del self._full_at[key]
        self._full_at[key_id] = (requests_at, tokens_at)


class Concurrency:
    """Requests running in this process by key."""

    def __init__(self) -> None:
        self._running: dict[uuid.UUID, int] = {}

    def running(self, key_id: uuid.UUID) -> int:
        """How many run now."""
        return self._running.get(key_id, 0)

    def enter(self, key_id: uuid.UUID, concurrency_max: int) -> None:
        """One more.

        Raises:
            RateLimitedError: as many as allowed are running.
        """
        running = self._running.get(key_id, 0)
        if running >= concurrency_max:
            raise RateLimitedError(retry_after_s=CONCURRENCY_RETRY_S, scope="concurrency", state=LimitState())
        self._running[key_id] = running + 1

    def leave(self, key_id: uuid.UUID) -> None:
        """One less."""
        running = self._running[key_id]
        if running > 1:
            self._running[key_id] = running - 1
        else:
            del self._running[key_id]


class LocalLimiter:
    """A limiter in memory: exact within one process, unknown to others."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets = Buckets()
        self._concurrency = Concurrency()

    async def acquire(
        self,
        key_id: uuid.UUID,
        *,
        requests_per_min: int | None,
        tokens_per_min: int | None,
        concurrency_max: int | None,
        tokens_estimate: int,
    ) -> Permit:
        """See `Limiter.acquire`."""
        if requests_per_min is None and tokens_per_min is None and concurrency_max is None:
            return Permit(LimitState())
        if concurrency_max is not None:
            self._concurrency.enter(key_id, concurrency_max)
        limits = Limits.of(requests_per_min, tokens_per_min, tokens_estimate)
        try:
            state = self._buckets.spend(key_id, limits, self._clock.monotonic()).require()
        except RateLimitedError:
            if concurrency_max is not None:
                self._concurrency.leave(key_id)
            raise

        def release(tokens_used: int) -> None:
            if concurrency_max is not None:
                self._concurrency.leave(key_id)
            if tokens_per_min is not None:
                self._buckets.correct(
                    key_id,
                    tokens_per_min=tokens_per_min,
                    tokens=tokens_used - limits.tokens_cost,
                    now=self._clock.monotonic(),
                )

        return Permit(state, release)
