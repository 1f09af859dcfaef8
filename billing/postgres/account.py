"""Customers, and what they may see of their own account."""

import datetime as dt
import uuid

import msgspec

from billing.postgres.adjustments import open_customer_accounts
from billing.postgres.monthly import Statement, read_statement
from billing.postgres.pool import Connection, Pool, acquired, transaction
from billing.postgres.statements import load_statements
from cocoon.money import Amount, Asset

USAGE_LINES_MAX = 10_000
USAGE_DAYS_MAX = 92
"""Longest span of one question; a day is a partition."""
_SQL = load_statements("account.sql")


class UsageLine(msgspec.Struct, frozen=True, kw_only=True):
    """Charged usage of one key with one model on one UTC day.

    `numerator` is the exact cost in 10^-6 nano; `charge` is what moved, which rounds cumulatively. `project_id` and
    the names are None for a key that the database does not know.
    """

    day: dt.date
    model: str
    key_id: uuid.UUID
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    numerator: int
    charge: Amount
    key_name: str | None = None
    project_id: uuid.UUID | None = None
    project: str | None = None


class Accounts:
    """Customers and their usage. Every method raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def open_customer(self, customer_id: uuid.UUID, name: str) -> uuid.UUID:
        """The id of the customer of this name: `customer_id` when it is new, with empty accounts."""
        async with transaction(self._pool) as connection:
            return await open_customer(connection, customer_id, name)

    async def find_customer(self, name: str) -> uuid.UUID | None:
        """The customer of this name."""
        async with acquired(self._pool) as connection:
            found: uuid.UUID | None = await connection.fetchval(_SQL["find_customer"], name)
        return found

    async def usage(self, customer_id: uuid.UUID, first_day: dt.date, last_day: dt.date) -> list[UsageLine]:
        """Usage on the UTC days from `first_day` to `last_day`, newest first, at most `USAGE_LINES_MAX + 1` lines.

        One line more than the maximum says that there are others. The span is at most `USAGE_DAYS_MAX` days; the caller
        checks.
        """
        assert (last_day - first_day).days < USAGE_DAYS_MAX, "the caller bounds the span"
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["usage_by_day"], customer_id, first_day, last_day, USAGE_LINES_MAX + 1)
        return [
            UsageLine(
                day=row["day"],
                model=row["model"],
                key_id=row["key_id"],
                requests=row["requests"],
                prompt_tokens=int(row["prompt_tokens"]),
                cached_tokens=int(row["cached_tokens"]),
                completion_tokens=int(row["completion_tokens"]),
                numerator=int(row["numerator"]),
                charge=Amount(int(row["charge_nano"]), Asset(row["asset"])),
                key_name=row["key_name"],
                project_id=row["project_id"],
                project=row["project"],
            )
            for row in rows
        ]

    async def leased(self, customer_id: uuid.UUID, asset: Asset = Asset.TON) -> Amount:
        """What gateway processes have leased for the customer's requests, in use or idle: a part of what is held."""
        async with acquired(self._pool) as connection:
            return Amount(await connection.fetchval(_SQL["read_leased"], customer_id, asset.value), asset)

    async def statement(self, customer_id: uuid.UUID, first_day: dt.date) -> Statement:
        """See `billing.postgres.monthly.read_statement`."""
        return await read_statement(self._pool, customer_id, first_day)


async def open_customer(connection: Connection, customer_id: uuid.UUID, name: str) -> uuid.UUID:
    """See `Accounts.open_customer`; in the caller's transaction."""
    await connection.execute(_SQL["put_customer"], customer_id, name)
    known: uuid.UUID = await connection.fetchval(_SQL["find_customer"], name)
    await open_customer_accounts(connection, known)
    return known
