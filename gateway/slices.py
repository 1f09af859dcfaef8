"""The port to what all processes share of a limit: what a process asks for, and what it is answered.

A **flow** is a rate: a GCRA bucket that refills. What a process takes is spent there and then; it gives back what it
has not used, and what a dead process had refills by itself. A **stock** is a quantity that is out and comes back:
requests running, nano promised. Each process's share of it is registered with an end, so that a dead process's share
returns; all of a share counts as used. `settled` is what is gone for good: the period's spend in the books.

`gateway.memory_slices` and `gateway.redis.slices` implement it; one suite tests both.
"""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from gateway.errors import GatewayError

SLICE_PARTS = 20
"""A slice, the most that a process holds of a budget ahead of need, is this part of the limit."""
EXTRA_PARTS = 4
"""...and never more than this part of what is left, so that near the end nothing is held but what is needed."""
GRACE_S = 2.0
"""How long a store that has forgotten everything gives out no more than one slice of a budget in all: by then every
process has said what it knows."""
CONTENDED_S = 1.0
"""How long processes keep no share of a stock beyond need after one of them came short."""
LIVE_S = 10.0
"""A process that has not asked for so long does not count any more."""


class SlicesUnavailableError(GatewayError):
    """The store cannot be reached; what was asked may or may not have happened."""

    code: ClassVar[str] = "limits_unavailable"
    transient: ClassVar[bool] = True


class FlowAsk(NamedTuple):
    """Units of a rate. Times are microseconds from now.

    `known_us`: until when the bucket is not full, as far as this process knows (told to a store that has forgotten).
    `spent`: units used beyond what was granted; negative gives back. Of `need`, at least `least` or nothing;
    up to `want` on top if there is plenty. At most `slice_max` while the store is young.
    """

    name: str
    limit: int
    slice_max: int
    known_us: int
    spent: int
    least: int
    need: int
    want: int


class FlowAnswer(NamedTuple):
    """Units granted, microseconds until the bucket is full, and for how long the store is too young to give more."""

    granted: int
    full_in_us: int
    young_us: int


class StockAsk(NamedTuple):
    """A share of a stock. All but `limit`, `slice_max` and `settled` are totals of this process.

    `held` is kept whatever happens (it was granted before, or is in use). At least `least` above it or nothing, `need`
    if possible, up to `want` if there is plenty. `used` of it is in use. It ends after `ttl_ms` unless it is renewed.
    """

    name: str
    limit: int
    slice_max: int
    settled: int
    held: int
    used: int
    least: int
    need: int
    want: int
    ttl_ms: int


class StockAnswer(NamedTuple):
    """The share now; what is left for everybody (negative when more is out than allowed); what others hold idle."""

    share: int
    free: int
    idle: int
    contended: bool
    young_us: int


Ask = FlowAsk | StockAsk
Answer = FlowAnswer | StockAnswer


class Exchanged(NamedTuple):
    """`answers` are None, and nothing was done, when the store is not of the `generation` that was quoted."""

    generation: str
    processes: int
    answers: list[Answer] | None


class SliceStore(Protocol):
    """One process's access to the store."""

    async def exchange(self, generation: str, asks: Sequence[Ask]) -> Exchanged:
        """Answer asks in order; also says that this process lives. `generation` names the store's memory.

        Raises:
            SlicesUnavailableError: it is not known what happened.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class SpendAsk(NamedTuple):
    """A key's or a project's charges on these UTC days, both included."""

    owner_id: uuid.UUID
    customer_id: uuid.UUID
    first_day: dt.date
    last_day: dt.date


class SpendUnavailableError(GatewayError):
    """The books cannot be read."""

    code: ClassVar[str] = "limits_unavailable"
    transient: ClassVar[bool] = True


class SpendBooks(Protocol):
    """What was charged so far: the truth that outlives every process and the store."""

    async def spent(self, asks: Sequence[SpendAsk]) -> list[int]:
        """Nano charged, in order; whatever was durable when this was called is in it.

        Raises:
            SpendUnavailableError: nobody knows.
        """
        ...


def slice_of(limit: int) -> int:
    """One slice of a limit; 0 for limits too small to be cut."""
    return limit // SLICE_PARTS
