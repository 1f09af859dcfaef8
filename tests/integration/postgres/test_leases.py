"""Leases in Postgres conform, the leased ledger on them conforms, and the books balance after every test."""

import itertools
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from billing.ceilings import EscrowCredit
from billing.escrows import EscrowState
from billing.leases import LeasedLedger
from billing.ports import Balance
from billing.postgres.account import Accounts
from billing.postgres.check import broken_invariants
from billing.postgres.escrows import Escrows
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from cocoon.clock import ManualClock
from cocoon.money import Amount
from tests.ceiling_conformance import CeilingConformance, ShowEscrows
from tests.lease_store_conformance import AgeLeases, LeaseStoreConformance
from tests.ledger_conformance import LedgerConformance, MakeOverdue
from tests.ledger_values import CLOCK, DICE
from tests.settlement_values import new_id, seen, terms, voucher

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


class TestPostgresLeases(LeaseStoreConformance, CeilingConformance):
    @pytest.fixture
    def show_escrows(self, pool: Pool, connection: Connection) -> ShowEscrows:
        book, seqnos = Escrows(pool), itertools.count(1)

        async def show(customer: uuid.UUID, unsigned_max: int, *escrows: EscrowCredit) -> None:
            await Accounts(pool).open_customer(customer, str(customer))
            for escrow in escrows:
                allowance = escrow.allowance_nano
                known = await book.register(new_id(), customer, terms(
                    address=escrow.address, epoch=escrow.epoch, allow_max_nano=allowance or 0,
                    allow_rate_nano=escrow.allow_rate_nano,
                    voucher_key=None if escrow.signed_nano is None else bytes(32),
                    operator_key=None if allowance is None else bytes(32),
                ))  # fmt: skip
                await book.observe(customer, escrow.address, seen(
                    next(seqnos), escrow.deposited_nano, escrow.settled_nano, allow_at_nano=allowance or 0,
                    state=EscrowState.CLOSING if escrow.closing else EscrowState.OPEN,
                    close_requested_at=1 if escrow.closing else 0,
                ))  # fmt: skip
                if escrow.signed_nano:
                    await book.add_voucher(known.escrow_id, voucher(escrow.signed_nano))
            await connection.execute(
                "UPDATE escrow_customers SET unsigned_max_nano = $2 WHERE customer_id = $1", customer, unsigned_max
            )

        return show

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
