"""The ceilings of customers with escrows, read under the lock of their accounts."""

import uuid
from collections.abc import Iterable
from typing import NamedTuple

from billing.ceilings import Ceiling, EscrowCredit, Withheld, attributed, ceiling
from billing.escrows import UnknownEscrowError
from billing.postgres.audit import Change, record
from billing.postgres.pool import Connection, Pool, Record, acquired, transaction
from billing.postgres.statements import load_statements
from cocoon.money import Asset

_SQL = load_statements("ceilings.sql")


class Room(NamedTuple):
    """A ceiling, and how much of it nothing was promised of yet. Negative where the ceiling has come down."""

    ceiling: Ceiling
    nano: int

    def withheld(self, needed_nano: int) -> Withheld:
        """Why `needed_nano` are not there."""
        return Withheld(ceiling=self.ceiling, lacking_nano=needed_nano - self.nano)


async def read_rooms(connection: Connection, customers: Iterable[uuid.UUID]) -> dict[tuple[uuid.UUID, Asset], Room]:
    """What may still be promised to customers, whose accounts the caller has locked; none has no ceiling."""
    rows: dict[uuid.UUID, list[Record]] = {}
    for row in await connection.fetch(_SQL["read_ceilings"], list(customers)):
        rows.setdefault(row["customer_id"], []).append(row)
    return {(customer, Asset.TON): _room(found) for customer, found in rows.items()}


class Credits(NamedTuple):
    """A customer's escrows that have a deposit and are not closed, charged with everything that was charged so far."""

    escrows: tuple[EscrowCredit, ...] = ()
    usage_root: bytes = bytes(32)
    unsigned_max_nano: int = 0


async def read_credits(pool: Pool, customer_id: uuid.UUID) -> Credits:
    """For showing: what a customer's ceiling is made of. Without a lock, so it is as of a moment ago."""
    async with acquired(pool) as connection:
        rows = await connection.fetch(_SQL["read_ceilings"], [customer_id])
    if not rows:
        return Credits()
    escrows = [_credit(row) for row in rows if row["address"] is not None]
    found = attributed(escrows, int(rows[0]["unattributed_nano"]))
    return Credits(tuple(found), rows[0]["usage_root"], rows[0]["unsigned_max_nano"])


async def set_unsigned_max(pool: Pool, customer_id: uuid.UUID, nano: int, *, reason: str, actor: str) -> int:
    """Let a customer go this far beyond what its clients have signed, and record who decided it; what it was before.

    It counts for whatever is leased from now on. Where less may be unsigned than is, nothing more is leased until
    vouchers have caught up.

    Raises:
        UnknownEscrowError: the customer never registered an escrow, so there is nothing that it signs for.
    """
    async with transaction(pool) as connection:
        before = await connection.fetchval(_SQL["read_unsigned_max"], customer_id)
        if before is None:
            raise UnknownEscrowError("the organisation has registered no escrow")
        if before != nano:
            await connection.execute(_SQL["set_unsigned_max"], customer_id, nano)
            await record(
                connection,
                Change(
                    actor=actor, action="organisation.unsigned_max", customer_id=customer_id, subject_id=customer_id,
                    detail={"unsigned_max_nano": nano, "before_nano": before, "reason": reason},
                ),
            )  # fmt: skip
        return before


def _room(rows: list[Record]) -> Room:
    first = rows[0]
    escrows = [_credit(row) for row in rows if row["address"] is not None]
    unattributed = int(first["unattributed_nano"])
    left = sum(escrow.deposited_nano - escrow.charged_nano for escrow in escrows) - unattributed
    found = ceiling(
        escrows,
        unattributed_nano=unattributed,
        other_nano=int(first["held_nano"]) - max(0, left) - int(first["refund_due_nano"]),
        unsigned_max_nano=first["unsigned_max_nano"],
        usage_root=first["usage_root"],
    )
    return Room(found, found.room_nano - int(first["promised_nano"]))


def _credit(row: Record) -> EscrowCredit:
    return EscrowCredit(
        address=row["address"],
        epoch=row["epoch"],
        closing=row["closing"],
        deposited_nano=row["deposited_nano"],
        settled_nano=row["settled_nano"],
        charged_nano=row["charged_nano"],
        signed_nano=row["signed_nano"],
        allowance_nano=row["allowance_nano"],
        allow_rate_nano=row["allow_rate_nano"],
    )
