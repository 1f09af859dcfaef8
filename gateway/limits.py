"""How fast and how far a key or its project may go: the limits' values, their errors, and the port that enforces them.

Requests and tokens per minute are GCRA (the generic cell rate algorithm): one number says when the bucket will be full
again. Requests at once and spend per UTC day and month are stocks: so much, and no more, is out at a time.
`gateway.limiter` enforces them from slices that all processes share.
"""

import uuid
from typing import ClassVar, Literal, Protocol

import msgspec

from gateway.auth import Principal
from gateway.errors import GatewayError

PERIOD_S = 60.0
"""Limits are per minute, and a minute's worth may come at once."""
CONCURRENCY_RETRY_S = 1.0
"""When to ask again while as many requests as allowed are running."""
_ROUNDING = 1e-6
"""A bucket that is full but for a rounding error is full."""

Scope = Literal["requests", "tokens", "concurrency", "spend_day", "spend_month"]
Owner = Literal["key", "project"]


class LimitWindow(msgspec.Struct, frozen=True):
    """One limit after a decision: `remaining` of `limit`; `reset_s` seconds until all of it is back."""

    limit: int
    remaining: int
    reset_s: float


class LimitState(msgspec.Struct, frozen=True):
    """What the `x-ratelimit-*` headers say: the tightest of key and project; None where neither has a limit."""

    requests: LimitWindow | None = None
    tokens: LimitWindow | None = None


class RateLimitedError(GatewayError):
    """The key or its project is over a limit."""

    code: ClassVar[str] = "rate_limit_exceeded"
    transient: ClassVar[bool] = True

    def __init__(self, message: str, *, retry_after_s: float, scope: Scope, state: LimitState) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.scope: Scope = scope
        self.state = state


class SpendLimitError(RateLimitedError):
    """The key or its project may spend no more before the day or month is over; `retry_after_s` lasts until then."""

    code: ClassVar[str] = "insufficient_quota"


class LimitsUnknownError(GatewayError):
    """Whether the spend limit has room for this request cannot be found out right now. Try again shortly."""

    code: ClassVar[str] = "limits_unavailable"
    transient: ClassVar[bool] = True


class Permit(Protocol):
    """Leave to run one request. `release` must be called however the request ends."""

    @property
    def state(self) -> LimitState:
        """The limits as they are when first asked."""
        ...

    def release(self, tokens_used: int, charge_nano: int = 0) -> None:
        """The request is over: tokens it used, and the most that it will be charged. Never waits; once only."""
        ...

    def settled(self) -> None:
        """The charge is durable, or it will never come: the books know from here on. Never waits; once only."""
        ...


class Limiter(Protocol):
    """Decides whether a key may send another request now."""

    async def acquire(self, principal: Principal, *, job_id: uuid.UUID, tokens: int, nano: int) -> Permit:
        """Leave for one request that uses at most `tokens` tokens and costs at most `nano` nano.

        More tokens than a whole limit count as the whole limit, so that such a request passes when nothing else runs.
        The job's UTC day is the day that it spends on.

        Raises:
            RateLimitedError: a limit is reached; nothing is counted.
            LimitsUnknownError: there is a spend limit, and neither the books nor the other processes can be asked.
        """
        ...


def wait_s(full_at: float, *, limit: float, cost: float, now: float) -> float:
    """Seconds until `cost` fits under `limit` per minute; 0 when it fits now. `full_at`: when the bucket is full."""
    wait = max(full_at - now, 0.0) + cost * PERIOD_S / limit - PERIOD_S
    return wait if wait > _ROUNDING else 0.0


def spent(full_at: float, *, limit: float, cost: float, now: float) -> float:
    """When the bucket will be full again after spending `cost`; a negative cost gives back."""
    return max(full_at, now) + cost * PERIOD_S / limit
