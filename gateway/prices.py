"""The price book in force, replaced as a whole; requests in flight keep the price they were admitted with."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from billing.ports import BillingError
from billing.pricing import PriceBook

REFRESH_S = 5.0
log = structlog.get_logger()


class Prices:
    """Holds the current book."""

    def __init__(self) -> None:
        self.book = PriceBook(())

    async def keep_fresh(self, load: Callable[[], Awaitable[PriceBook]]) -> None:
        """Reload every `REFRESH_S`, for ever. While the database is away, the last book stays in force."""
        while True:
            try:
                self.book = await load()
            except BillingError as error:
                log.warning("price_refresh_failed", code=error.code)
            await asyncio.sleep(REFRESH_S)
