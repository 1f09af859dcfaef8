"""A `Ledger` that keeps the store off the hot path.

Holds come out of credit leases in memory; settlements go through a journal that is flushed in groups.

`hold` on a warm lease, `void` and the decision of `settle` do no I/O. `settle` returns when its row is durable; what
it did not use is free at once. The journal never drops a row: admission stops (`LedgerUnavailableError`) while rows
and open holds would not fit it, and whatever was sent is sent again, identically, until the store has answered.

What a killed process had leased expires by the store's time, waits in recovery for rows that are late, and then goes
back to the customer. Its holds die with it.
"""

import asyncio
import contextlib
import enum
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

import msgspec
import structlog

from billing import ledger
from billing.lane import Lane
from billing.lease_book import Lease, LeaseBook, LeaseTerms, Planned, Purse, PurseKey
from billing.lease_store import ROWS_MAX, Books, JournalRow, LeaseStore
from billing.ports import (
    Balance,
    BillingError,
    Hold,
    HoldClosedError,
    HoldRequest,
    LedgerUnavailableError,
    Posted,
    Settlement,
    TransferConflictError,
)
from cocoon.clock import Clock
from cocoon.ids import job_day, new_job_id
from cocoon.money import Amount

JOURNAL_ROWS_MAX = 20_000
"""Rows waiting for the store, and the holds that may still become rows."""
JOURNAL_LINGER_S = 0.025
"""How long a group that is not full waits for company; half of the 50 ms that a row may take to be flushed."""
CLOSED_MAX = 10_000
"""Ended jobs that are remembered, so that a call which is made again is answered alike without asking the store."""
CREDIT_S_MAX = 2.0
"""A request that waits for credit gets a clear 503 rather than a long silence."""
TICK_S = 0.5
RECALL_POLL_S = 0.01
RESEND_S_FIRST = 0.02
RESEND_S_MAX = 0.5
FOLLOW_AGAIN_S = 1.0
DRAIN_S_MAX = 4.0
"""How long leaving may take to flush, and again to give the leases back."""

Answer = TypeVar("Answer")

log = structlog.get_logger()


class LedgerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One process's journal and leases, for who operates it. The counts of rows are since the process began."""

    rows_waiting: int
    rows_room: int
    """Requests that can still be admitted before the journal is full."""
    waiting_s: float
    """How long rows have been waiting without an answer of the store."""
    flush_ms: float
    """The last flush, resending included."""
    rows_flushed: int
    rows_quarantined: int
    """Rows that cannot be charged: each is in `refused_usage`."""
    resends: int
    """Batches sent again because the store had not answered."""
    holds: int
    leases: int


class _State(enum.Enum):
    OPEN = enum.auto()
    JOURNALED = enum.auto()
    RELEASED = enum.auto()


class _Job:
    __slots__ = ("answer", "bound", "expires_at", "hold", "lease", "purse", "request", "settlement", "state")

    def __init__(self, purse: Purse, lease: Lease, request: HoldRequest, hold: Hold, expires_at: float) -> None:
        self.purse = purse
        self.lease = lease
        self.request = request
        self.hold = hold
        self.expires_at = expires_at
        self.state = _State.OPEN
        self.bound = 0
        self.settlement: Settlement | None = None
        self.answer: asyncio.Future[Posted] | None = None


class LeasedLedger:
    """A `Ledger` over a `LeaseStore`; an async context manager that owns its tasks.

    Leaving the context flushes the journal and returns every lease, for up to `DRAIN_S_MAX` each.
    """

    def __init__(
        self, books: Books, store: LeaseStore, clock: Clock, rng: random.Random, *, holder: str,
        terms: LeaseTerms | None = None, linger_s: float = JOURNAL_LINGER_S,
    ) -> None:  # fmt: skip
        self._books = books
        self._store = store
        self._clock = clock
        self._rng = rng
        self._holder = holder
        self._terms = terms or LeaseTerms()
        self._book = LeaseBook(holder, self._terms, lambda: new_job_id(clock, rng), self._reserve)
        # By the job's id as an integer: hashing a UUID is a call of Python code, and there are many.
        self._jobs: dict[int, _Job] = {}
        self._closed: dict[int, _Job] = {}
        self._rows: dict[tuple[int, int], _Job] = {}
        self._journal: Lane[JournalRow, Posted] = Lane(
            "journal", self._flush, batch_max=ROWS_MAX, queue_max=JOURNAL_ROWS_MAX, linger_s=linger_s
        )
        self._waiting_since = 0.0
        self._flush_s = 0.0
        self._flushed = self._quarantined = self._resends = 0
        self._wake = asyncio.Event()
        self._admits = False
        self._returning = False
        self._group = asyncio.TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._admits = True
        self._start("journal", self._journal.serve())
        self._start("changes", self._serve_changes())
        self._start("ticks", self._tick_for_ever())
        self._start("recalls", self._follow_recalls())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._admits = False
        self._journal.close()
        for name in ("ticks", "recalls"):
            self._tasks[name].cancel()
        try:
            await self._finish("journal")
            self._returning = True
            self._wake.set()
            await self._finish("changes")
        finally:
            for name, task in self._tasks.items():
                if name in {"journal", "changes"} and not task.done():
                    log.error("ledger_task_cut", task=name, rows=len(self._rows))
                task.cancel()
            await self._group.__aexit__(None, None, None)

    @property
    def backlog(self) -> int:
        """Rows that are not durable yet."""
        return len(self._rows)

    @property
    def facts(self) -> LedgerFacts:
        """How the process stands; costs nothing until it is asked."""
        rows = len(self._rows)
        return LedgerFacts(
            rows_waiting=rows,
            rows_room=max(0, JOURNAL_ROWS_MAX - rows - len(self._jobs)),
            waiting_s=self._clock.monotonic() - self._waiting_since if rows else 0.0,
            flush_ms=1000 * self._flush_s,
            rows_flushed=self._flushed,
            rows_quarantined=self._quarantined,
            resends=self._resends,
            holds=len(self._jobs),
            leases=sum(1 for purse in self._book.purses.values() if purse.lease is not None),
        )

    # The port

    async def hold(self, request: HoldRequest) -> Hold:
        """See `Ledger.hold`. No I/O while the lease is warm."""
        known = self._jobs.get(request.job_id.int) or self._closed.get(request.job_id.int)
        if known is not None:
            return _held_again(known, request)
        ledger.require_sound_hold(request)
        if not self._admits or len(self._jobs) + len(self._rows) >= JOURNAL_ROWS_MAX:
            raise LedgerUnavailableError("the usage journal is full or closed")
        key = (request.customer_id, request.amount_max.asset)
        now = self._clock.monotonic()
        purse = self._book.purses.get(key)
        if purse is not None:
            lease, most = purse.lease, request.amount_max.nano
            if lease is not None and lease.idle >= most and now < lease.admits_until:
                hold = self._reserve(purse, lease, request, most, now)
                if lease.idle < purse.low and now >= purse.quiet_until:
                    self._look_at(purse)
                return hold
        return await self._hold_after_change(key, request, now)

    async def settle(self, settlement: Settlement) -> Posted:
        """See `Ledger.settle`. Returns when the row is durable, however long the store is away."""
        if settlement.job_id.int not in self._jobs:
            ledger.require_sound_settlement(settlement)
            job = self._closed.get(settlement.job_id.int) or self._rows.get((settlement.job_id.int, settlement.attempt))
            if job is None:
                return await self._settled_before(settlement)
            return await _settled_again(job, settlement)
        answer = self.submit(settlement)
        # Nobody may be left to hear of a failure; it was logged.
        answer.add_done_callback(_retrieve)
        return await asyncio.shield(answer)

    def submit(self, settlement: Settlement) -> "asyncio.Future[Posted]":
        """Take a settlement into the journal at once; the future is done when its row is durable. Do not cancel it.

        Raises:
            HoldClosedError: no hold of it is open here; `settle` knows more.
            TransferConflictError, MalformedError, LedgerUnavailableError: as `settle`.
        """
        ledger.require_sound_settlement(settlement)
        job = self._jobs.get(settlement.job_id.int)
        if job is None:
            raise HoldClosedError
        ledger.require_covered(settlement, job.hold)
        lease = job.lease
        answer = self._journal.submit(JournalRow(settlement=settlement, lease_id=lease.lease_id, fence=lease.fence))
        if answer is None:
            raise LedgerUnavailableError("the usage journal is full or closed")
        job.settlement, job.answer = settlement, answer
        if not self._rows:
            self._waiting_since = self._clock.monotonic()
        self._rows[settlement.job_id.int, settlement.attempt] = job
        job.bound = settlement.charge_max.nano
        lease.journaled += job.bound
        self._close(job, _State.JOURNALED)
        return answer

    async def void(self, job_id: uuid.UUID, customer_id: uuid.UUID) -> None:
        """See `Ledger.void`. No I/O: what this process does not remember, it never held or has ended."""
        job_day(job_id)
        job = self._jobs.get(job_id.int)
        if job is not None and job.hold.customer_id == customer_id:
            self._close(job, _State.RELEASED)
            return
        job = self._closed.get(job_id.int)
        if job is None or job.hold.customer_id != customer_id:
            raise HoldClosedError
        if job.settlement is not None and job.settlement.outcome.chargeable:
            raise HoldClosedError

    async def expire_due(self, limit: int) -> int:
        """See `Ledger.expire_due`: this process's holds, then expired leases and older releases' holds of anybody."""
        now = self._clock.monotonic()
        due = sorted((job for job in self._jobs.values() if job.expires_at <= now), key=lambda job: job.expires_at)
        for job in due[:limit]:
            self._close(job, _State.RELEASED)
        expired = len(due[:limit])
        if expired < limit:
            expired += await self._store.sweep(limit - expired, self._terms.recovery_s)
        if expired < limit:
            expired += await self._books.expire_due(limit - expired)
        return expired

    async def deposit(self, transfer_id: uuid.UUID, customer_id: uuid.UUID, amount: Amount) -> None:
        """See `Ledger.deposit`."""
        await self._books.deposit(transfer_id, customer_id, amount)

    async def balance(self, customer_id: uuid.UUID) -> Balance:
        """See `Ledger.balance`: what this process has leased and not reserved counts as available."""
        before = self._idle(customer_id)
        balance = await self._books.balance(customer_id)
        # A change may have been answered in between; the smaller figure never shows credit twice.
        idle = min(before, self._idle(customer_id), balance.held.nano)
        return Balance(
            available=Amount(balance.available.nano + idle),
            held=Amount(balance.held.nano - idle),
            spent=balance.spent,
        )

    # Holds

    def _reserve(self, purse: Purse, lease: Lease, request: HoldRequest, nano: int, now: float) -> Hold:
        lease.reserved += nano
        lease.jobs += 1
        purse.demand += nano
        purse.used_at = now
        hold = Hold(
            job_id=request.job_id,
            customer_id=request.customer_id,
            amount=request.amount_max if nano == request.amount_max.nano else Amount(nano, request.amount_max.asset),
            lease_id=lease.lease_id,
        )
        self._jobs[request.job_id.int] = _Job(purse, lease, request, hold, now + request.ttl_s)
        return hold

    async def _hold_after_change(self, key: PurseKey, request: HoldRequest, now: float) -> Hold:
        waiting = self._book.wait(self._book.open_purse(key, now), request, now)
        self._wake.set()
        answer = waiting.answer
        try:
            async with asyncio.timeout(CREDIT_S_MAX):
                return await answer
        except (TimeoutError, asyncio.CancelledError) as error:
            # The answer may have come in the very turn in which the caller's patience ended.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._close(self._jobs[request.job_id.int], _State.RELEASED)
            answer.cancel()
            if isinstance(error, TimeoutError):
                raise LedgerUnavailableError("no credit could be leased in time") from None
            raise

    def _close(self, job: _Job, state: _State) -> None:
        """The end of a hold: what it reserved is free again, less what is on its way to the store."""
        job.state = state
        job.lease.reserved -= job.hold.amount.nano
        if state is _State.RELEASED:
            job.lease.jobs -= 1
        name = job.hold.job_id.int
        del self._jobs[name]
        self._closed[name] = job
        if len(self._closed) > CLOSED_MAX:
            del self._closed[next(iter(self._closed))]
        if job.purse.waiting:
            self._book.serve(job.purse, self._clock.monotonic(), at_least_minimum=False)

    async def _settled_before(self, settlement: Settlement) -> Posted:
        found = await self._store.find(settlement.job_id, settlement.attempt)
        if found is None:
            raise HoldClosedError
        if found[0] != ledger.body_digest(settlement):
            raise TransferConflictError
        return found[1]

    def _idle(self, customer_id: uuid.UUID) -> int:
        return sum(
            max(0, purse.lease.idle)
            for key, purse in self._book.purses.items()
            if key[0] == customer_id and purse.lease is not None
        )

    # The journal

    async def _flush(self, rows: Sequence[JournalRow]) -> list[Posted | BillingError]:
        sent = self._clock.monotonic()
        try:
            answers = await self._resent("journal", lambda: self._store.flush(rows))
        except BillingError as error:
            if len(rows) > 1:
                raise  # the lane halves the group until the one that cannot be sent stands alone
            answers = list[Posted | BillingError]([error])
        self._waiting_since = self._clock.monotonic()
        self._flush_s = self._waiting_since - sent
        self._flushed += len(rows)
        for row, answer in zip(rows, answers, strict=True):
            job = self._rows.pop((row.settlement.job_id.int, row.settlement.attempt))
            job.lease.journaled -= job.bound
            job.lease.jobs -= 1
            if isinstance(answer, BillingError):
                self._quarantined += 1
                log.error("usage_row_quarantined", job_id=str(row.settlement.job_id), code=answer.code)
            else:
                job.lease.amount -= answer.charge.nano
            if job.purse.waiting:
                self._look_at(job.purse)
        return answers

    async def _resent(self, name: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Send the identical call until the store has answered, or until it is too late."""
        delay_s = RESEND_S_FIRST
        while True:
            try:
                return await call()
            except BillingError as error:
                if not error.transient:
                    raise
                self._resends += 1
                log.info("ledger_batch_resent", lane=name, error=error.code)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RESEND_S_MAX)

    # Leases

    async def _serve_changes(self) -> None:
        while not self._returning:
            await self._wake.wait()
            self._wake.clear()
            while self._book.due and not self._returning:
                await self._change(self._book.plan(self._clock.monotonic()))
        self._book.refuse_waiting(LedgerUnavailableError("the ledger is closed"))
        self._book.due = dict(self._book.purses)
        while self._book.due:
            await self._change(self._book.plan(self._clock.monotonic(), give_everything=True))

    async def _change(self, planned: list[Planned]) -> None:
        if not planned:
            return
        sent = self._clock.monotonic()
        changes = [plan.change for plan in planned]
        try:
            answers = await self._resent("changes", lambda: self._store.change(changes))
        except BillingError as error:
            # Nothing is known of these leases any more. They expire, and nobody loses anything.
            log.exception("leases_abandoned", count=len(planned), code=error.code)
            answers = [type(error)(*error.args)] * len(planned)
        unfinished = self._book.apply(planned, answers, sent=sent, now=self._clock.monotonic())
        if unfinished.recall:
            await self._recall(unfinished.recall)
        if unfinished.again:
            asyncio.get_running_loop().call_later(RECALL_POLL_S, self._look_again, unfinished.again)
        if self._book.due:
            self._wake.set()

    async def _recall(self, purses: list[Purse]) -> None:
        asked = self._clock.monotonic()
        customers = sorted({purse.key[0] for purse in purses})
        recalled_at = await self._resent("recall", lambda: self._store.recall(customers, self._holder))
        for purse in purses:
            self._book.note_asked(purse, recalled_at, asked)

    def _look_at(self, purse: Purse) -> None:
        self._book.due[purse.key] = purse
        self._wake.set()

    def _look_again(self, purses: list[Purse]) -> None:
        for purse in purses:
            self._look_at(purse)

    async def _tick_for_ever(self) -> None:
        last = self._clock.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = self._clock.monotonic()
            self.tick(now, max(now - last, TICK_S))
            last = now

    def tick(self, now: float, elapsed_s: float) -> None:
        """Look for leases to renew, to grow with the recent rate or to give back."""
        self._book.tick(now, elapsed_s)
        if self._book.due:
            self._wake.set()

    async def _follow_recalls(self) -> None:
        while True:
            try:
                await self._store.follow_recalls(self._hear_recall)
            except BillingError as error:
                log.warning("recall_listener_lost", error=error.code)
            await asyncio.sleep(FOLLOW_AGAIN_S)

    def _hear_recall(self, customer_id: uuid.UUID, holder: str) -> None:
        if holder != self._holder and self._book.note_recall(customer_id, self._clock.monotonic()):
            self._wake.set()

    # Tasks

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[name] = self._group.create_task(work, name=f"ledger {name}")

    async def _finish(self, name: str) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([self._tasks[name]], timeout=DRAIN_S_MAX)


def _held_again(job: _Job, request: HoldRequest) -> Hold:
    if job.request != request:
        raise TransferConflictError
    if job.state is not _State.OPEN:
        raise HoldClosedError
    return job.hold


async def _settled_again(job: _Job, settlement: Settlement) -> Posted:
    if job.settlement is None or job.answer is None or job.settlement.attempt != settlement.attempt:
        raise HoldClosedError
    if job.settlement != settlement:
        raise TransferConflictError
    return await asyncio.shield(job.answer)


def _retrieve(answer: "asyncio.Future[Posted]") -> None:
    if not answer.cancelled():
        answer.exception()
