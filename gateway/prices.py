"""The price book in force, replaced as a whole; requests in flight keep the price they were admitted with."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from billing.ports import BillingError, LedgerUnavailableError
from billing.pricing import PriceBook

REFRESH_S = 5.0
log = structlog.get_logger()


class Prices:
    """Holds the current book."""

    def __init__(self) -> None:
        self._book: PriceBook | None = None
        self.loaded = asyncio.Event()
        """Set once there is a book."""

    @property
    def book(self) -> PriceBook:
        """The book in force.

        Raises:
            LedgerUnavailableError: none was loaded yet. That no model has a price would be something else to say.
        """
        if self._book is None:
            raise LedgerUnavailableError("the prices have not been loaded yet")
        return self._book

    @book.setter
    def book(self, book: PriceBook) -> None:
        self._book = book
        self.loaded.set()

    async def keep_fresh(self, load: Callable[[], Awaitable[PriceBook]]) -> None:
        """Reload every `REFRESH_S`, for ever. While the database is away, the last book stays in force."""
        while True:
            try:
                self.book = await load()
            except BillingError as error:
                log.warning("price_refresh_failed", code=error.code)
            await asyncio.sleep(REFRESH_S)
