"""What all processes share of the limits, in memory: for one process, and the model that Redis must agree with."""

import math
from collections.abc import Sequence

from cocoon.clock import Clock
from gateway.limits import PERIOD_S, spent
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
    SpendAsk,
    StockAnswer,
    StockAsk,
)

_ROUNDING = 1e-6


class _Bucket:
    def __init__(self) -> None:
        self.full_at = -math.inf
        self.given = 0


class _Shares:
    def __init__(self) -> None:
        self.of: dict[str, tuple[int, int, float]] = {}
        self.settled = 0
        self.given = 0
        self.contended_until = -math.inf


class SharedLimits:
    """The store itself. `forget` is what a restart does to one without a disk."""

    def __init__(self, clock: Clock, *, grace_s: float = GRACE_S) -> None:
        self._clock = clock
        self._grace_s = grace_s
        self._generations = 0
        self.forget()
        self._born = -math.inf

    def forget(self) -> None:
        """Lose everything."""
        self._generations += 1
        self._born = self._clock.monotonic()
        self._buckets: dict[str, _Bucket] = {}
        self._stocks: dict[str, _Shares] = {}
        self._live: dict[str, float] = {}

    def exchange(self, process: str, generation: str, asks: Sequence[Ask]) -> Exchanged:
        """See `gateway.slices.SliceStore.exchange`."""
        now = self._clock.monotonic()
        self._live[process] = now + LIVE_S
        self._live = {name: end for name, end in self._live.items() if end > now}
        named = str(self._generations)
        if generation != named:
            return Exchanged(named, len(self._live), None)
        young_s = max(0.0, self._born + self._grace_s - now)
        answers: list[Answer] = [
            self._flow(ask, now, young_s) if isinstance(ask, FlowAsk) else self._stock(process, ask, now, young_s)
            for ask in asks
        ]
        return Exchanged(named, len(self._live), answers)

    def _flow(self, ask: FlowAsk, now: float, young_s: float) -> FlowAnswer:
        bucket = self._buckets.setdefault(ask.name, _Bucket())
        full_at = max(bucket.full_at, now, now + ask.known_us / 1e6)
        full_at = max(spent(full_at, limit=ask.limit, cost=ask.spent, now=now), now)
        room = math.floor((PERIOD_S - full_at + now) * ask.limit / PERIOD_S + _ROUNDING)
        held_back = 0.0
        if young_s and room > ask.slice_max - bucket.given:
            room = ask.slice_max - bucket.given
            held_back = young_s if room < ask.least else 0.0
        granted = 0
        if ask.need and room >= max(ask.least, 1):
            granted = min(ask.need, room)
        if granted == ask.need:
            granted += _extra(ask.want, room - granted)
        bucket.full_at = spent(full_at, limit=ask.limit, cost=granted, now=now)
        bucket.given = bucket.given + granted if young_s else 0
        return FlowAnswer(granted, math.ceil((bucket.full_at - now) * 1e6), math.ceil(held_back * 1e6))

    def _stock(self, process: str, ask: StockAsk, now: float, young_s: float) -> StockAnswer:
        stock = self._stocks.setdefault(ask.name, _Shares())
        stock.of = {name: share for name, share in stock.of.items() if share[2] > now and name != process}
        stock.settled = max(stock.settled, ask.settled)
        others = sum(share for share, _, _ in stock.of.values())
        room = ask.limit - stock.settled - others
        held_back = 0.0
        if young_s and room > ask.held + ask.slice_max - stock.given:
            room = ask.held + ask.slice_max - stock.given
            held_back = young_s if room < ask.least else 0.0
        share = ask.held
        if ask.need > ask.held and room >= ask.least:
            share = max(min(ask.need, room), ask.held)
        if share >= ask.need:
            share += _extra(ask.want - share, room - share)
        else:
            stock.contended_until = now + CONTENDED_S
        if young_s:
            stock.given += share - ask.held
        if share:
            stock.of[process] = (share, ask.used, now + ask.ttl_ms / 1000)
        return StockAnswer(
            share=share,
            free=ask.limit - stock.settled - others - share,
            idle=sum(held - used for name, (held, used, _) in stock.of.items() if name != process),
            contended=stock.contended_until > now,
            young_us=math.ceil(held_back * 1e6),
        )


class InMemorySlices:
    """One process's access to limits in memory."""

    def __init__(self, shared: SharedLimits, process: str = "only") -> None:
        self._shared = shared
        self._process = process

    async def exchange(self, generation: str, asks: Sequence[Ask]) -> Exchanged:
        """See `gateway.slices.SliceStore.exchange`."""
        return self._shared.exchange(self._process, generation, asks)

    async def close(self) -> None:
        """See `gateway.slices.SliceStore.close`."""


class InMemorySpend:
    """Books that a test or a benchmark keeps itself."""

    def __init__(self) -> None:
        self.nano: dict[SpendAsk, int] = {}

    async def spent(self, asks: Sequence[SpendAsk]) -> list[int]:
        """See `gateway.slices.SpendBooks.spent`."""
        return [self.nano.get(ask, 0) for ask in asks]


def _extra(want: int, left: int) -> int:
    """Of what is left beyond need, a part."""
    return max(min(want, left // EXTRA_PARTS), 0)
