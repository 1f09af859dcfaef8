"""Leases in Postgres conform, the leased ledger on them conforms, and the books balance after every test."""

import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from billing.leases import LeasedLedger
from billing.ports import Balance
from billing.postgres.check import broken_invariants
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from cocoon.clock import ManualClock
from cocoon.money import Amount
from tests.lease_store_conformance import AgeLeases, LeaseStoreConformance
from tests.ledger_conformance import LedgerConformance, MakeOverdue
from tests.ledger_values import CLOCK, DICE

AGE = (
    "UPDATE leases SET expires_at = now() - interval '1 second',"
    " returns_at = CASE WHEN state = 'recovering' THEN now() - interval '1 second' END"
)


class BothPorts(PostgresLeases):
    """The store and its books as one object."""

    def __init__(self, pool: Pool, database_url: str) -> None:
        super().__init__(pool, database_url)
        self._books = PostgresLedger(pool)

    async def expire_due(self, limit: int) -> int:
        return await self._books.expire_due(limit)

    async def deposit(self, transfer_id: uuid.UUID, customer_id: uuid.UUID, amount: Amount) -> None:
        await self._books.deposit(transfer_id, customer_id, amount)

    async def balance(self, customer_id: uuid.UUID) -> Balance:
        return await self._books.balance(customer_id)


@pytest.fixture
async def store(pool: Pool, database_url: str, connection: Connection) -> AsyncIterator[BothPorts]:
    yield BothPorts(pool, database_url)
    assert await broken_invariants(connection) == []


@pytest.fixture
def age_leases(connection: Connection) -> AgeLeases:
    async def age() -> None:
        await connection.execute(AGE)

    return age


class TestPostgresLeases(LeaseStoreConformance):
    async def test_what_was_refused_is_kept_with_its_reason(
        self, store: BothPorts, connection: Connection, age_leases: AgeLeases
    ) -> None:
        await self.test_a_conflicting_row_is_refused_alone(store)
        await self.test_a_late_row_never_overdraws_recovery(store, age_leases)
        rows = await connection.fetch("SELECT reason, count(*) AS n FROM refused_usage GROUP BY reason")
        assert {row["reason"]: row["n"] for row in rows} == {
            "transfer_conflict": 1, "hold_closed": 1, "lease_lost": 2, "lease_exhausted": 1,
        }  # fmt: skip
        with pytest.raises(asyncpg.RestrictViolationError, match="insert-only"):
            await connection.execute("DELETE FROM refused_usage")


class TestLeasedLedger(LedgerConformance):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(CLOCK.now())

    @pytest.fixture
    async def ledger(self, store: BothPorts, clock: ManualClock) -> AsyncIterator[LeasedLedger]:
        async with LeasedLedger(store, store, clock, DICE, holder="test", linger_s=0) as opened:
            yield opened

    @pytest.fixture
    def make_overdue(self, clock: ManualClock) -> MakeOverdue:
        async def advance() -> None:
            clock.advance(601)

        return advance
