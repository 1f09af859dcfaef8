"""One flush of the usage journal in one transaction: rows, what their leases pay, shares, fees and rounding.

Each lease that pays rolls over once: its pending transfer is posted with what the flush consumed, and the rest is
reserved again. What flows on from the customers' leased accounts is aggregated, one leg for each account and day, so
that the hot accounts (rounding, revenue) change once in a flush.
"""

import asyncio
import datetime as dt
import hashlib
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from billing import ledger
from billing.lease_store import JournalRow, LeaseActiveError, LeaseExhaustedError, LeaseLostError
from billing.ledger import AccountKind, Code, Numerators, Phase
from billing.ports import BillingError, HoldClosedError, Posted, Settlement, TransferConflictError
from billing.postgres.entries import SQL, Entries, Transfer
from billing.postgres.lease_rows import LEASE_SQL, LeaseRow, read_lease
from billing.postgres.pool import Connection, Record
from cocoon.ids import job_day
from cocoon.money import Amount, Asset

SLICE_MAX = 100
"""Rows that are judged or encoded in one turn of the event loop: about a millisecond."""
_NETWORK = (AccountKind.ROUNDING, AccountKind.NETWORK_REVENUE)
_OWNED = (AccountKind.CUSTOMER_LEASED, AccountKind.CUSTOMER_AVAILABLE, AccountKind.LEASE_RECOVERY)


class _Known(NamedTuple):
    digest: bytes
    posted: Posted


class _Accepted(NamedTuple):
    settlement: Settlement
    lease_id: uuid.UUID
    digest: bytes
    posted: Posted
    day: dt.date


class _Legs:
    """What one day's rows move on from the customers' leased accounts, by account."""

    def __init__(self) -> None:
        self.charges: defaultdict[int, int] = defaultdict(int)
        self.shares: defaultdict[int, int] = defaultdict(int)
        self.fees: defaultdict[int, int] = defaultdict(int)
        self.members: list[tuple[uuid.UUID, int]] = []


class _Network(NamedTuple):
    """The network's own accounts of one asset."""

    rounding: int
    revenue: int


async def open_payables(
    connection: Connection, rows: Sequence[JournalRow], known: set[tuple[uuid.UUID, Asset]]
) -> set[tuple[uuid.UUID, Asset]]:
    """Open the accounts of workers that are paid for the first time; returns those that were not `known`."""
    new = {
        (row.settlement.worker_id, row.settlement.price.asset) for row in rows if row.settlement.worker_id is not None
    } - known
    if new:
        ordered = sorted(new)
        await connection.execute(
            SQL["open_accounts"],
            [AccountKind.WORKER_PAYABLE.value for _ in ordered],
            [owner for owner, _ in ordered],
            [asset.value for _, asset in ordered],
        )
    return new


async def post_rows(connection: Connection, rows: Sequence[JournalRow]) -> list[Posted | BillingError]:
    """Post what can be posted, and record the rest; one answer for each row, in order."""
    leases = await connection.fetch(LEASE_SQL["lock_leases"], list({row.lease_id for row in rows}))
    known = await _read_known(connection, rows)
    batch = _Batch({row["lease_id"]: read_lease(row) for row in leases}, known, await _lock_accounts(connection, rows))
    answers: list[Posted | BillingError] = []
    for number, row in enumerate(rows):
        if number and not number % SLICE_MAX:
            await asyncio.sleep(0)
        try:
            answers.append(batch.post(row))
        except BillingError as error:
            answers.append(error)
    if batch.accepted:
        await batch.write(connection)
    refused = [
        (row, answer)
        for row, answer in zip(rows, answers, strict=True)
        if isinstance(answer, BillingError) and not isinstance(answer, LeaseActiveError)
    ]
    if refused:
        await record_refused(connection, refused)
    return answers


async def record_refused(connection: Connection, refused: Sequence[tuple[JournalRow, BillingError]]) -> None:
    """Keep what could not be charged, with the reason."""
    bodies = [_body(row.settlement) for row, _ in refused]
    await connection.execute(
        LEASE_SQL["insert_refused"],
        [row.settlement.job_id for row, _ in refused],
        [row.settlement.attempt for row, _ in refused],
        [row.settlement.customer_id for row, _ in refused],
        [row.lease_id for row, _ in refused],
        [error.code for _, error in refused],
        [hashlib.sha256(body).digest() for body in bodies],
        bodies,
    )


class _Batch:
    """Posts rows one after the other against locked leases and accounts; `write` writes it all down."""

    def __init__(
        self, leases: dict[uuid.UUID, LeaseRow], known: dict[uuid.UUID, dict[int, _Known]], accounts: list[Record]
    ) -> None:
        self._leases = leases
        self._known = known
        ids = {(row["kind"], row["owner"], row["asset"]): row["id"] for row in accounts}
        self._network = {
            asset: _Network(
                rounding=ids[AccountKind.ROUNDING.value, None, asset.value],
                revenue=ids[AccountKind.NETWORK_REVENUE.value, None, asset.value],
            )
            for asset in Asset
        }
        self._workers = {
            (owner, asset): account
            for (kind, owner, asset), account in ids.items()
            if kind == AccountKind.WORKER_PAYABLE
        }
        self._recoveries = {
            (owner, asset): account
            for (kind, owner, asset), account in ids.items()
            if kind == AccountKind.LEASE_RECOVERY
        }
        self._numerators: dict[int, int] = {row["id"]: int(row["numerator"]) for row in accounts}
        self._before = dict(self._numerators)
        self._consumed: defaultdict[uuid.UUID, int] = defaultdict(int)
        self._legs: defaultdict[tuple[dt.date, Asset], _Legs] = defaultdict(_Legs)
        self._entries = Entries()
        self.accepted: list[_Accepted] = []

    def post(self, row: JournalRow) -> Posted:
        settlement = row.settlement
        digest = ledger.body_digest(settlement)
        attempts = self._known.setdefault(settlement.job_id, {})
        known = attempts.get(settlement.attempt)
        if known is not None:
            if known.digest != digest:
                raise TransferConflictError
            return known.posted
        if attempts:
            raise HoldClosedError
        lease, day = self._paying_lease(row), job_day(settlement.job_id)
        posted = self._charge(settlement, lease, day)
        attempts[settlement.attempt] = _Known(digest, posted)
        self.accepted.append(_Accepted(settlement, row.lease_id, digest, posted, day))
        return posted

    async def write(self, connection: Connection) -> None:
        paying = [self._leases[lease_id] for lease_id, consumed in self._consumed.items() if consumed]
        for lease in paying:
            self._pay(lease, self._consumed[lease.lease_id])
        self._add_legs()
        if self._entries:
            await self._entries.write(connection)
        rows = [_usage_row(item) for item in self.accepted]
        for first in range(0, len(rows), SLICE_MAX):
            columns = (list(column) for column in zip(*rows[first : first + SLICE_MAX], strict=True))
            await connection.execute(LEASE_SQL["insert_journal"], *columns)
            await asyncio.sleep(0)
        if paying:
            await connection.execute(
                LEASE_SQL["consume_leases"],
                [lease.lease_id for lease in paying],
                [lease.amount for lease in paying],
                [lease.version for lease in paying],
                [lease.pending_day for lease in paying],
                [lease.pending_id for lease in paying],
            )

    def _paying_lease(self, row: JournalRow) -> LeaseRow:
        lease = self._leases.get(row.lease_id)
        if (
            lease is None
            or lease.state == "closed"
            or lease.customer_id != row.settlement.customer_id
            or lease.asset != row.settlement.price.asset.value
        ):
            raise LeaseLostError
        if row.fence is None and lease.state == "active":
            raise LeaseActiveError
        if row.fence is not None and row.fence != lease.fence:
            raise LeaseLostError
        return lease

    def _charge(self, settlement: Settlement, lease: LeaseRow, day: dt.date) -> Posted:
        asset = settlement.price.asset
        network, numerators = self._network[asset], self._numerators
        worker = None
        if settlement.worker_id is not None:
            worker = self._workers[settlement.worker_id, asset.value]
        charge = ledger.charge(
            settlement,
            Numerators(
                customer=numerators[lease.leased_id],
                worker=numerators[worker] if worker is not None else 0,
                revenue=numerators[network.revenue],
            ),
        )
        posted = charge.posted
        if self._consumed[lease.lease_id] + posted.charge.nano > lease.amount:
            raise LeaseExhaustedError
        self._consumed[lease.lease_id] += posted.charge.nano
        numerators[lease.leased_id] = charge.after.customer
        numerators[network.revenue] = charge.after.revenue
        legs = self._legs[day, asset]
        legs.members.append((settlement.job_id, settlement.attempt))
        legs.charges[lease.leased_id] += posted.charge.nano
        legs.fees[network.revenue] += posted.fee.nano
        if worker is not None:
            numerators[worker] = charge.after.worker
            legs.shares[worker] += posted.worker_share.nano
        return posted

    def _pay(self, lease: LeaseRow, consumed: int) -> None:
        if lease.state == "active":
            lease.roll_over(self._entries, consumed=consumed, amount=lease.amount - consumed)
        else:
            lease.draw(self._entries, self._recoveries[lease.customer_id, lease.asset], consumed)

    def _add_legs(self) -> None:
        for (day, asset), legs in self._legs.items():
            rounding = self._network[asset].rounding
            batch = ledger.batch_digest(legs.members)
            for leased, nano in legs.charges.items():
                self._add_leg(day, batch, Code.CHARGE, leased, rounding, nano)
            for worker, nano in legs.shares.items():
                self._add_leg(day, batch, Code.SHARE, rounding, worker, nano)
            for revenue, nano in legs.fees.items():
                self._add_leg(day, batch, Code.FEE, rounding, revenue, nano)
        for account_id, after in self._numerators.items():
            self._entries.add_numerator(account_id, after - self._before[account_id])

    def _add_leg(self, day: dt.date, batch: bytes, code: Code, debit: int, credit: int, nano: int) -> None:
        if nano:
            # One side of a leg is the rounding account: the other one tells legs of the same code apart.
            party = debit if code is Code.CHARGE else credit
            self._entries.add(
                Transfer(
                    day=day,
                    id=ledger.leg_id(batch, code, party),
                    phase=Phase.SINGLE,
                    code=code,
                    debit=debit,
                    credit=credit,
                    amount=nano,
                )
            )


async def _read_known(connection: Connection, rows: Sequence[JournalRow]) -> dict[uuid.UUID, dict[int, _Known]]:
    assets = {row.settlement.job_id: row.settlement.price.asset for row in rows}
    # A job id begins with its time.
    first, last = min(assets, key=_as_int), max(assets, key=_as_int)
    known: defaultdict[uuid.UUID, dict[int, _Known]] = defaultdict(dict)
    for row in await connection.fetch(SQL["read_usage"], job_day(first), job_day(last), list(assets)):
        asset = assets[row["job_id"]]
        known[row["job_id"]][row["attempt"]] = _Known(
            row["body_digest"],
            Posted(
                charge=Amount(row["charge_nano"], asset),
                worker_share=Amount(row["share_nano"], asset),
                fee=Amount(row["fee_nano"], asset),
            ),
        )
    return dict(known)


async def _lock_accounts(connection: Connection, rows: Sequence[JournalRow]) -> list[Record]:
    owners = {row.settlement.customer_id for row in rows}
    owners |= {row.settlement.worker_id for row in rows if row.settlement.worker_id is not None}
    return await connection.fetch(
        SQL["lock_accounts"],
        [],
        list(owners),
        [kind.value for kind in (*_OWNED, AccountKind.WORKER_PAYABLE)],
        [kind.value for kind in _NETWORK],
    )


def _usage_row(item: _Accepted) -> tuple[object, ...]:
    """Values in the order of `insert_journal`."""
    settlement, posted = item.settlement, item.posted
    usage, price = settlement.usage, settlement.price
    return (
        item.day, settlement.job_id, settlement.attempt, settlement.customer_id, settlement.key_id,
        settlement.worker_id, settlement.model, price.asset.value, price.version, price.share_bps,
        usage.prompt, usage.cached, usage.completion, settlement.numerator,
        posted.charge.nano, posted.worker_share.nano, posted.fee.nano,
        settlement.outcome.value, settlement.finish_reason,
        settlement.started_at, settlement.first_token_at, settlement.ended_at,
        settlement.receipt_head, settlement.receipt_signature, item.digest, item.lease_id,
        *ledger.multiplied(settlement),
    )  # fmt: skip


def _as_int(job_id: uuid.UUID) -> int:
    return job_id.int


def _body(settlement: Settlement) -> bytes:
    try:
        return msgspec.msgpack.encode(settlement)
    except UnicodeEncodeError:
        # Not even text: what it says is kept as Python shows it.
        return repr(settlement).encode("ascii", "backslashreplace")
