"""Leases and journal when processes compete, die, and lose their database in the middle of a flush."""

import asyncio
import contextlib
import ctypes
import itertools
import json
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from billing.lease_book import LeaseTerms
from billing.leases import LeasedLedger
from billing.ports import HoldRequest, LedgerUnavailableError, Outcome, Posted, RecordRefusedError, Settlement
from billing.postgres import leases as module
from billing.postgres.check import broken_invariants
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool, connect, open_pool, transaction
from cocoon.money import Amount
from tests.fixtures_postgres import PostgresServer
from tests.ledger_values import CLOCK, DICE, hold_request, job_id, settlement

DEPOSIT = 10_000_000
COST = 13_761
ROOT = Path(__file__).parents[2]
_LIBC = ctypes.CDLL(None)


def leased_ledger(pool: Pool, database_url: str, *, terms: LeaseTerms | None = None) -> LeasedLedger:
    return LeasedLedger(
        PostgresLedger(pool),
        PostgresLeases(pool, database_url),
        CLOCK,
        DICE,
        holder="test",
        terms=terms,
        linger_s=0.002,
    )


@pytest.fixture
async def ledger(pool: Pool, database_url: str) -> AsyncIterator[LeasedLedger]:
    """A ledger whose books must balance when the test is over, with no lease left."""
    async with leased_ledger(pool, database_url) as opened:
        yield opened
    async with connect(database_url, application="test") as connection:
        assert await broken_invariants(connection) == []


async def funded(ledger: LeasedLedger, nano: int = DEPOSIT) -> uuid.UUID:
    customer = uuid.uuid4()
    await ledger.deposit(job_id(), customer, Amount(nano))
    return customer


async def rows(database_url: str, query: str, *arguments: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetch(query, *arguments)
    finally:
        await connection.close()


# Overspending


@pytest.mark.parametrize(("held", "cost"), [(1000, 1000), (1000, 137)])
async def test_four_processes_serve_exactly_what_a_customer_can_pay(database_url: str, held: int, cost: int) -> None:
    affordable, processes = 40, 4
    customer = uuid.uuid4()
    async with open_pool(database_url, application="test") as pool:
        await PostgresLedger(pool).deposit(job_id(), customer, Amount(affordable * held))
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.spending_process", database_url, str(customer),
            str(10 * affordable // processes), str(held), str(cost),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            preexec_fn=lambda: _LIBC.prctl(1, signal.SIGKILL),
        )
        for _ in range(processes)
    ]  # fmt: skip
    async with asyncio.timeout(60):
        for child in children:
            assert child.stdout is not None
            assert await child.stdout.readline() == b"ready\n"
        outputs = await asyncio.gather(*(child.communicate(b"go\n") for child in children))
    counts = [json.loads(output) for output, _ in outputs]
    served = sum(count["served"] for count in counts)
    assert served + sum(count["refused"] for count in counts) == 10 * affordable
    if cost == held:
        assert served == affordable
    else:
        assert affordable <= served <= affordable * held // cost
    async with open_pool(database_url, application="test") as pool:
        balance = await PostgresLedger(pool).balance(customer)
    assert (balance.held.nano, balance.spent.nano) == (0, served * cost)
    assert balance.available.nano == affordable * held - served * cost
    async with connect(database_url, application="test") as connection:
        assert await broken_invariants(connection) == []


# The database


async def held_at_last(ledger: LeasedLedger, request: HoldRequest) -> None:
    """What a client does: the same request until there is an answer."""
    while True:
        try:
            await ledger.hold(request)
        except LedgerUnavailableError:
            await asyncio.sleep(0.02)
        else:
            return


async def kill_now_and_then(server: PostgresServer, ended: Sequence[object], dice: random.Random) -> None:
    for _ in range(4):
        done = len(ended)
        async with asyncio.timeout(60):
            while len(ended) < done + 60:  # noqa: ASYNC110  at a random moment, not at an event
                await asyncio.sleep(dice.random() / 500)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)


async def test_postgres_killed_in_the_middle_of_flushes_loses_nothing_and_doubles_nothing(
    own_postgres: PostgresServer,
) -> None:
    dice = random.Random(7)
    # Leases end soon, so that the outages reach admission too.
    terms = LeaseTerms(ttl_s=1.0, margin_s=0.2, recovery_s=60)
    ended: list[tuple[HoldRequest, Settlement | None, int]] = []
    async with open_pool(own_postgres.url(), application="test") as pool:
        async with contextlib.AsyncExitStack() as stack:
            ledgers = [
                await stack.enter_async_context(leased_ledger(pool, own_postgres.url(), terms=terms)) for _ in range(2)
            ]
            customers = [await funded(ledgers[0]) for _ in range(3)]
            workers = [uuid.uuid4() for _ in range(2)]

            async def one_job(number: int) -> None:
                ledger, request = ledgers[number % 2], hold_request(customers[number % 3], 20_000)
                await held_at_last(ledger, request)
                if number % 7 == 0:
                    await ledger.void(request.job_id, request.customer_id)
                    ended.append((request, None, 0))
                    return
                outcome = dice.choice(list(Outcome))
                end = settlement(request.job_id, request.customer_id, worker=workers[number % 2], outcome=outcome)
                ended.append((request, end, (await ledger.settle(end)).charge.nano))

            async def stream(first: int) -> None:
                for number in range(first, 960, 24):
                    await one_job(number)

            with capture_logs() as logs:
                async with asyncio.TaskGroup() as group:
                    group.create_task(kill_now_and_then(own_postgres, ended, dice))
                    for first in range(24):
                        group.create_task(stream(first))
            assert sum(entry["event"] == "ledger_batch_resent" for entry in logs) >= 4  # the kills did hit
            assert not [entry for entry in logs if entry["event"] in {"usage_row_quarantined", "leases_abandoned"}]
        assert len(ended) == 960
        books = PostgresLedger(pool)
        for customer in customers:
            spent = sum(charge for request, _, charge in ended if request.customer_id == customer)
            balance = await books.balance(customer)
            assert (balance.spent.nano, balance.held.nano) == (spent, 0)
            assert balance.available.nano == DEPOSIT - spent
    async with connect(own_postgres.url(), application="test") as connection:
        assert await broken_invariants(connection) == []


async def test_a_commit_in_doubt_is_resent_identically_and_counts_once(
    ledger: LeasedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubts = 0

    @contextlib.asynccontextmanager
    async def doubtful(pool: Pool) -> AsyncGenerator[Connection]:
        """Every other COMMIT succeeds without anybody hearing of it."""
        nonlocal doubts
        async with transaction(pool) as connection:
            yield connection
        doubts += 1
        if doubts % 2:
            raise LedgerUnavailableError("connection lost in COMMIT")

    customer, worker = await funded(ledger, 1_000_000), uuid.uuid4()
    with monkeypatch.context() as patch:
        patch.setattr(module, "transaction", doubtful)
        requests = [hold_request(customer, 20_000) for _ in range(9)]
        holds = await asyncio.gather(*(ledger.hold(request) for request in requests))
        assert [hold.amount for hold in holds] == [Amount(20_000)] * 9
        ends = [settlement(request.job_id, customer, worker=worker) for request in requests[:5]]
        posted = [await ledger.settle(end) for end in ends]
        for request in requests[5:]:
            await ledger.void(request.job_id, customer)
        assert doubts >= 8
    spent = sum(answer.charge.nano for answer in posted)
    balance = await ledger.balance(customer)
    assert (balance.available.nano, balance.held.nano, balance.spent.nano) == (1_000_000 - spent, 0, spent)


class CutConnection:
    """Cuts the socket instead of sending its nth statement."""

    def __init__(self, connection: Connection, countdown: "itertools.count[int]", cut_at: int) -> None:
        self._connection = connection
        self._countdown = countdown
        self._cut_at = cut_at

    def __getattr__(self, name: str) -> object:
        call = getattr(self._connection, name)

        async def sent(*arguments: object) -> object:
            if next(self._countdown) == self._cut_at:
                self._connection.terminate()
            return await call(*arguments)

        return sent


@pytest.mark.parametrize("cut_at", range(14))
async def test_a_connection_cut_at_any_statement_changes_nothing(
    ledger: LeasedLedger, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    countdown = itertools.count()

    @contextlib.asynccontextmanager
    async def fragile(pool: Pool) -> AsyncGenerator[Connection]:
        async with transaction(pool) as connection:
            yield CutConnection(connection, countdown, cut_at)  # type: ignore[misc]

    customer = await funded(ledger, 100_000)
    with monkeypatch.context() as patch:
        patch.setattr(module, "transaction", fragile)
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        posted = await ledger.settle(settlement(request.job_id, customer, worker=uuid.uuid4()))
    assert next(countdown) > 14  # the cut lay within what was sent
    balance = await ledger.balance(customer)
    assert (balance.held, balance.spent) == (Amount(0), posted.charge)


async def test_without_a_database_warm_leases_admit_and_cold_ones_refuse(own_postgres: PostgresServer) -> None:
    async with open_pool(own_postgres.url(), application="test") as pool:
        async with leased_ledger(pool, own_postgres.url()) as ledger:
            warm, cold = await funded(ledger, 10**9), await funded(ledger)
            first = hold_request(warm, 20_000)
            await ledger.hold(first)
            await asyncio.to_thread(own_postgres.kill)
            second = hold_request(warm, 20_000)
            await ledger.hold(second)
            settling = asyncio.ensure_future(ledger.settle(settlement(second.job_id, warm)))
            async with asyncio.timeout(5):
                for call in (ledger.hold(hold_request(cold, 1)), ledger.balance(cold)):
                    with pytest.raises(LedgerUnavailableError):
                        await call
            assert not settling.done()  # nothing is said to be durable before it is
            assert ledger.backlog == 1
            await asyncio.to_thread(own_postgres.start)
            async with asyncio.timeout(60):
                assert (await settling).charge == Amount(COST)
                await ledger.void(first.job_id, warm)
        assert (await PostgresLedger(pool).balance(warm)).held == Amount(0)


@pytest.mark.parametrize(
    "damage",
    [{"model": "x" * 129}, {"finish_reason": "\x00"}, {"model": "\ud800"}, {"finish_reason": "y" * 65}],
    ids=repr,
)
async def test_a_row_that_the_store_refuses_is_quarantined_alone(
    ledger: LeasedLedger, database_url: str, damage: dict[str, Any]
) -> None:
    customer = await funded(ledger)
    requests = [hold_request(customer, 20_000) for _ in range(9)]
    await asyncio.gather(*(ledger.hold(request) for request in requests))
    ends = [settlement(request.job_id, customer) for request in requests]
    fields = {name: getattr(ends[4], name) for name in ends[4].__struct_fields__} | damage
    ends[4] = Settlement(**fields)
    answers = await asyncio.gather(*(ledger.settle(end) for end in ends), return_exceptions=True)
    assert [index for index, answer in enumerate(answers) if not isinstance(answer, Posted)] == [4]
    assert isinstance(answers[4], RecordRefusedError)
    [kept] = await rows(database_url, "SELECT job_id, reason FROM refused_usage")
    assert (kept["job_id"], kept["reason"]) == (requests[4].job_id, "record_refused")
    assert (await ledger.balance(customer)).held == Amount(0)


# Callers and processes


async def test_requests_whose_callers_vanish_reserve_nothing(ledger: LeasedLedger) -> None:
    dice = random.Random(11)
    customer = await funded(ledger)
    # Near zero every request waits for credit of its own.
    tasks = [asyncio.ensure_future(ledger.hold(hold_request(customer, 100))) for _ in range(200)]
    for task in tasks:
        for _ in range(dice.randrange(8)):
            await asyncio.sleep(0)
        if dice.random() < 0.7:
            task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert 0 < len(kept) < 200
    assert (await ledger.balance(customer)).held == Amount(100 * len(kept))


async def test_leaving_flushes_the_journal_and_returns_every_lease(pool: Pool, database_url: str) -> None:
    async with leased_ledger(pool, database_url) as ledger:
        customer = await funded(ledger)
        requests = [hold_request(customer, 20_000) for _ in range(20)]
        await asyncio.gather(*(ledger.hold(request) for request in requests))
        settling = [asyncio.ensure_future(ledger.settle(settlement(r.job_id, customer))) for r in requests]
        await asyncio.sleep(0)
    assert all(task.done() for task in settling)
    assert sum(task.result().charge.nano for task in settling) == -(-20 * 13_760_000_007 // 10**6)
    states = await rows(database_url, "SELECT DISTINCT state FROM leases")
    assert [row["state"] for row in states] == ["closed"]
    with pytest.raises(LedgerUnavailableError):
        await ledger.hold(hold_request(customer, 1))


async def test_idle_credit_of_one_process_pays_for_a_request_at_another(pool: Pool, database_url: str) -> None:
    # The first takes a quarter of what is left ahead of need, and keeps it for long.
    terms = LeaseTerms(headroom_min_nano=1, idle_s=3600)
    async with (
        leased_ledger(pool, database_url, terms=terms) as hoarder,
        leased_ledger(pool, database_url, terms=terms) as other,
    ):
        hoarder._holder, other._holder = "hoarder", "other"
        customer = await funded(hoarder, 1000)
        await hoarder.hold(hold_request(customer, 100))
        [lease] = await rows(database_url, "SELECT amount FROM leases")
        assert lease["amount"] > 100
        async with asyncio.timeout(60):
            hold = await other.hold(hold_request(customer, 900))
        assert hold.amount == Amount(900)
        assert (await hoarder.balance(customer)).available == Amount(0)
