"""Day partitions of transfers and usage: there before their day comes."""

from billing.postgres.pool import Connection, Pool, acquired
from billing.postgres.statements import load_statements

PARTITION_DAYS_BACK = 1
"""Yesterday: jobs that began before midnight."""
PARTITION_DAYS_AHEAD = 7
"""How long nobody may call `ensure_partitions` before jobs are refused."""
_SQL = load_statements("partitions.sql")


async def ensure_partitions(pool: Pool) -> int:
    """Create the missing day partitions around the database's today; returns how many. At least daily.

    Idempotent, and safe with any number of callers.

    Raises:
        LedgerUnavailableError: the database cannot be reached.
    """
    async with acquired(pool) as connection:
        return await create_partitions(connection)


async def create_partitions(connection: Connection) -> int:
    """`ensure_partitions` on a connection of the caller's."""
    created: int = await connection.fetchval(_SQL["ensure_day_partitions"], PARTITION_DAYS_BACK, PARTITION_DAYS_AHEAD)
    return created
