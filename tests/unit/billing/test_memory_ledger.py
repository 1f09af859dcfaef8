"""The model ledger conforms."""

import datetime as dt

import pytest

from billing.memory import InMemoryLedger
from cocoon.clock import ManualClock
from tests.ledger_conformance import LedgerConformance, MakeOverdue


class TestInMemoryLedger(LedgerConformance):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))

    @pytest.fixture
    def ledger(self, clock: ManualClock) -> InMemoryLedger:
        return InMemoryLedger(clock)

    @pytest.fixture
    def make_overdue(self, clock: ManualClock) -> MakeOverdue:
        async def advance() -> None:
            clock.advance(3600)

        return advance
