"""One batch of settlements and releases in one transaction, and the expiry of holds.

A job's resolution is one transfer of its own. What flows on from the customers' leased accounts is aggregated: one
leg for each account and day, so that the hot accounts (rounding, revenue) change once in a batch.
"""

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from billing import ledger
from billing.ledger import AccountKind, Code, Numerators, Phase, Release
from billing.ports import BillingError, Hold, HoldClosedError, Posted, Settlement, TransferConflictError
from billing.postgres.entries import SQL, Entries, Transfer
from billing.postgres.pool import Connection, Record
from cocoon.ids import job_day
from cocoon.money import Amount, Asset

End = Settlement | Release
_RELEASED = frozenset({Phase.VOID.value, Phase.EXPIRE.value})


class _OpenHold(msgspec.Struct, frozen=True):
    customer_id: uuid.UUID
    available_id: int
    leased_id: int
    amount: int


class _Past(msgspec.Struct, frozen=True):
    """What is known of members whose hold is not open: replays, mostly."""

    usage: dict[tuple[uuid.UUID, int], tuple[bytes, Posted]]
    released_for: dict[uuid.UUID, uuid.UUID]


class _Leg(NamedTuple):
    day: dt.date
    code: Code
    debit: int
    credit: int


class _Accepted(msgspec.Struct):
    end: End
    hold: _OpenHold
    digest: bytes = b""
    posted: Posted | None = None

    @property
    def charged(self) -> Settlement | None:
        """The settlement, when it moves money."""
        return self.end if isinstance(self.end, Settlement) and self.end.outcome.chargeable else None


async def post_ends(connection: Connection, ends: Sequence[End]) -> list[Posted | BillingError | None]:
    """Resolve what can be resolved; one answer for each end, in order. Releases are answered with None."""
    open_holds = await _lock_holds(connection, ends)
    past = await _read_past(connection, [end for end in ends if end.job_id not in open_holds])
    batch = _Batch(open_holds, past)
    verdicts = [batch.judge(end) for end in ends]
    if batch.accepted:
        await _post(connection, batch.accepted)
    return [verdict.posted if isinstance(verdict, _Accepted) else verdict for verdict in verdicts]


async def expire_holds(connection: Connection, limit: int) -> int:
    """Release up to `limit` holds past their time by the database's clock; returns how many."""
    due = await connection.fetch(SQL["lock_due_holds"], limit)
    if not due:
        return 0
    accounts = {row["debit_account_id"] for row in due} | {row["credit_account_id"] for row in due}
    await connection.fetch(SQL["lock_accounts"], list(accounts), [], [], [])
    entries = Entries()
    for row in due:
        hold = _open_hold(row, customer_id=row["id"])
        entries.resolve(_resolution(row["id"], hold, Phase.EXPIRE, hold.amount), reserved=hold.amount)
    await entries.write(connection)
    await connection.execute(SQL["delete_open_holds"], [row["id"] for row in due])
    return len(due)


class _Batch:
    """Judges members one after the other, remembering what the ones before took."""

    def __init__(self, open_holds: dict[uuid.UUID, _OpenHold], past: _Past) -> None:
        self._open = open_holds
        self._past = past
        self._taken: dict[uuid.UUID, _Accepted] = {}

    @property
    def accepted(self) -> list[_Accepted]:
        return list(self._taken.values())

    def judge(self, end: End) -> "_Accepted | Posted | BillingError | None":
        try:
            return self._judge_settlement(end) if isinstance(end, Settlement) else self._judge_release(end)
        except BillingError as error:
            return error

    def _judge_settlement(self, settlement: Settlement) -> "_Accepted | Posted":
        digest = ledger.body_digest(settlement)
        known = self._past.usage.get((settlement.job_id, settlement.attempt))
        if known is not None:
            if known[0] != digest:
                raise TransferConflictError
            return known[1]
        twin = self._taken.get(settlement.job_id)
        if twin is not None:
            if isinstance(twin.end, Settlement) and twin.end.attempt == settlement.attempt:
                if twin.digest != digest:
                    raise TransferConflictError
                return twin
            raise HoldClosedError
        hold = self._open.get(settlement.job_id)
        if hold is None:
            raise HoldClosedError
        ledger.require_covered(
            settlement,
            Hold(
                job_id=settlement.job_id,
                customer_id=hold.customer_id,
                amount=Amount(hold.amount, settlement.price.asset),
            ),
        )
        return self._take(_Accepted(settlement, hold, digest))

    def _judge_release(self, release: Release) -> "_Accepted | None":
        twin = self._taken.get(release.job_id)
        hold = self._open.get(release.job_id)
        if twin is None and hold is not None and hold.customer_id == release.customer_id:
            return self._take(_Accepted(release, hold))
        if twin is not None and twin.charged is None and twin.hold.customer_id == release.customer_id:
            return None
        if hold is None and self._past.released_for.get(release.job_id) == release.customer_id:
            return None
        raise HoldClosedError

    def _take(self, accepted: _Accepted) -> _Accepted:
        self._taken[accepted.end.job_id] = accepted
        return accepted


async def _lock_holds(connection: Connection, ends: Sequence[End]) -> dict[uuid.UUID, _OpenHold]:
    rows = await connection.fetch(SQL["lock_holds"], [end.job_id for end in ends])
    return {row["id"]: _open_hold(row, customer_id=row["customer_id"]) for row in rows}


async def _read_past(connection: Connection, ends: Sequence[End]) -> _Past:
    past = _Past({}, {})
    if not ends:
        return past
    days = [job_day(end.job_id) for end in ends]
    settled = [end for end in ends if isinstance(end, Settlement)]
    if settled:
        assets = {end.job_id: end.price.asset for end in settled}
        for row in await connection.fetch(SQL["read_usage"], min(days), max(days), list(assets)):
            asset = assets[row["job_id"]]
            posted = Posted(
                charge=Amount(row["charge_nano"], asset),
                worker_share=Amount(row["share_nano"], asset),
                fee=Amount(row["fee_nano"], asset),
            )
            past.usage[row["job_id"], row["attempt"]] = (row["body_digest"], posted)
    released = [end.job_id for end in ends if isinstance(end, Release)]
    if released:
        for row in await connection.fetch(SQL["read_transfers"], min(days), max(days), released):
            if row["resolved"] in _RELEASED:
                past.released_for[row["id"]] = row["customer_id"]
    return past


async def _post(connection: Connection, accepted: list[_Accepted]) -> None:
    books = await _lock_books(connection, accepted)
    entries = Entries()
    legs: defaultdict[_Leg, int] = defaultdict(int)
    for item in accepted:
        settlement = item.charged
        if settlement is None:
            if isinstance(item.end, Settlement):
                item.posted = ledger.charge(item.end, Numerators()).posted
            phase, amount = Phase.VOID, item.hold.amount
        else:
            item.posted = books.charge(settlement, item.hold, entries, legs)
            phase, amount = Phase.POST, item.posted.charge.nano
        entries.resolve(_resolution(item.end.job_id, item.hold, phase, amount), reserved=item.hold.amount)
    _add_legs(entries, legs, accepted)
    await entries.write(connection)
    await _write_usage(connection, accepted)
    await connection.execute(SQL["delete_open_holds"], [item.end.job_id for item in accepted])


class _Books:
    """The cumulative numerators of the locked accounts, growing as the batch is posted."""

    def __init__(self, rows: Sequence[Record]) -> None:
        self._numerators: dict[int, int] = {row["id"]: int(row["numerator"]) for row in rows}
        self._ids = {(row["kind"], row["owner"], row["asset"]): row["id"] for row in rows}

    def charge(self, settlement: Settlement, hold: _OpenHold, entries: Entries, legs: defaultdict[_Leg, int]) -> Posted:
        asset = settlement.price.asset
        revenue = self._id(AccountKind.NETWORK_REVENUE, None, asset)
        rounding = self._id(AccountKind.ROUNDING, None, asset)
        worker = None
        if settlement.worker_id is not None:
            worker = self._id(AccountKind.WORKER_PAYABLE, settlement.worker_id, asset)
        before = Numerators(
            customer=self._numerators[hold.leased_id],
            worker=self._numerators[worker] if worker is not None else 0,
            revenue=self._numerators[revenue],
        )
        charge = ledger.charge(settlement, before)
        day = job_day(settlement.job_id)
        self._grow(hold.leased_id, charge.after.customer, entries)
        self._grow(revenue, charge.after.revenue, entries)
        legs[_Leg(day, Code.CHARGE, hold.leased_id, rounding)] += charge.posted.charge.nano
        legs[_Leg(day, Code.FEE, rounding, revenue)] += charge.posted.fee.nano
        if worker is not None:
            self._grow(worker, charge.after.worker, entries)
            legs[_Leg(day, Code.SHARE, rounding, worker)] += charge.posted.worker_share.nano
        return charge.posted

    def _grow(self, account_id: int, after: int, entries: Entries) -> None:
        entries.add_numerator(account_id, after - self._numerators[account_id])
        self._numerators[account_id] = after

    def _id(self, kind: AccountKind, owner: uuid.UUID | None, asset: Asset) -> int:
        return self._ids[kind.value, owner, asset.value]


async def _lock_books(connection: Connection, accepted: list[_Accepted]) -> _Books:
    charged = [item.charged for item in accepted if item.charged is not None]
    workers = {settlement.worker_id for settlement in charged if settlement.worker_id is not None}
    network = [AccountKind.ROUNDING.value, AccountKind.NETWORK_REVENUE.value] if charged else []
    customers = {item.hold.available_id for item in accepted} | {item.hold.leased_id for item in accepted}
    rows = await connection.fetch(
        SQL["lock_accounts"], list(customers), list(workers), [AccountKind.WORKER_PAYABLE.value], network
    )
    return _Books(rows)


def _add_legs(entries: Entries, legs: dict[_Leg, int], accepted: list[_Accepted]) -> None:
    members: defaultdict[dt.date, list[tuple[uuid.UUID, int]]] = defaultdict(list)
    for item in accepted:
        if item.charged is not None:
            members[job_day(item.end.job_id)].append((item.end.job_id, item.charged.attempt))
    digests = {day: ledger.batch_digest(jobs) for day, jobs in members.items()}
    for leg, amount in legs.items():
        if not amount:
            continue
        # One side of a leg is the rounding account: the other one tells legs of the same code apart.
        party = leg.debit if leg.code is Code.CHARGE else leg.credit
        entries.add(
            Transfer(
                day=leg.day,
                id=ledger.leg_id(digests[leg.day], leg.code, party),
                phase=Phase.SINGLE,
                code=leg.code,
                debit=leg.debit,
                credit=leg.credit,
                amount=amount,
            )
        )


async def _write_usage(connection: Connection, accepted: list[_Accepted]) -> None:
    rows = [_usage_row(item.end, item) for item in accepted if isinstance(item.end, Settlement)]
    if rows:
        await connection.execute(SQL["insert_usage"], *(list(column) for column in zip(*rows, strict=True)))


def _usage_row(settlement: Settlement, item: _Accepted) -> tuple[object, ...]:
    """Values in the order of `insert_usage`."""
    posted = item.posted
    assert posted is not None, "every accepted settlement was posted"
    usage, price = settlement.usage, settlement.price
    return (
        job_day(settlement.job_id), settlement.job_id, settlement.attempt, settlement.customer_id, settlement.key_id,
        settlement.worker_id, settlement.model, price.asset.value, price.version, price.share_bps,
        usage.prompt, usage.cached, usage.completion, settlement.numerator,
        posted.charge.nano, posted.worker_share.nano, posted.fee.nano,
        settlement.outcome.value, settlement.finish_reason,
        settlement.started_at, settlement.first_token_at, settlement.ended_at,
        settlement.receipt_head, settlement.receipt_signature, item.digest,
        *ledger.multiplied(settlement),
    )  # fmt: skip


def _open_hold(row: Record, *, customer_id: uuid.UUID) -> _OpenHold:
    return _OpenHold(customer_id, row["debit_account_id"], row["credit_account_id"], row["amount"])


def _resolution(job_id: uuid.UUID, hold: _OpenHold, phase: Phase, amount: int) -> Transfer:
    return Transfer(
        day=job_day(job_id),
        id=ledger.resolution_id(job_id),
        phase=phase,
        code=Code.HOLD,
        pending_id=job_id,
        debit=hold.available_id,
        credit=hold.leased_id,
        amount=amount,
    )
