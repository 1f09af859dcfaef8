"""The last step: money moves exactly once, however the request ended.

`Settler.submit` is synchronous, so an exchange hands over its end even while it is being cancelled. A ledger with a
journal takes it in within the same step. What does not go that way runs in tasks of its own that no request can
cancel: each retries until the ledger has answered, because every ledger method is idempotent by the job's id. A charge
that the ledger refuses for good releases its hold; a hold that is never resolved (the process was killed) expires in
the ledger.
"""

import asyncio
import functools
import uuid
from collections.abc import Callable, Coroutine
from typing import Protocol, Self, TypeVar

import structlog

from billing.ports import BillingError, HoldClosedError, Ledger, Posted, Settlement
from cocoon.clock import Clock
from gateway.errors import OverloadedError

SETTLE_S_MAX = 300.0
"""How long a settlement is retried; holds live this much longer than the longest request."""
PENDING_MAX = 20_000
"""Settlements waiting for the ledger; beyond it no request is admitted, so that none is lost."""
_BACKOFF_S_FIRST = 0.05
_BACKOFF_S_MAX = 2.0

log = structlog.get_logger()
T = TypeVar("T")
Done = Callable[[Posted | None], None]


class Journal(Protocol):
    """A ledger that takes settlements in without being waited for."""

    def submit(self, settlement: Settlement) -> "asyncio.Future[Posted]":
        """The future is done when the settlement is durable. Raises BillingError: it was not taken in."""
        ...


class Settler:
    """Runs settlements; an async context manager that owns its tasks."""

    def __init__(self, ledger: Ledger, clock: Clock, journal: Journal | None = None) -> None:
        self._ledger = ledger
        self._journal = journal
        self._clock = clock
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        # What `drain` did not see settled is given up: its holds expire.
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    @property
    def pending(self) -> int:
        """Settlements that the ledger has not answered yet."""
        return self._pending

    def require_room(self) -> None:
        """Refuse new work while too much is unsettled.

        Raises:
            OverloadedError: the ledger has been away for too long.
        """
        if self._pending >= PENDING_MAX:
            raise OverloadedError("too many settlements are waiting for the ledger")

    def submit(self, settlement: Settlement, done: Done) -> None:
        """Settle an attempt; `done` hears what was posted, or None when the ledger refused."""
        if self._journal is not None and not self._closed:
            try:
                answer = self._journal.submit(settlement)
            except Exception:  # noqa: BLE001  the end of a request must not fail; the ledger says it again below
                log.info("settlement_not_journaled", job_id=str(settlement.job_id))
            else:
                self._pending += 1
                self._idle.clear()
                answer.add_done_callback(functools.partial(self._journaled, settlement, done))
                return
        self._start(self._settle(settlement, done))

    def submit_void(self, job_id: uuid.UUID, customer_id: uuid.UUID) -> None:
        """Release a hold that paid for nothing."""
        self._start(self._void(job_id, customer_id))

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything is settled; False when time ran out."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.error("settlements_abandoned", pending=self._pending)
            return False
        return True

    def _journaled(self, settlement: Settlement, done: Done, answer: "asyncio.Future[Posted]") -> None:
        if answer.cancelled() or answer.exception() is not None:
            # Asked again, the ledger gives the same answer, and that way knows what to do about it.
            self._start(self._settle(settlement, done))
        else:
            _tell(settlement, done, answer.result())
        self._end()

    async def _settle(self, settlement: Settlement, done: Done) -> None:
        posted: Posted | None = None
        try:
            posted = await self._posted(settlement)
        finally:
            self._end()
        _tell(settlement, done, posted)

    async def _posted(self, settlement: Settlement) -> Posted | None:
        job_id = str(settlement.job_id)
        try:
            return await self._retried(lambda: self._ledger.settle(settlement))
        except BillingError as error:
            log.error("settlement_refused", job_id=job_id, code=error.code, outcome=settlement.outcome.value)
            if error.transient:
                return None
        except Exception:
            log.exception("settlement_failed", job_id=job_id)
        # What cannot be charged must not be kept from the customer until it expires.
        await self._release(settlement.job_id, settlement.customer_id)
        return None

    async def _void(self, job_id: uuid.UUID, customer_id: uuid.UUID) -> None:
        try:
            await self._release(job_id, customer_id)
        finally:
            self._end()

    async def _release(self, job_id: uuid.UUID, customer_id: uuid.UUID) -> None:
        try:
            await self._retried(lambda: self._ledger.void(job_id, customer_id))
        except HoldClosedError:
            log.info("hold_was_closed", job_id=str(job_id))
        except BillingError as error:
            log.warning("void_refused", job_id=str(job_id), code=error.code)
        except Exception:
            log.exception("void_failed", job_id=str(job_id))

    async def _retried(self, call: Callable[[], Coroutine[None, None, T]]) -> T:
        deadline = self._clock.monotonic() + SETTLE_S_MAX
        backoff_s = _BACKOFF_S_FIRST
        while True:
            try:
                return await call()
            except BillingError as error:
                if not error.transient or self._clock.monotonic() + backoff_s > deadline:
                    raise
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_S_MAX)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        if self._closed:
            log.error("settlements_abandoned", pending=1)
            work.close()
            return
        self._pending += 1
        self._idle.clear()
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self) -> None:
        self._pending -= 1
        if not self._pending:
            self._idle.set()


def _tell(settlement: Settlement, done: Done, posted: Posted | None) -> None:
    try:
        done(posted)
    except Exception:  # an exception that left a settlement's task would cancel everybody else's
        log.exception("settled_and_not_told", job_id=str(settlement.job_id))
