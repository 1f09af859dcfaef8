"""Before the first load there is no book, which is not the same as an empty one."""

import asyncio

import pytest

from billing.ports import LedgerUnavailableError
from billing.pricing import PriceBook
from gateway import prices as module
from gateway.prices import Prices


async def test_models_are_not_unknown_before_the_prices_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.001)
    prices = Prices()
    book = PriceBook(())
    loads: list[PriceBook | Exception] = [LedgerUnavailableError(), book, LedgerUnavailableError()]
    done = asyncio.Event()

    async def load() -> PriceBook:
        if not loads:
            done.set()
            await asyncio.Event().wait()
        loaded = loads.pop(0)
        if isinstance(loaded, Exception):
            raise loaded
        return loaded

    assert not prices.loaded.is_set()
    with pytest.raises(LedgerUnavailableError):
        _ = prices.book
    refreshing = asyncio.create_task(prices.keep_fresh(load))
    await asyncio.wait_for(done.wait(), 60)
    # What was loaded stays in force while the database is away.
    assert prices.book is book
    refreshing.cancel()
    await asyncio.wait([refreshing])
