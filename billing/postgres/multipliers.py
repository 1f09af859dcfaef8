"""What single customers pay of the prices, in Postgres: versions that are added and never changed."""

import datetime as dt
import uuid

import msgspec

from billing.ports import RecordRefusedError, UnknownCustomerError
from billing.postgres.audit import SYSTEM_ACTOR, Change, record
from billing.postgres.pool import Connection, Pool, acquired, transaction
from billing.postgres.statements import load_statements
from cocoon.money import CUSTOMER_BPS_MAX

_SQL = load_statements("multipliers.sql")


class MultiplierVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What a customer pays of every price, in basis points, from an instant on (aware UTC)."""

    customer_id: uuid.UUID
    customer: str
    version: int
    customer_bps: int
    effective_from: dt.datetime


async def read_multipliers(connection: Connection) -> dict[uuid.UUID, int]:
    """Basis points by customer, of those that pay something else than the price now."""
    rows = await connection.fetch(_SQL["read_multipliers"])
    return {row["customer_id"]: row["customer_bps"] for row in rows}


async def list_multipliers(pool: Pool) -> list[MultiplierVersion]:
    """Every version, by customer."""
    async with acquired(pool) as connection:
        rows = await connection.fetch(_SQL["list_multipliers"])
    return [
        MultiplierVersion(
            customer_id=row["customer_id"],
            customer=row["name"],
            version=row["version"],
            customer_bps=row["customer_bps"],
            effective_from=row["effective_from"],
        )
        for row in rows
    ]


async def set_multiplier(
    pool: Pool, customer: str, customer_bps: int, *, effective_from: dt.datetime | None = None,
    actor: str = SYSTEM_ACTOR,
) -> MultiplierVersion:  # fmt: skip
    """Add the next version for the customer of this name, effective now unless told otherwise.

    Raises:
        UnknownCustomerError: there is no such customer.
        RecordRefusedError: below the part that workers have of a price (the network would pay for it), above ten times
            the price, or from a moment in the database's past on.
    """
    async with transaction(pool) as connection:
        customer_id: uuid.UUID | None = await connection.fetchval(_SQL["lock_customer"], customer)
        if customer_id is None:
            raise UnknownCustomerError(f"there is no customer {customer!r}")
        share_bps: int = await connection.fetchval(_SQL["highest_share"])
        if not share_bps <= customer_bps <= CUSTOMER_BPS_MAX:
            raise RecordRefusedError(f"a multiplier lies between the workers' {share_bps} and {CUSTOMER_BPS_MAX}")
        row = await connection.fetchrow(_SQL["add_multiplier"], customer_id, customer_bps, effective_from)
        assert row is not None, "an INSERT that did not fail returns its row"
        await record(
            connection,
            Change(
                actor=actor,
                action="customer.multiplied",
                customer_id=customer_id,
                subject_id=customer_id,
                detail={"customer_bps": customer_bps, "effective_from": row["effective_from"].isoformat()},
            ),
        )
    return MultiplierVersion(
        customer_id=customer_id,
        customer=customer,
        version=row["version"],
        customer_bps=customer_bps,
        effective_from=row["effective_from"],
    )
