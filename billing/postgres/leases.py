"""Credit leases in Postgres: changes by their holders, recalls, and the sweep of what expired."""

import asyncio
import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from billing.ceilings import Withheld
from billing.lease_store import (
    CHANGES_MAX,
    ROWS_MAX,
    JournalRow,
    LeaseAnswer,
    LeaseChange,
    LeaseLostError,
    lease_grant,
)
from billing.ledger import AccountKind
from billing.ports import (
    BillingError,
    LedgerUnavailableError,
    Posted,
    RecordRefusedError,
    UnknownCustomerError,
)
from billing.postgres.ceilings import Room, read_rooms
from billing.postgres.entries import SQL, Entries
from billing.postgres.journal import open_payables, post_rows, record_refused
from billing.postgres.lease_rows import LEASE_SQL, LeaseRow, read_lease
from billing.postgres.pool import Connection, DuplicateRecordError, Pool, acquired, connect, transaction, translated
from cocoon.ids import job_day
from cocoon.money import Amount, Asset

RECALL_CHANNEL = "cocoon_recall"
HEARTBEAT_S = 5.0
"""How often a quiet listening connection is asked whether it still lives."""
ANSWER_S_MAX = 5.0
SWEEP_MAX = 500
KEEP_CLOSED_S = 7 * 24 * 3600
"""How long closed leases can be looked up."""
KNOWN_WORKERS_MAX = 100_000
DUPLICATE_TRIES_MAX = 5
"""Somebody else writing the same rows in the same moment makes ours start over, and then find them posted."""


class PostgresLeases:
    """A `LeaseStore` on a pool; recalls are heard on a connection of its own to `database_url`."""

    def __init__(self, pool: Pool, database_url: str) -> None:
        self._pool = pool
        self._database_url = database_url
        self._known_workers: set[tuple[uuid.UUID, Asset]] = set()

    async def change(self, changes: Sequence[LeaseChange]) -> list[LeaseAnswer | BillingError]:
        """See `LeaseStore.change`."""
        assert len(changes) <= CHANGES_MAX, "the caller bounds a batch"
        async with transaction(self._pool) as connection:
            return await _change(connection, changes)

    async def flush(self, rows: Sequence[JournalRow]) -> list[Posted | BillingError]:
        """See `LeaseStore.flush`."""
        assert len(rows) <= ROWS_MAX, "the caller bounds a batch"
        for tries_left in reversed(range(DUPLICATE_TRIES_MAX)):
            try:
                async with transaction(self._pool) as connection:
                    opened = await open_payables(connection, rows, self._known_workers)
                    answers = await post_rows(connection, rows)
            except RecordRefusedError as error:
                if not isinstance(error, DuplicateRecordError) or not tries_left:
                    return await self._flush_halves(rows, error)
            else:
                if len(self._known_workers) + len(opened) > KNOWN_WORKERS_MAX:
                    self._known_workers.clear()
                self._known_workers |= opened
                return answers
        raise AssertionError("the last try returns or raises")

    async def _flush_halves(self, rows: Sequence[JournalRow], error: BillingError) -> list[Posted | BillingError]:
        """A row that breaks a constraint takes its transaction down: find it, and set it aside alone."""
        if len(rows) > 1:
            half = len(rows) // 2
            return [*await self.flush(rows[:half]), *await self.flush(rows[half:])]
        async with transaction(self._pool) as connection:
            await record_refused(connection, [(rows[0], error)])
        return [error]

    async def find(self, job_id: uuid.UUID, attempt: int) -> tuple[bytes, Posted] | None:
        """See `LeaseStore.find`."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(LEASE_SQL["read_posted"], job_day(job_id), job_id, attempt)
        if row is None:
            return None
        asset = Asset(row["asset"])
        return row["body_digest"], Posted(
            charge=Amount(row["charge_nano"], asset),
            worker_share=Amount(row["share_nano"], asset),
            fee=Amount(row["fee_nano"], asset),
        )

    async def recall(self, customer_ids: Sequence[uuid.UUID], holder: str) -> dt.datetime:
        """See `LeaseStore.recall`. Never inside a transaction that posts: NOTIFY serialises commits."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(LEASE_SQL["recall"], list(customer_ids), holder)
        assert row is not None, "an aggregate has a row"
        recalled_at: dt.datetime = row["recalled_at"]
        return recalled_at

    async def follow_recalls(self, heard: Callable[[uuid.UUID, str], None]) -> None:
        """See `LeaseStore.follow_recalls`."""

        def note(_connection: object, _process_id: int, _channel: str, payload: str) -> None:
            customer, _, holder = payload.partition(" ")
            heard(uuid.UUID(customer), holder)

        gone = asyncio.Event()
        async with connect(self._database_url, application="cocoon-recalls") as connection:
            connection.add_termination_listener(lambda _: gone.set())
            with translated():
                await connection.add_listener(RECALL_CHANNEL, note)
                while not await _within(HEARTBEAT_S, gone):
                    async with asyncio.timeout(ANSWER_S_MAX):
                        await connection.fetchval(LEASE_SQL["heartbeat"])
        raise LedgerUnavailableError("the recall listener's connection is gone")

    async def sweep(self, limit: int, recovery_s: float) -> int:
        """See `LeaseStore.sweep`."""
        async with transaction(self._pool) as connection:
            swept = await _sweep(connection, min(limit, SWEEP_MAX), recovery_s)
        async with acquired(self._pool) as connection:
            await connection.execute(LEASE_SQL["forget_leases"], float(KEEP_CLOSED_S), SWEEP_MAX)
        return swept


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class _Purse(msgspec.Struct):
    """A customer's two accounts while they are locked, and what its ceiling leaves."""

    available_id: int = 0
    leased_id: int = 0
    available: int = 0
    room: Room | None = None
    granted: int = 0

    @property
    def spendable(self) -> int:
        """What a change may be granted."""
        return self.available if self.room is None else min(self.available, self.room.nano - self.granted)

    def take(self, delta: int) -> None:
        """A change's lease grew by `delta`."""
        self.available -= delta
        self.granted += delta

    def withheld(self, change: LeaseChange) -> Withheld | None:
        """Why a change is short, if not for want of balance."""
        if self.room is None or self.available + change.give_back_nano < change.need_min_nano:
            return None
        return self.room.withheld(change.need_min_nano + self.granted - change.give_back_nano)


class _Decided(NamedTuple):
    change: LeaseChange
    row: LeaseRow
    delta: int
    is_new: bool


async def _change(connection: Connection, changes: Sequence[LeaseChange]) -> list[LeaseAnswer | BillingError]:
    locked = await connection.fetch(LEASE_SQL["lock_leases"], [change.lease_id for change in changes])
    rows = {row["lease_id"]: read_lease(row) for row in locked}
    purses = await _lock_purses(connection, {change.customer_id for change in changes})
    today: dt.date = await connection.fetchval(LEASE_SQL["read_today"])
    entries = Entries()
    decided: list[_Decided] = []
    answers: list[LeaseAnswer | BillingError] = []
    for change in changes:
        try:
            answers.append(_decide(change, rows.get(change.lease_id), purses, today, entries, decided))
        except BillingError as error:
            answers.append(error)
    if decided:
        if entries:
            await entries.write(connection)
        await _write(connection, decided)
    fences = await _open(connection, [item for item in decided if item.is_new])
    others = await _others(connection, changes, answers)
    return [
        msgspec.structs.replace(
            answer,
            fence=fences.get(change.lease_id, answer.fence),
            alone=answer.short and change.lease_id not in others,
        )
        if isinstance(answer, LeaseAnswer)
        else answer
        for change, answer in zip(changes, answers, strict=True)
    ]


def _decide(
    change: LeaseChange, row: LeaseRow | None, purses: dict[tuple[uuid.UUID, Asset], _Purse], today: dt.date,
    entries: Entries, decided: list[_Decided],
) -> LeaseAnswer:  # fmt: skip
    if row is not None and row.change_seq == change.seq:
        # Sent again: it did then what it says it did.
        purse = purses.get((change.customer_id, change.asset))
        short = row.change_delta + change.give_back_nano < change.need_min_nano
        withheld = purse.withheld(change) if short and purse is not None else None
        return LeaseAnswer(fence=row.fence, delta_nano=row.change_delta, short=short, withheld=withheld)
    purse = purses.get((change.customer_id, change.asset))
    if purse is None:
        raise UnknownCustomerError
    if (row is None) != (change.seq == 1) or (row is not None and row.state != "active"):
        raise LeaseLostError
    grant = lease_grant(purse.spendable + change.give_back_nano, change)
    short = grant < change.need_min_nano
    withheld = purse.withheld(change) if short else None
    if row is None:
        if short:
            return LeaseAnswer(fence=0, delta_nano=0, short=True, withheld=withheld)
        row = _new_row(change, purse, today)
        decided.append(_Decided(change, row, grant, is_new=True))
        row.roll_over(entries, consumed=0, amount=grant)
        purse.take(grant)
        return LeaseAnswer(fence=0, delta_nano=grant)
    delta = grant - change.give_back_nano
    if row.amount + delta < 0:
        raise LeaseLostError("more was given back than the lease has")
    if delta:
        row.roll_over(entries, consumed=0, amount=row.amount + delta)
    purse.take(delta)
    decided.append(_Decided(change, row, delta, is_new=False))
    return LeaseAnswer(fence=row.fence, delta_nano=delta, short=short, withheld=withheld)


def _new_row(change: LeaseChange, purse: _Purse, today: dt.date) -> LeaseRow:
    return LeaseRow(
        lease_id=change.lease_id,
        customer_id=change.customer_id,
        asset=change.asset.value,
        fence=0,
        state="active",
        available_id=purse.available_id,
        leased_id=purse.leased_id,
        amount=0,
        version=0,
        pending_day=None,
        pending_id=None,
        change_seq=change.seq,
        change_delta=0,
        today=today,
    )


async def _lock_purses(connection: Connection, customers: set[uuid.UUID]) -> dict[tuple[uuid.UUID, Asset], _Purse]:
    kinds = [AccountKind.CUSTOMER_AVAILABLE.value, AccountKind.CUSTOMER_LEASED.value]
    purses: dict[tuple[uuid.UUID, Asset], _Purse] = {}
    for row in await connection.fetch(SQL["lock_accounts"], [], list(customers), kinds, []):
        purse = purses.setdefault((row["owner"], Asset(row["asset"])), _Purse())
        if row["kind"] == AccountKind.CUSTOMER_AVAILABLE:
            purse.available_id, purse.available = row["id"], int(row["available"])
        else:
            purse.leased_id = row["id"]
    for key, room in (await read_rooms(connection, customers)).items():
        if key in purses:
            purses[key].room = room
    return purses


async def _write(connection: Connection, decided: list[_Decided]) -> None:
    changed = [item for item in decided if not item.is_new]
    if changed:
        await connection.execute(
            LEASE_SQL["update_leases"],
            [item.row.lease_id for item in changed],
            [item.row.amount for item in changed],
            [item.row.version for item in changed],
            [item.row.pending_day for item in changed],
            [item.row.pending_id for item in changed],
            [item.change.seq for item in changed],
            [item.delta for item in changed],
            [item.change.ttl_s for item in changed],
            [item.change.answers_recall for item in changed],
            [item.change.close for item in changed],
        )


async def _open(connection: Connection, opened: list[_Decided]) -> dict[uuid.UUID, int]:
    if not opened:
        return {}
    rows = await connection.fetch(
        LEASE_SQL["insert_leases"],
        [item.row.lease_id for item in opened],
        [item.row.customer_id for item in opened],
        [item.row.asset for item in opened],
        [item.change.holder for item in opened],
        [item.row.available_id for item in opened],
        [item.row.leased_id for item in opened],
        [item.row.amount for item in opened],
        [item.row.pending_day for item in opened],
        [item.row.pending_id for item in opened],
        [item.change.seq for item in opened],
        [item.delta for item in opened],
        [item.change.ttl_s for item in opened],
    )
    return {row["lease_id"]: row["fence"] for row in rows}


async def _others(
    connection: Connection, changes: Sequence[LeaseChange], answers: Sequence[LeaseAnswer | BillingError]
) -> set[uuid.UUID]:
    """The leases that were short and are not alone."""
    short = [
        change
        for change, answer in zip(changes, answers, strict=True)
        if isinstance(answer, LeaseAnswer) and answer.short
    ]
    if not short:
        return set()
    rows = await connection.fetch(
        LEASE_SQL["find_other_leases"],
        [change.lease_id for change in short],
        [change.customer_id for change in short],
        [change.asset.value for change in short],
        [change.recalled_at for change in short],
    )
    return {row["lease_id"] for row in rows}


async def _sweep(connection: Connection, limit: int, recovery_s: float) -> int:
    leases = [read_lease(row) for row in await connection.fetch(LEASE_SQL["lock_due_leases"], limit)]
    if not leases:
        return 0
    owners = sorted({(lease.customer_id, lease.asset) for lease in leases})
    await connection.execute(
        SQL["open_accounts"],
        [AccountKind.LEASE_RECOVERY.value for _ in owners],
        [owner for owner, _ in owners],
        [asset for _, asset in owners],
    )
    kinds = [kind.value for kind in _SWEPT]
    accounts = await connection.fetch(SQL["lock_accounts"], [], [owner for owner, _ in owners], kinds, [])
    recoveries = {
        (row["owner"], row["asset"]): row["id"] for row in accounts if row["kind"] == AccountKind.LEASE_RECOVERY
    }
    entries = Entries()
    recovering: list[uuid.UUID] = []
    closing: list[uuid.UUID] = []
    for lease in leases:
        recovery_id = recoveries[lease.customer_id, lease.asset]
        if lease.state == "active" and lease.amount:
            lease.expire(entries, recovery_id)
            recovering.append(lease.lease_id)
        else:
            lease.return_rest(entries, recovery_id)
            closing.append(lease.lease_id)
    if entries:
        await entries.write(connection)
    await connection.execute(LEASE_SQL["expire_leases"], recovering, recovery_s)
    await connection.execute(LEASE_SQL["close_leases"], closing)
    return len(leases)


_SWEPT = (AccountKind.CUSTOMER_AVAILABLE, AccountKind.CUSTOMER_LEASED, AccountKind.LEASE_RECOVERY)
