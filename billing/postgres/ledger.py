"""The ledger in Postgres.

Holds and ends (settlements, releases) of one process travel in two lanes, each one transaction at a time; deposits
and sweeps have transactions of their own. Whatever is sent can be sent again: after a lost connection, a COMMIT in
doubt included, the identical batch is resent and its ids make the second time a replay.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeVar

import structlog

from billing import ledger
from billing.lane import Lane
from billing.ledger import AccountKind, Code, Release
from billing.ports import (
    Balance,
    BillingError,
    Hold,
    HoldRequest,
    LedgerUnavailableError,
    Posted,
    Settlement,
    UnknownCustomerError,
)
from billing.postgres.adjustments import move, was_moved
from billing.postgres.ends import End, expire_holds, post_ends
from billing.postgres.entries import SQL
from billing.postgres.holds import post_holds
from billing.postgres.pool import Connection, DuplicateRecordError, Pool, acquired, transaction
from cocoon.ids import job_day
from cocoon.money import Amount, Asset

BATCH_MAX = 256
"""Members of one transaction: ~5 ms of this process' time, so that the event loop is never held long."""
QUEUE_MAX = 20_000
HOLD_RESEND_S_MAX = 1.0
"""A request that waits for its hold gets a clear 503 rather than a long silence."""
END_RESEND_S_MAX = 5.0
RESEND_DELAY_S_FIRST = 0.02
RESEND_DELAY_S_MAX = 0.5
DRAIN_S_MAX = 4.0
EXPIRE_BATCH_MAX = 1000
KNOWN_WORKERS_MAX = 100_000

Answer = TypeVar("Answer")

log = structlog.get_logger()


class PostgresLedger:
    """A `Ledger` on a pool; an async context manager that owns its lanes.

    Leaving the context finishes what waits, for up to `DRAIN_S_MAX`. Deposits, balances and sweeps work outside of it
    too. A hold whose caller is cancelled is released again. An end is posted even when its caller is gone, because the
    work it pays for was done.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._known_workers: set[tuple[uuid.UUID, Asset]] = set()
        self._holds: Lane[HoldRequest, Hold] = Lane(
            "hold", self._run_holds, batch_max=BATCH_MAX, queue_max=QUEUE_MAX, vanished=self._release
        )
        self._ends: Lane[End, Posted | None] = Lane("end", self._run_ends, batch_max=BATCH_MAX, queue_max=QUEUE_MAX)

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._tasks = [
            self._group.create_task(self._serve_holds(), name="hold lane"),
            self._group.create_task(self._ends.serve(), name="end lane"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._holds.close()
        try:
            await asyncio.wait(self._tasks, timeout=DRAIN_S_MAX)
        finally:
            for task in self._tasks:
                if not task.done():
                    log.error("ledger_lane_cut", task=task.get_name())
                    task.cancel()
            await self._group.__aexit__(None, None, None)

    async def hold(self, request: HoldRequest) -> Hold:
        """See `Ledger.hold`."""
        ledger.require_sound_hold(request)
        return await self._holds.ask(request)

    async def settle(self, settlement: Settlement) -> Posted:
        """See `Ledger.settle`."""
        ledger.require_sound_settlement(settlement)
        posted = await self._ends.ask(settlement)
        assert posted is not None, "a settlement is answered with what it posted"
        return posted

    async def void(self, job_id: uuid.UUID, customer_id: uuid.UUID) -> None:
        """See `Ledger.void`."""
        job_day(job_id)
        await self._ends.ask(Release(job_id=job_id, customer_id=customer_id))

    async def expire_due(self, limit: int) -> int:
        """See `Ledger.expire_due`; at most `EXPIRE_BATCH_MAX` at a time."""

        async def transact(connection: Connection) -> int:
            return await expire_holds(connection, min(limit, EXPIRE_BATCH_MAX))

        return await self._resent(transact, END_RESEND_S_MAX)

    async def deposit(self, transfer_id: uuid.UUID, customer_id: uuid.UUID, amount: Amount) -> None:
        """See `Ledger.deposit`."""
        assert amount.nano > 0, "a deposit adds something"
        job_day(transfer_id)

        async def transact(connection: Connection) -> None:
            if not await was_moved(connection, transfer_id, Code.DEPOSIT, customer_id, amount):
                await move(connection, transfer_id, Code.DEPOSIT, customer_id, amount)

        await self._resent(transact, END_RESEND_S_MAX)

    async def balance(self, customer_id: uuid.UUID) -> Balance:
        """See `Ledger.balance`."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(SQL["read_balance"], customer_id, Asset.TON.value)
        if row is None:
            raise UnknownCustomerError
        return Balance(
            available=Amount(int(row["available"])), held=Amount(int(row["held"])), spent=Amount(int(row["spent"]))
        )

    async def _serve_holds(self) -> None:
        try:
            await self._holds.serve()
        finally:
            # Last, because a vanished hold is released through the other lane.
            self._ends.close()

    def _release(self, request: HoldRequest) -> None:
        if not self._ends.leave(Release(job_id=request.job_id, customer_id=request.customer_id)):
            log.warning("vanished_hold_left_to_expire", job_id=str(request.job_id))

    async def _run_holds(self, requests: Sequence[HoldRequest]) -> list[Hold | BillingError]:
        return await self._resent(lambda connection: post_holds(connection, requests), HOLD_RESEND_S_MAX)

    async def _run_ends(self, ends: Sequence[End]) -> list[Posted | BillingError | None]:
        await self._open_payables(ends)
        return await self._resent(lambda connection: post_ends(connection, ends), END_RESEND_S_MAX)

    async def _resent(self, transact: Callable[[Connection], Awaitable[Answer]], seconds_max: float) -> Answer:
        """Run one transaction, again and again while the store is away or somebody else writes the same ids."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds_max
        delay_s = RESEND_DELAY_S_FIRST
        while True:
            try:
                async with transaction(self._pool) as connection:
                    return await transact(connection)
            except (LedgerUnavailableError, DuplicateRecordError) as error:
                if loop.time() + delay_s > deadline:
                    raise
                log.info("ledger_batch_resent", error=error.code)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RESEND_DELAY_S_MAX)

    async def _open_payables(self, ends: Sequence[End]) -> None:
        """Accounts of workers that are paid for the first time: before the batch, which only locks what exists."""
        new = {
            (end.worker_id, end.price.asset)
            for end in ends
            if isinstance(end, Settlement) and end.worker_id is not None
        } - self._known_workers
        if not new:
            return

        async def transact(connection: Connection) -> None:
            await _open_accounts(connection, [(AccountKind.WORKER_PAYABLE, owner, asset) for owner, asset in new])

        await self._resent(transact, END_RESEND_S_MAX)
        if len(self._known_workers) + len(new) > KNOWN_WORKERS_MAX:
            self._known_workers.clear()
        self._known_workers |= new


async def _open_accounts(connection: Connection, wanted: Sequence[tuple[AccountKind, uuid.UUID, Asset]]) -> None:
    await connection.execute(
        SQL["open_accounts"],
        [kind.value for kind, _, _ in wanted],
        [owner for _, owner, _ in wanted],
        [asset.value for _, _, asset in wanted],
    )
