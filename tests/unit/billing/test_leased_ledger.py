"""The leased ledger conforms, on leases in memory."""

import uuid
from collections.abc import AsyncIterator

import pytest

from billing.ceilings import EscrowCredit
from billing.leases import LeasedLedger
from billing.memory_leases import InMemoryLeases
from cocoon.clock import ManualClock
from cocoon.money import Amount
from tests.ceiling_conformance import CeilingConformance, ShowEscrows
from tests.lease_store_conformance import AgeLeases, LeaseStoreConformance
from tests.ledger_conformance import LedgerConformance, MakeOverdue
from tests.ledger_values import CLOCK, DICE, job_id


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(CLOCK.now())


@pytest.fixture
def store_clock() -> ManualClock:
    return ManualClock(CLOCK.now())


@pytest.fixture
def store(store_clock: ManualClock) -> InMemoryLeases:
    return InMemoryLeases(store_clock)


class TestInMemoryLeases(LeaseStoreConformance, CeilingConformance):
    @pytest.fixture
    def show_escrows(self, store: InMemoryLeases) -> ShowEscrows:
        deposited: dict[str, int] = {}

        async def show(customer: uuid.UUID, unsigned_max: int, *escrows: EscrowCredit) -> None:
            for escrow in escrows:
                if grown := escrow.deposited_nano - deposited.get(escrow.address, 0):
                    await store.deposit(job_id(), customer, Amount(grown))
                deposited[escrow.address] = escrow.deposited_nano
            store.set_escrows(customer, unsigned_max, *escrows)

        return show

    @pytest.fixture
    def age_leases(self, store_clock: ManualClock) -> AgeLeases:
        async def age() -> None:
            store_clock.advance(901)

        return age


class TestLeasedLedger(LedgerConformance):
    @pytest.fixture
    async def ledger(self, store: InMemoryLeases, clock: ManualClock) -> AsyncIterator[LeasedLedger]:
        async with LeasedLedger(store, store, clock, DICE, holder="test", linger_s=0) as opened:
            yield opened

    @pytest.fixture
    def make_overdue(self, clock: ManualClock) -> MakeOverdue:
        async def advance() -> None:
            clock.advance(601)

        return advance
