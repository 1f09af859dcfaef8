"""What one process knows of a budget, what it holds of it, and what to ask for next. No I/O, no clock of its own.

Time is monotonic seconds. `spare` is what can be taken without asking anybody. While the store is away (`alone`), a
process goes on with what it holds and its part of what was left; an `epoch` numbers these times.
"""

import math
from typing import Final

from gateway.limits import PERIOD_S, LimitWindow, Owner, Scope, spent, wait_s
from gateway.slices import CONTENDED_S, FlowAnswer, FlowAsk, StockAnswer, StockAsk, slice_of

AHEAD_S = 0.3
"""Holds are ahead of need by what recent use takes in so long: a few exchanges."""
IDLE_S = 0.5
"""What is held ahead goes back when nothing was taken for so long."""
FRESH_S = 0.25
"""How long an answer is believed: the shared state changes behind it."""
KNOWN_S = 1.0
"""How long an answer still says something about a store that is away."""
NEAR_S = 0.05
"""What is to be had so soon is waited for."""
MEASURE_S = 0.05
_SLOWING: Final = 0.7
_FOREVER: Final = float("inf")


class _Held:
    """One limit of one owner. `cost` of a request is cut to `limit` where more could never be granted."""

    __slots__ = (
        "_measured_at",
        "active",
        "asked_at",
        "demand",
        "epoch",
        "gates",
        "known_at",
        "largest",
        "limit",
        "name",
        "owner",
        "rate",
        "scope",
        "spare",
        "young_until",
    )  # fmt: skip

    def __init__(self, name: str, owner: Owner, scope: Scope, limit: int, now: float) -> None:
        self.name = name
        self.owner: Owner = owner
        self.scope: Scope = scope
        self.limit = limit
        self.spare = 0
        self.demand = 0
        self.rate = 0.0
        self.largest = 1
        self.active = False
        self.gates = 0
        self.epoch = 0
        self.asked_at = now
        self.known_at = -_FOREVER
        self.young_until = -_FOREVER
        self._measured_at = now

    def ahead(self, now: float) -> int:
        """What to hold ahead of need."""
        if now - self.asked_at > IDLE_S:
            return 0
        return min(slice_of(self.limit), max(math.ceil(self.rate * AHEAD_S), 2 * self.largest))

    def measure(self, now: float) -> None:
        """Note what was taken since the last time: quick to rise, slow to fall."""
        elapsed = now - self._measured_at
        if self.demand:
            self.asked_at = now
        if elapsed < MEASURE_S:
            return
        self.rate = max(self.demand / elapsed, self.rate * _SLOWING)
        self.demand = 0
        self._measured_at = now


class Flow(_Held):
    """A limit per minute. `spare` falls below zero when requests used more than they were admitted with."""

    __slots__ = ("_alone_full_at", "_alone_share", "_returning", "_used_alone_full_at", "full_at", "joining")

    def __init__(self, name: str, owner: Owner, scope: Scope, limit: int, now: float) -> None:
        super().__init__(name, owner, scope, limit, now)
        self.full_at = now
        self.joining = False
        self._returning = 0
        self._alone_share = float(limit)
        self._alone_full_at = now
        self._used_alone_full_at = now

    def change_limit(self, limit: int) -> None:
        """Another limit: what was used of the old one is the same part of the new one."""
        if limit != self.limit:
            self.spare = self.spare * limit // self.limit
            self.limit = limit

    def take(self, cost: int) -> None:
        """Use what is spare."""
        self.spare -= cost
        self.demand += cost
        self.largest = cost or 1

    @property
    def resting(self) -> bool:
        """Whether the store knows everything: nothing is held, owed or on its way."""
        return not (self.spare or self._returning or self.demand or self.epoch)

    # Asking

    def plan(self, now: float, least: int, need: int) -> FlowAsk:
        """What to ask for. `need` more than is spare is needed by those who wait, `least` by the first of them."""
        self.measure(now)
        if self.epoch:
            self._end_alone(now)
        ahead = self.ahead(now)
        if not need and self.spare > ahead:
            self._returning, self.spare = self.spare - ahead, ahead
        owed, spare = max(0, -self.spare), max(0, self.spare)
        return FlowAsk(
            name=self.name,
            limit=self.limit,
            slice_max=max(1, slice_of(self.limit)),
            known_us=max(0, int((self.full_at - now) * 1e6)) if self.joining else 0,
            spent=owed or -self._returning,
            least=max(0, least - spare),
            need=max(0, need - spare),
            want=max(0, ahead - spare),
        )

    def apply(self, ask: FlowAsk, answer: FlowAnswer, sent: float) -> None:
        """Take the answer to `ask`, which was sent at `sent`."""
        self.joining = False
        self._returning = 0
        self.spare += answer.granted + max(0, ask.spent)
        # Counted from when it was asked: what is told to a store that has forgotten never grows on the way.
        self.full_at = sent + answer.full_in_us / 1e6
        self.known_at = sent
        self.young_until = sent + answer.young_us / 1e6 if answer.young_us else -_FOREVER

    def lose(self) -> None:
        """Nobody knows what became of the ask: what it gave back is gone, what it owed is still owed."""
        self._returning = 0

    # Refusing

    def refusal_s(self, cost: int, now: float) -> float:
        """How long to wait before `cost` can be had, as far as is known; 0 when asking may help."""
        if self.spare >= cost or now - self.known_at > FRESH_S:
            return 0.0
        wait = wait_s(self.full_at, limit=self.limit, cost=cost - self.spare, now=now)
        wait = max(wait, self.young_until - now)
        return wait if wait > NEAR_S else 0.0

    def window(self, now: float) -> LimitWindow:
        """What is left, as far as this process knows."""
        if self.epoch:
            left = (PERIOD_S - max(self._alone_full_at - now, 0.0)) * self._alone_share / PERIOD_S
        else:
            left = (PERIOD_S - max(self.full_at - now, 0.0)) * self.limit / PERIOD_S
        remaining = min(max(int(left + self.spare + 1e-3), 0), self.limit)
        return LimitWindow(self.limit, remaining, max(0.0, (self.limit - left - self.spare) * PERIOD_S / self.limit))

    # Alone

    def alone_cost(self, cost: int, processes: int) -> int:
        """A request's cost where this process has only its part of the limit."""
        return min(cost, max(int(_share(self.limit, processes)), self.spare))

    def alone_wait_s(self, cost: int, now: float, epoch: int, processes: int) -> float:
        """0 when `cost` can be had from what is spare or from this process's part of the rate; else when."""
        if self.spare >= cost:
            return 0.0
        if self.epoch != epoch:
            # At once no more than a slice with what is held, and no more than its part of what was left: the others
            # may have taken the rest since. Then its part of the rate.
            share = self._alone_share = _share(self.limit, processes)
            left = min(share, max(1, slice_of(self.limit)) - max(0, self.spare))
            if now - self.known_at <= KNOWN_S:
                left = min(left, share * (PERIOD_S - max(self.full_at - now, 0.0)) / PERIOD_S)
            left = max(left, 0.0)
            self._alone_full_at = spent(now, limit=share, cost=share - left, now=now)
            self._used_alone_full_at = now
            self.epoch = epoch
        return wait_s(self._alone_full_at, limit=self._alone_share, cost=cost - min(0, self.spare), now=now)

    def take_alone(self, cost: int, now: float) -> None:
        """Use `cost` after `alone_wait_s` said 0."""
        if self.spare < cost:
            share, units = self._alone_share, cost - min(0, self.spare)
            self._alone_full_at = spent(self._alone_full_at, limit=share, cost=units, now=now)
            self._used_alone_full_at = spent(self._used_alone_full_at, limit=share, cost=units, now=now)
            self.spare = max(0, self.spare) + cost
        self.take(cost)

    def _end_alone(self, now: float) -> None:
        # What was used alone and has not refilled since is owed to the shared bucket, whosever part it was.
        self.epoch = 0
        self.spare -= math.ceil(max(0.0, self._used_alone_full_at - now) * self._alone_share / PERIOD_S)


class Stock(_Held):
    """A limit of what is out at once: requests running, or nano promised and not yet in the books."""

    __slots__ = (
        "_alone_room",
        "_peak",
        "_peak_before",
        "_reading",
        "contended_until",
        "ends_in_s",
        "free",
        "in_use",
        "others_idle",
        "settled",
        "share",
        "ttl_s",
        "unbooked",
    )  # fmt: skip

    def __init__(
        self, name: str, owner: Owner, scope: Scope, limit: int, now: float, *, ttl_s: float, settled: int | None
    ) -> None:
        super().__init__(name, owner, scope, limit, now)
        self.ttl_s = ttl_s
        self.settled = settled
        self.share = 0
        self.in_use = 0
        self.free = 0
        self.others_idle = 0
        self.contended_until = -_FOREVER
        self.unbooked = 0
        self._reading = 0
        self._alone_room = 0
        self._peak = 0
        self._peak_before = 0

    def change_limit(self, limit: int) -> None:
        """Another limit; what is out stays out."""
        if limit != self.limit:
            self.limit = limit
            self.known_at = -_FOREVER
            self.share, self.spare = self.in_use, 0

    def take(self, cost: int) -> None:
        """Use what is spare."""
        self.spare -= cost
        self.in_use += cost
        self.demand += cost
        self.largest = cost or 1
        self._peak = max(self._peak, self.in_use)

    def give(self, units: int) -> None:
        """Units are in use no more."""
        self.in_use -= units
        self.spare += units
        assert self.in_use >= 0, "given back once"

    @property
    def resting(self) -> bool:
        """Whether nothing is held that would end by itself."""
        return not (self.share or self.in_use or self.demand or self.epoch)

    # The books

    def book(self, units: int) -> None:
        """Units in use are in the books now, and in `settled` the next time that these are read."""
        self.unbooked += units

    def begin_reading(self) -> None:
        """The books are being asked: whatever is in them now will be in the answer."""
        self._reading = self.unbooked

    def end_reading(self, settled: int) -> None:
        """The books' answer."""
        self.settled = max(settled, self.settled or 0)
        units, self._reading = self._reading, 0
        self.unbooked -= units
        self.in_use -= units
        self.share = max(self.in_use, self.share - units)
        self.spare = self.share - self.in_use

    # Asking

    def plan(self, now: float, least: int, need: int) -> StockAsk:
        """What to ask for. Share that is not wanted any more is given up here, before anybody could use it."""
        measured = now - self._measured_at >= MEASURE_S
        self.measure(now)
        self.epoch = 0
        keep = max(self._peak, self._peak_before)
        if now < self.contended_until or now - self.asked_at > IDLE_S:
            keep = self.in_use
        if measured:
            self._peak_before, self._peak = max(self._peak, self._peak_before * 3 // 4), self.in_use
        wanted = self.in_use if now < self.contended_until else max(keep, self.in_use + self.ahead(now))
        held = min(self.share, max(wanted, self.in_use + min(need, self.spare)))
        self.share, self.spare = held, held - self.in_use
        return StockAsk(
            name=self.name,
            limit=self.limit,
            slice_max=max(1, slice_of(self.limit)),
            settled=self.settled or 0,
            held=held,
            used=self.in_use,
            least=max(held, self.in_use + least),
            need=max(held, self.in_use + need),
            want=max(held, wanted, self.in_use + need),
            ttl_ms=int(self.ttl_s * 1000),
        )

    def apply(self, ask: StockAsk, answer: StockAnswer, sent: float) -> None:
        """Take the answer to `ask`, which was sent at `sent`."""
        self.share += answer.share - ask.held
        self.spare = self.share - self.in_use
        self.free = answer.free
        self.others_idle = answer.idle
        self.known_at = sent
        self.young_until = sent + answer.young_us / 1e6 if answer.young_us else -_FOREVER
        if answer.contended:
            self.contended_until = sent + CONTENDED_S

    def lose(self) -> None:
        """Nobody knows what became of the ask: the share is what was held."""

    # Refusing

    def refusal_s(self, cost: int, now: float, until_s: float) -> float:
        """`until_s` when it is known that `cost` cannot be had; 0 when asking, or waiting for others, may help."""
        if self.spare >= cost or now - self.known_at > FRESH_S or self.spare + self.free >= cost:
            return 0.0
        if self.young_until > now:
            return self.young_until - now
        return 0.0 if self.others_idle else until_s

    # Alone

    def alone_refused(self, cost: int, now: float, epoch: int, processes: int) -> bool:
        """Whether `cost` is more than is spare and this process's part of what was left."""
        if self.spare >= cost:
            return False
        if self.epoch != epoch:
            self.epoch = epoch
            room = min(max(1, slice_of(self.limit)), max(0, self.limit - (self.settled or 0) - self.in_use))
            if now - self.known_at <= KNOWN_S:
                room = min(room, max(0, self.free) // processes)
            if self.scope == "concurrency" and not self.share:
                room = max(room, 1)
            self._alone_room = room
        return self.spare + self._alone_room < cost

    def take_alone(self, cost: int) -> None:
        """Use `cost` after `alone_refused` said no."""
        more = max(0, cost - self.spare)
        self._alone_room -= more
        self.share += more
        self.spare += more
        self.take(cost)


Budget = Flow | Stock


def _share(limit: int, processes: int) -> float:
    """One process's part of a rate; never less than one request a minute."""
    return max(limit / processes, 1.0)
