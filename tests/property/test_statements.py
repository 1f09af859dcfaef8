"""Statements tie to the ledger's transfers to the nano, whatever happened on which day."""

import datetime as dt
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.ledger import Code
from billing.ports import BillingError, Outcome
from billing.postgres.adjustments import move
from billing.postgres.check import BrokenInvariant, broken_invariants
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.monthly import month_after, read_statement
from billing.postgres.pool import Pool, acquired, open_pool, transaction
from billing.postgres.recoveries import Recoveries
from cocoon.clock import ManualClock
from cocoon.ids import new_job_id
from cocoon.money import Amount, Price
from cocoon.receipt_batch import Verdict
from cocoon.usage import TokenUsage
from gateway.recovery import verify
from tests.fixtures_postgres import PostgresServer, cloned_database
from tests.ledger_values import CLOCK, DICE, hold_request, job_id, settlement
from tests.loop_thread import LoopThread
from tests.receipt_values import GLOBAL_ID, SECRET, Signer

DAYS_BACK = 70
PRICE = Price(version=1, prompt=333_333, cached=33_333, completion=777_777, share_bps=9_500)
events = st.lists(
    st.tuples(
        st.sampled_from(["deposit", "credit", "reversal", "job", "job", "job", "broken", "lost"]),
        st.integers(-DAYS_BACK, 0),
        st.integers(1, 60),
    ),
    max_size=14,
)


class Books:
    """One database for every example; each has a customer of its own."""

    def __init__(self, url: str) -> None:
        self.loop = LoopThread()
        self._stack = AsyncExitStack()
        self.pool: Pool
        self.ledger: PostgresLedger
        self.loop.run(self._open(url))

    async def _open(self, url: str) -> None:
        self.pool = await self._stack.enter_async_context(open_pool(url, application="test"))
        self.ledger = PostgresLedger(self.pool)
        async with acquired(self.pool) as connection:
            await connection.execute(f"SELECT ensure_day_partitions(current_date - {DAYS_BACK + 1}, current_date)")

    def close(self) -> None:
        self.loop.run(self._stack.aclose())
        self.loop.close()

    async def live(self, customer: uuid.UUID, kind: str, days: int, size: int) -> None:
        """One event; what the books refuse has not happened."""
        now = CLOCK.now()
        name = new_job_id(ManualClock(now + dt.timedelta(days=days)), DICE)
        try:
            if kind in ("deposit", "credit", "reversal"):
                async with transaction(self.pool) as connection:
                    await move(connection, name, Code(kind), customer, Amount(size))
            elif kind == "lost":
                await self._lose(customer)
            else:
                async with PostgresLedger(self.pool) as ledger:
                    if size % 7 == 0:
                        await ledger.hold(hold_request(customer, size))  # left open
                    await ledger.hold(msgspec.structs.replace(hold_request(customer, 60), job_id=name))
                    await ledger.settle(
                        settlement(
                            name, customer, worker=uuid.UUID(int=1), price=PRICE,
                            usage=TokenUsage(prompt=size, cached=size // 2, completion=size // 3),
                            outcome=Outcome.BROKEN if kind == "broken" else Outcome.COMPLETED,
                        )
                    )  # fmt: skip
        except BillingError:
            return

    async def _lose(self, customer: uuid.UUID) -> None:
        """A charge recovered when nothing is left to pay it: the operator bears it."""
        lost, signer = hold_request(customer, 40), Signer()
        async with PostgresLedger(self.pool) as ledger:
            await ledger.hold(lost)
            async with acquired(self.pool) as connection:
                await connection.execute(
                    "UPDATE open_holds SET expires_at = now() - interval '1 s' WHERE id = $1", lost.job_id
                )
            await ledger.expire_due(10)
            left = (await ledger.balance(customer)).available
        if left.nano:
            async with transaction(self.pool) as connection:
                await move(connection, job_id(), Code.REVERSAL, customer, left)
        receipt = signer.delivered(signer.ticket(job=lost.job_id), customer)
        claim = verify(receipt, [signer.raw], signer.worker_id, SECRET, global_id=GLOBAL_ID)
        verdicts = await Recoveries(self.pool, PostgresLeases(self.pool, "")).reconcile([claim])
        assert verdicts in ([Verdict.RECOVERED], [Verdict.DISCREPANCY])

    async def transferred(self, customer: uuid.UUID) -> list[tuple[dt.date, str, int]]:
        """What crossed the border of the customer's accounts, straight from the transfers: day, code, net."""
        async with acquired(self.pool) as connection:
            rows = await connection.fetch(
                "WITH mine AS (SELECT id FROM accounts WHERE owner = $1) "
                "SELECT t.day, t.code, sum(t.amount * ((t.credit_account_id IN (SELECT id FROM mine))::int "
                "- (t.debit_account_id IN (SELECT id FROM mine))::int))::bigint AS net FROM transfers AS t "
                "WHERE t.phase IN ('single', 'post') GROUP BY t.day, t.code",
                customer,
            )
        return [(row["day"], row["code"], row["net"]) for row in rows]


@pytest.fixture(scope="module")
def books(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Books]:
    with cloned_database(postgres_server, migrated_template) as url:
        opened = Books(url)
        try:
            yield opened
        finally:
            opened.close()


def check_statements(books: Books, happened: list[tuple[str, int, int]]) -> None:
    customer = uuid.uuid4()
    books.loop.run(books.ledger.deposit(job_id(), customer, Amount(200)))
    for kind, days, size in happened:
        books.loop.run(books.live(customer, kind, days, size))
    moved = books.loop.run(books.transferred(customer))
    today = CLOCK.now().date()
    month = (today - dt.timedelta(days=DAYS_BACK + 1)).replace(day=1)
    closing = 0
    while month <= today:
        end = month_after(month)
        statement = books.loop.run(read_statement(books.pool, customer, month))
        assert statement.opening.nano == closing == sum(net for day, _, net in moved if day < month)
        assert statement.closing.nano == sum(net for day, _, net in moved if day < end)
        charges = sum(line.charge.nano for line in statement.charges)
        assert charges == -sum(net for day, code, net in moved if month <= day < end and code == "charge")
        assert statement.closing.nano == (
            statement.opening.nano + statement.deposits.nano - statement.reversals.nano + statement.credits.nano
            + statement.borne.nano - charges
        )  # fmt: skip
        closing, month = statement.closing.nano, end
    balance = books.loop.run(books.ledger.balance(customer))
    assert closing == balance.available.nano + balance.held.nano


@pytest.mark.usefixtures("one_day")
def test_statements_tie_to_the_transfers_and_to_each_other(books: Books) -> None:
    @settings(max_examples=25, deadline=None, database=None)
    @given(happened=events)
    def check(happened: list[tuple[str, int, int]]) -> None:
        check_statements(books, happened)

    check()

    async def outcome() -> tuple[set[str], list[BrokenInvariant]]:
        async with acquired(books.pool) as connection:
            codes = await connection.fetch("SELECT DISTINCT code FROM transfers WHERE phase = 'single'")
            return {row["code"] for row in codes}, await broken_invariants(connection)

    codes, broken = books.loop.run(outcome())
    # A test in which nothing ever happened would prove nothing.
    assert codes >= {"deposit", "credit", "reversal", "charge", "loss"}
    assert [row for row in broken if row.invariant != "adjustments_are_recorded"] == []


@pytest.mark.parametrize(("first", "following"), [((2026, 1), (2026, 2)), ((2026, 12), (2027, 1))])
def test_months_follow_each_other(first: tuple[int, int], following: tuple[int, int]) -> None:
    assert month_after(dt.date(*first, 1)) == dt.date(*following, 1)
