"""One piece of work on the database of `COCOON_DATABASE_URL`, for commands."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from billing.postgres.pool import Pool, open_pool
from billing.settings import read_database_settings

T = TypeVar("T")


def run_on_pool(work: Callable[[Pool], Awaitable[T]]) -> T:
    """Open a pool, do the work, close the pool.

    Raises:
        SettingsError: the URL is missing or malformed.
        LedgerUnavailableError: the database cannot be reached.
    """

    async def connected() -> T:
        async with open_pool(read_database_settings().database_url, application="cocoon-cli") as pool:
            return await work(pool)

    return asyncio.run(connected())
