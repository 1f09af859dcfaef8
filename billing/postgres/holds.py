"""One batch of holds in one transaction."""

import uuid
from collections.abc import Sequence

import msgspec

from billing import ledger
from billing.ledger import AccountKind, Code, Phase
from billing.ports import (
    BillingError,
    Hold,
    HoldClosedError,
    HoldRequest,
    TransferConflictError,
    UnknownCustomerError,
)
from billing.postgres.ceilings import Room, read_rooms
from billing.postgres.entries import SQL, Entries, Transfer
from billing.postgres.pool import Connection
from cocoon.ids import job_day
from cocoon.money import Amount, Asset


class _Purse(msgspec.Struct):
    """A customer's two accounts while they are locked."""

    available_id: int = 0
    leased_id: int = 0
    available: int = 0
    room: Room | None = None
    granted: int = 0

    def grant(self, request: HoldRequest) -> Amount:
        """See `ledger.grant`; no more than the customer's ceiling leaves."""
        if self.room is None:
            return ledger.grant(self.available, request)
        room = max(0, self.room.nano - self.granted)
        if self.available >= request.amount_min.nano > room:
            raise self.room.withheld(request.amount_min.nano + self.granted).error()
        return ledger.grant(min(self.available, room), request)


class _Seen(msgspec.Struct, frozen=True):
    """A transfer that exists under a requested id."""

    digest: bytes | None
    amount: int
    resolved: bool = False


class _Granted(msgspec.Struct, frozen=True):
    request: HoldRequest
    purse: _Purse
    amount: Amount
    digest: bytes


async def post_holds(connection: Connection, requests: Sequence[HoldRequest]) -> list[Hold | BillingError]:
    """Grant what can be granted; one answer for each request, in order."""
    purses = await _lock_purses(connection, {request.customer_id for request in requests})
    seen = await _read_seen(connection, requests)
    answers: list[Hold | BillingError] = []
    granted: list[_Granted] = []
    for request in requests:
        purse = purses.get((request.customer_id, request.amount_max.asset))
        try:
            answers.append(_decide(request, purse, seen, granted))
        except BillingError as error:
            answers.append(error)
    if granted:
        await _write(connection, granted)
    return answers


def _decide(request: HoldRequest, purse: _Purse | None, seen: dict[uuid.UUID, _Seen], granted: list[_Granted]) -> Hold:
    digest = ledger.body_digest(request)
    known = seen.get(request.job_id)
    if known is not None:
        if known.digest != digest:
            raise TransferConflictError
        if known.resolved:
            raise HoldClosedError
        amount = Amount(known.amount, request.amount_max.asset)
        return Hold(job_id=request.job_id, customer_id=request.customer_id, amount=amount)
    if purse is None:
        raise UnknownCustomerError
    amount = purse.grant(request)
    purse.available -= amount.nano
    purse.granted += amount.nano
    seen[request.job_id] = _Seen(digest, amount.nano)
    granted.append(_Granted(request, purse, amount, digest))
    return Hold(job_id=request.job_id, customer_id=request.customer_id, amount=amount)


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


async def _read_seen(connection: Connection, requests: Sequence[HoldRequest]) -> dict[uuid.UUID, _Seen]:
    days = [job_day(request.job_id) for request in requests]
    ids = [request.job_id for request in requests]
    rows = await connection.fetch(SQL["read_transfers"], min(days), max(days), ids)
    return {row["id"]: _Seen(row["body_digest"], row["amount"], row["resolved"] is not None) for row in rows}


async def _write(connection: Connection, granted: list[_Granted]) -> None:
    entries = Entries()
    for item in granted:
        entries.add(
            Transfer(
                day=job_day(item.request.job_id),
                id=item.request.job_id,
                phase=Phase.PENDING,
                code=Code.HOLD,
                debit=item.purse.available_id,
                credit=item.purse.leased_id,
                amount=item.amount.nano,
                body_digest=item.digest,
            )
        )
    await entries.write(connection)
    await connection.execute(
        SQL["insert_open_holds"],
        [item.request.job_id for item in granted],
        [job_day(item.request.job_id) for item in granted],
        [item.request.customer_id for item in granted],
        [item.purse.available_id for item in granted],
        [item.purse.leased_id for item in granted],
        [item.amount.nano for item in granted],
        [item.request.ttl_s for item in granted],
    )
