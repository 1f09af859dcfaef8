"""One process's leases: what is reserved, what is idle, and what to ask of the store next. No I/O, no awaiting.

`billing.leases` drives it. Amounts inside are integer nano of the purse's asset; times are monotonic seconds of the
holder's clock, measured from *before* a request was sent, so that the holder always stops before the store does.
"""

import asyncio
import datetime as dt
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from billing.ceilings import Withheld
from billing.lease_store import CHANGES_MAX, LeaseAnswer, LeaseChange, LeaseLostError
from billing.ports import BillingError, Hold, HoldRequest, InsufficientCreditError, LedgerUnavailableError
from cocoon.money import Asset

PURSES_MAX = 100_000
"""Customers with a lease in one process."""
WAITING_MAX = 10_000
"""Requests of one customer that wait for credit at once."""
SMOOTHING = 0.3
"""Weight of the last tick in the moving average of what requests reserve per second."""
QUIET_S = 0.25
"""How long a purse that got less ahead than it asked for does not ask again without need."""
EXCESS_FACTOR = 4
"""An idle lease this many times its target gives the rest back."""

PurseKey = tuple[uuid.UUID, Asset]


class LeaseTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How leases are sized and how long they live; seconds, and nano for the headroom.

    A lease aims at idle credit for `ahead_s` of requests at the recent rate, between the two bounds. Below
    `headroom_min_nano` of surplus nothing is leased ahead. Admission stops `margin_s` before the store could expire
    the lease. What an expired lease had left stays in recovery for `recovery_s`: at least the longest request plus
    the longest settlement.
    """

    ttl_s: float = 60.0
    margin_s: float = 5.0
    idle_s: float = 10.0
    ahead_s: float = 2.0
    headroom_min_nano: int = 1_000_000
    headroom_max_nano: int = 10_000_000_000
    contended_s: float = 1.0
    recall_s_max: float = 0.5
    recovery_s: float = 900.0


class Lease:
    """Credit of one customer in this process. `journaled` bounds what is on its way to the store.

    `jobs` counts the holds and the rows that depend on the lease: also those that cost nothing need it to be there.
    """

    __slots__ = (
        "admits_until", "amount", "fence", "jobs", "journaled", "key", "lease_id", "lost", "renews_at", "reserved",
        "returning", "seq",
    )  # fmt: skip

    def __init__(self, key: PurseKey, lease_id: uuid.UUID) -> None:
        self.key = key
        self.lease_id = lease_id
        self.fence = 0
        self.amount = 0
        self.reserved = 0
        self.journaled = 0
        self.jobs = 0
        self.returning = 0
        self.seq = 0
        self.admits_until = float("-inf")
        self.renews_at = float("-inf")
        self.lost = False

    @property
    def idle(self) -> int:
        """What a new request may have."""
        return self.amount - self.reserved - self.journaled - self.returning

    @property
    def in_use(self) -> bool:
        """Whether anything still depends on the lease."""
        return self.jobs > 0


class Waiting:
    """A request that asked for more than its lease had idle."""

    __slots__ = ("answer", "arrived", "request")

    def __init__(self, request: HoldRequest, arrived: float) -> None:
        self.request = request
        self.arrived = arrived
        self.answer: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()


class Purse:
    """A customer as this process sees it."""

    __slots__ = (
        "asked_at", "contended_until", "demand", "key", "lease", "low", "quiet_until", "rate", "recalled",
        "recalled_at", "target", "used_at", "waiting",
    )  # fmt: skip

    def __init__(self, key: PurseKey, now: float) -> None:
        self.key = key
        self.lease: Lease | None = None
        self.waiting: deque[Waiting] = deque()
        self.recalled = False
        self.recalled_at: dt.datetime | None = None
        self.asked_at = float("-inf")
        self.contended_until = float("-inf")
        self.quiet_until = float("-inf")
        self.demand = 0
        self.rate = 0.0
        self.target = 0
        self.low = 0
        self.used_at = now


class Planned(NamedTuple):
    """A change, and what it is about."""

    purse: Purse
    lease: Lease
    change: LeaseChange


class Unfinished(NamedTuple):
    """What answers left to do: customers to recall, and purses to look at again in a moment."""

    recall: list[Purse]
    again: list[Purse]


Reserve = Callable[[Purse, Lease, HoldRequest, int, float], Hold]
"""Takes credit of a lease for a request, at a moment; the owner of the jobs."""


class LeaseBook:
    """Every purse of this process. `due` are those that `plan` should look at."""

    def __init__(self, holder: str, terms: LeaseTerms, new_lease_id: Callable[[], uuid.UUID], reserve: Reserve) -> None:
        self._holder = holder
        self._terms = terms
        self._new_lease_id = new_lease_id
        self._reserve = reserve
        self.purses: dict[PurseKey, Purse] = {}
        self.due: dict[PurseKey, Purse] = {}

    def open_purse(self, key: PurseKey, now: float) -> Purse:
        """The purse of a customer.

        Raises:
            LedgerUnavailableError: there are `PURSES_MAX` already.
        """
        purse = self.purses.get(key)
        if purse is None:
            if len(self.purses) >= PURSES_MAX:
                raise LedgerUnavailableError("too many customers at once")
            purse = self.purses[key] = Purse(key, now)
            purse.target = self._terms.headroom_min_nano
            purse.low = purse.target // 2
        return purse

    def wait(self, purse: Purse, request: HoldRequest, now: float) -> Waiting:
        """Queue a request that the lease cannot cover.

        Raises:
            LedgerUnavailableError: `WAITING_MAX` requests of this customer wait already.
        """
        if len(purse.waiting) >= WAITING_MAX:
            raise LedgerUnavailableError("too many requests wait for credit")
        waiting = Waiting(request, now)
        purse.waiting.append(waiting)
        self.due[purse.key] = purse
        return waiting

    def note_recall(self, customer_id: uuid.UUID, now: float) -> bool:
        """Another process is short of this customer's credit; whether anything is to be answered."""
        heard = False
        for asset in Asset:
            purse = self.purses.get((customer_id, asset))
            if purse is not None and purse.lease is not None:
                purse.recalled = heard = True
                purse.contended_until = now + self._terms.contended_s
                self.due[purse.key] = purse
        return heard

    def tick(self, now: float, elapsed_s: float) -> None:
        """Follow the recent rate, and find what must be renewed, given back or forgotten."""
        terms = self._terms
        for purse in list(self.purses.values()):
            purse.rate += SMOOTHING * (purse.demand / elapsed_s - purse.rate)
            purse.demand = 0
            purse.target = max(terms.headroom_min_nano, min(terms.headroom_max_nano, int(purse.rate * terms.ahead_s)))
            purse.low = purse.target // 2
            lease = purse.lease
            if lease is None and not purse.waiting:
                del self.purses[purse.key]
                self.due.pop(purse.key, None)
            elif (
                lease is None
                or now >= lease.renews_at
                or now - purse.used_at >= terms.idle_s
                or lease.idle > EXCESS_FACTOR * purse.target
            ):
                self.due[purse.key] = purse

    def plan(self, now: float, *, give_everything: bool = False) -> list[Planned]:
        """Changes for the purses that are due, at most `CHANGES_MAX`; the rest stay due."""
        planned: list[Planned] = []
        while self.due and len(planned) < CHANGES_MAX:
            _, purse = self.due.popitem()
            change = self._plan_one(purse, now, give_everything=give_everything)
            if change is not None:
                planned.append(change)
        return planned

    def _plan_one(self, purse: Purse, now: float, *, give_everything: bool) -> Planned | None:
        terms = self._terms
        recalled, purse.recalled = purse.recalled, False
        while purse.waiting and purse.waiting[0].answer.done():
            purse.waiting.popleft()
        wanted = [waiting.request for waiting in purse.waiting if not waiting.answer.done()]
        lease = purse.lease
        if lease is None:
            if not wanted:
                return None
            lease = purse.lease = Lease(purse.key, self._new_lease_id())
        unused = not wanted and (give_everything or now - purse.used_at >= terms.idle_s)
        spare, give = lease.idle, 0
        if recalled or unused:
            give = max(0, spare)
        elif not wanted and spare > EXCESS_FACTOR * purse.target:
            give = spare - purse.target
        base = spare - give
        need_min = max(0, min((request.amount_min.nano for request in wanted), default=0) - base)
        need = max(need_min, sum(request.amount_max.nano for request in wanted) - base)
        quiet = give > 0 or unused or now < purse.contended_until or now < purse.quiet_until
        ahead = 0 if quiet or (not wanted and base >= purse.low) else max(0, purse.target - max(0, base))
        if not (wanted or recalled or give or ahead or now >= lease.renews_at or (unused and not lease.in_use)):
            return None
        lease.seq += 1
        lease.returning = give
        close = unused and not lease.in_use
        if close:
            purse.lease = None
        return Planned(
            purse,
            lease,
            LeaseChange(
                lease_id=lease.lease_id,
                customer_id=purse.key[0],
                asset=purse.key[1],
                holder=self._holder,
                seq=lease.seq,
                ttl_s=terms.ttl_s,
                give_back_nano=give,
                need_min_nano=need_min,
                need_nano=max(0, need),
                headroom_nano=ahead,
                headroom_min_nano=terms.headroom_min_nano,
                close=close,
                answers_recall=recalled,
                recalled_at=purse.recalled_at,
            ),
        )

    def apply(
        self, planned: Sequence[Planned], answers: Sequence[LeaseAnswer | BillingError], *, sent: float, now: float
    ) -> Unfinished:
        """Take in the answers to changes that were first sent at `sent`."""
        unfinished = Unfinished([], [])
        for plan, answer in zip(planned, answers, strict=True):
            if isinstance(answer, LeaseAnswer):
                self._take_in(plan, answer, sent)
                self.serve(plan.purse, now, at_least_minimum=True)
                if plan.purse.waiting:
                    self._judge_waiting(plan.purse, answer, unfinished, sent=sent, now=now)
            else:
                self.lose(plan.purse, plan.lease)
                if not isinstance(answer, LeaseLostError):
                    self._fail(plan.purse, answer)
            if plan.purse.waiting:
                self.due.setdefault(plan.purse.key, plan.purse)
            else:
                plan.purse.recalled_at = None
        for purse in unfinished.again:
            self.due.pop(purse.key, None)
        return unfinished

    def _take_in(self, plan: Planned, answer: LeaseAnswer, sent: float) -> None:
        purse, lease, change = plan
        lease.amount += answer.delta_nano
        lease.returning = 0
        if answer.short and not answer.fence:
            # Nothing was opened.
            self.lose(purse, lease)
            return
        lease.fence = answer.fence
        lease.admits_until = sent + self._terms.ttl_s - self._terms.margin_s
        lease.renews_at = sent + self._terms.ttl_s / 2
        if answer.delta_nano + change.give_back_nano < change.need_nano + change.headroom_nano:
            purse.quiet_until = sent + QUIET_S

    def _judge_waiting(
        self, purse: Purse, answer: LeaseAnswer, unfinished: Unfinished, *, sent: float, now: float
    ) -> None:
        if not answer.short:
            return
        if answer.alone:
            # What came after the question, or after the recall, has not been refused yet.
            asked = sent if purse.recalled_at is None else min(sent, purse.asked_at)
            self._refuse(purse, asked, answer.withheld)
        elif now - purse.asked_at > self._terms.recall_s_max:
            self._refuse(purse, purse.asked_at, answer.withheld)
        if not purse.waiting or (answer.alone and purse.recalled_at is None):
            return
        if purse.waiting[-1].arrived > purse.asked_at:
            unfinished.recall.append(purse)
        else:
            unfinished.again.append(purse)

    def note_asked(self, purse: Purse, recalled_at: dt.datetime, asked: float) -> None:
        """A recall was sent at `asked`; the store's time then was `recalled_at`."""
        purse.recalled_at = recalled_at
        purse.asked_at = asked
        purse.contended_until = asked + self._terms.contended_s
        self.due[purse.key] = purse

    def serve(self, purse: Purse, now: float, *, at_least_minimum: bool) -> None:
        """Give waiting requests what is idle, in order: their maximum, or what there is above their minimum."""
        lease = purse.lease
        if lease is None or now >= lease.admits_until:
            return
        left: deque[Waiting] = deque()
        for waiting in purse.waiting:
            if waiting.answer.done():
                continue
            most = waiting.request.amount_max.nano
            least = waiting.request.amount_min.nano if at_least_minimum else most
            if lease.idle >= least:
                waiting.answer.set_result(self._reserve(purse, lease, waiting.request, min(lease.idle, most), now))
            else:
                left.append(waiting)
        purse.waiting = left

    def lose(self, purse: Purse, lease: Lease) -> None:
        """The lease is gone; requests that it admitted end under its fence all the same."""
        lease.lost = True
        lease.returning = 0
        lease.admits_until = float("-inf")
        if purse.lease is lease:
            purse.lease = None

    def _refuse(self, purse: Purse, asked: float, withheld: Withheld | None) -> None:
        left: deque[Waiting] = deque()
        for waiting in purse.waiting:
            if waiting.arrived > asked:
                left.append(waiting)
            elif not waiting.answer.done():
                lacking = InsufficientCreditError(f"{waiting.request.amount_min} needed")
                waiting.answer.set_exception(lacking if withheld is None else withheld.error())
        purse.waiting = left

    def refuse_waiting(self, error: BillingError) -> None:
        """Nobody who waits will be served any more."""
        for purse in self.purses.values():
            self._fail(purse, error)

    def _fail(self, purse: Purse, error: BillingError) -> None:
        waiting, purse.waiting = purse.waiting, deque()
        for one in waiting:
            if not one.answer.done():
                one.answer.set_exception(type(error)(*error.args))
