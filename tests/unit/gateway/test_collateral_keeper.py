"""Collateral at hand: shared, refreshed before its end, served on while its source is away."""

import datetime as dt
import random

import pytest

from attestation.simulation.tdx import Judgement
from attestation.tdx.collateral import Collateral, CollateralCache, Family, Validity
from billing.ports import LedgerUnavailableError
from cocoon.clock import ManualClock
from cocoon.errors import CocoonError
from gateway.collateral import CollateralKeeper, SharedSource
from tests.attested import NOW, machine

PLATFORM = machine().platform


class Shelf:
    """A store in memory."""

    def __init__(self) -> None:
        self.kept: dict[Family, Collateral] = {}
        self.away = False

    async def put(self, family: Family, collateral: Collateral, validity: Validity) -> None:
        if self.away:
            raise LedgerUnavailableError
        assert validity.end > validity.start
        self.kept[family] = collateral

    async def load(self) -> list[tuple[Family, Collateral]]:
        if self.away:
            raise LedgerUnavailableError
        return list(self.kept.items())


class Vendor:
    def __init__(self, collateral: Collateral | None) -> None:
        self.collateral = collateral
        self.asked = 0

    async def fetch(self, family: Family) -> Collateral:
        self.asked += 1
        if self.collateral is None:
            raise CocoonError("away")
        return self.collateral


class Replica:
    def __init__(self, vendor: Vendor, shelf: Shelf, clock: ManualClock) -> None:
        self.cache = CollateralCache(SharedSource(vendor, shelf), clock)
        self.keeper = CollateralKeeper(self.cache, shelf, random.Random(1), 60.0)

    @property
    def held(self) -> Collateral | None:
        return self.cache.held(PLATFORM.family)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


async def test_what_one_replica_fetched_the_others_have(clock: ManualClock) -> None:
    shelf, vendor = Shelf(), Vendor(PLATFORM.collateral(NOW))
    one, other = Replica(vendor, shelf, clock), Replica(Vendor(None), shelf, clock)
    await one.cache.get(PLATFORM.family)
    await other.keeper.refresh()
    assert other.held == vendor.collateral
    # A long time before its end nobody asks again.
    await one.keeper.refresh()
    assert vendor.asked == 1


async def test_collateral_is_refreshed_before_its_end_and_served_on_while_the_source_is_away(
    clock: ManualClock,
) -> None:
    shelf, vendor = Shelf(), Vendor(PLATFORM.collateral(NOW))
    one = Replica(vendor, shelf, clock)
    first = await one.cache.get(PLATFORM.family)
    clock.advance(25 * 86400)
    vendor.collateral = None
    await one.keeper.refresh()
    clock.advance(30 * 86400)
    await one.keeper.refresh()
    assert (one.held, vendor.asked) == (first, 3)
    vendor.collateral = PLATFORM.collateral(clock.now())
    await one.keeper.refresh()
    assert one.held == vendor.collateral == shelf.kept[PLATFORM.family]


async def test_older_documents_never_replace_newer_ones_whoever_brings_them(clock: ManualClock) -> None:
    revoking = PLATFORM.collateral(NOW, Judgement(days=1, revoke_pck=True))
    shelf, vendor = Shelf(), Vendor(revoking)
    one = Replica(vendor, shelf, clock)
    await one.cache.get(PLATFORM.family)
    for older in (
        PLATFORM.collateral(NOW - dt.timedelta(hours=2), Judgement(days=1)),
        PLATFORM.collateral(NOW, Judgement(days=1, evaluation=19)),
    ):
        vendor.collateral = shelf.kept[PLATFORM.family] = older
        await one.keeper.refresh()
        assert one.held == revoking


async def test_a_database_that_is_away_takes_no_collateral_away(clock: ManualClock) -> None:
    shelf, vendor = Shelf(), Vendor(PLATFORM.collateral(NOW, Judgement(days=1)))
    shelf.away = True
    one = Replica(vendor, shelf, clock)
    await one.cache.get(PLATFORM.family)
    await one.keeper.refresh()
    assert one.held == vendor.collateral
