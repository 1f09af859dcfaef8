"""Money that no request moves: deposits, credits that the network gives, and corrections.

Each is one double-entry transfer whose id is chosen by who asks for it, so that asking again moves nothing::

    deposit   suspense           -> customer_available   money that arrived outside of the network
    credit    operator_loss      -> customer_available   a gift or compensation, which the network pays
    reversal  customer_available -> suspense             takes a deposit back; never more than can be spent
"""

import asyncio
import datetime as dt
import uuid
from typing import ClassVar

import msgspec

from billing import ledger
from billing.ledger import AccountKind, Code, Phase
from billing.ports import InsufficientCreditError, RecordRefusedError, TransferConflictError, UnknownCustomerError
from billing.postgres.audit import Change, record
from billing.postgres.entries import SQL, Entries, Transfer
from billing.postgres.pool import Connection, DuplicateRecordError, Pool, transaction
from billing.postgres.statements import load_statements
from cocoon.ids import job_day
from cocoon.money import Amount, Asset

TRANSFER_AGE_MAX = dt.timedelta(hours=24)
"""How far the time inside a new transfer's id may be from now: it decides the day, and so the statement, it is in."""
ADJUSTMENT_NANO_MAX = 10**18
"""A thousand million TON: more is a typing error."""
TRIES_MAX = 5
RETRY_S = 0.02
CUSTOMER_KINDS = (AccountKind.CUSTOMER_AVAILABLE, AccountKind.CUSTOMER_LEASED)
_OTHER_SIDE = {
    Code.DEPOSIT: AccountKind.SUSPENSE,
    Code.CREDIT: AccountKind.OPERATOR_LOSS,
    Code.REVERSAL: AccountKind.SUSPENSE,
}
_OWN_SQL = load_statements("adjustments.sql")


class TransferTimeError(RecordRefusedError):
    """A new transfer's id is a UUIDv7 of the last 24 hours."""

    code: ClassVar[str] = "transfer_id_time"


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """One movement. `transfer_id` is a UUIDv7; `code` is DEPOSIT, CREDIT or REVERSAL; `amount` is above zero."""

    transfer_id: uuid.UUID
    customer_id: uuid.UUID
    code: Code
    amount: Amount
    reason: str


async def post_adjustment(pool: Pool, adjustment: Adjustment, *, actor: str) -> bool:
    """Move the money and record who asked for it; whether it was new (False: it was posted before).

    Raises:
        UnknownCustomerError: there is no such organisation.
        TransferConflictError: the id was used with another organisation, kind or amount.
        TransferTimeError: the id is new, but its time is not.
        InsufficientCreditError: a reversal of more than can be spent; idle leases come back within seconds.
        MalformedError: the id is not a UUIDv7.
        LedgerUnavailableError: nothing is known to have happened; ask again with the same id.
    """
    job_day(adjustment.transfer_id)
    for tries_left in reversed(range(TRIES_MAX)):
        try:
            async with transaction(pool) as connection:
                return await _post(connection, adjustment, actor)
        except DuplicateRecordError:
            # Somebody else posts the same id in this moment: the next try finds it.
            if not tries_left:
                raise
        await asyncio.sleep(RETRY_S)
    raise AssertionError("the last try returns or raises")


async def _post(connection: Connection, adjustment: Adjustment, actor: str) -> bool:
    facts = await connection.fetchrow(_OWN_SQL["adjustment_facts"], adjustment.customer_id)
    if facts is None:
        raise UnknownCustomerError
    if await was_moved(connection, adjustment.transfer_id, adjustment.code, adjustment.customer_id, adjustment.amount):
        return False
    made_at = dt.datetime.fromtimestamp((adjustment.transfer_id.int >> 80) / 1000, tz=dt.UTC)
    if abs(facts["now"] - made_at) > TRANSFER_AGE_MAX:
        raise TransferTimeError
    await move(connection, adjustment.transfer_id, adjustment.code, adjustment.customer_id, adjustment.amount)
    await record(
        connection,
        Change(
            actor=actor,
            action=f"ledger.{adjustment.code.value}",
            customer_id=adjustment.customer_id,
            subject_id=adjustment.transfer_id,
            detail={"amount_nano": adjustment.amount.nano, "reason": adjustment.reason},
        ),
    )
    return True


async def was_moved(
    connection: Connection, transfer_id: uuid.UUID, code: Code, customer_id: uuid.UUID, amount: Amount
) -> bool:
    """Whether this very movement was posted before.

    Raises:
        TransferConflictError: another one was, under the same id.
    """
    day = job_day(transfer_id)
    rows = await connection.fetch(SQL["read_transfers"], day, day, [transfer_id])
    if any(row["body_digest"] != ledger.movement_digest(code, customer_id, amount) for row in rows):
        raise TransferConflictError
    return bool(rows)


async def move(
    connection: Connection, transfer_id: uuid.UUID, code: Code, customer_id: uuid.UUID, amount: Amount
) -> None:
    """Post a movement that `was_moved` has not found; opens the customer's accounts where they are missing.

    Raises:
        InsufficientCreditError: a reversal of more than is available.
    """
    await open_customer_accounts(connection, customer_id, amount.asset)
    other = _OTHER_SIDE[code]
    rows = await connection.fetch(
        SQL["lock_accounts"], [], [customer_id], [AccountKind.CUSTOMER_AVAILABLE.value], [other.value]
    )
    accounts = {row["kind"]: row for row in rows if row["asset"] == amount.asset.value}
    customer, network = accounts[AccountKind.CUSTOMER_AVAILABLE.value], accounts[other.value]
    if code is Code.REVERSAL and customer["available"] < amount.nano:
        raise InsufficientCreditError(f"{Amount(int(customer['available']), amount.asset)} can be taken back now")
    debit, credit = (customer, network) if code is Code.REVERSAL else (network, customer)
    entries = Entries()
    entries.add(
        Transfer(
            day=job_day(transfer_id),
            id=transfer_id,
            phase=Phase.SINGLE,
            code=code,
            debit=debit["id"],
            credit=credit["id"],
            amount=amount.nano,
            body_digest=ledger.movement_digest(code, customer_id, amount),
        )
    )
    await entries.write(connection)


async def open_customer_accounts(connection: Connection, customer_id: uuid.UUID, asset: Asset = Asset.TON) -> None:
    """A customer's accounts, empty, where they are missing."""
    await connection.execute(
        SQL["open_accounts"],
        [kind.value for kind in CUSTOMER_KINDS],
        [customer_id] * len(CUSTOMER_KINDS),
        [asset.value] * len(CUSTOMER_KINDS),
    )
