"""Cut connections, killed servers, vanished callers, bad members: nothing is lost and nothing happens twice."""

import asyncio
import contextlib
import itertools
import random
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from billing.ports import (
    HoldRequest,
    InsufficientCreditError,
    LedgerUnavailableError,
    Outcome,
    RecordRefusedError,
    Settlement,
)
from billing.postgres import ledger as module
from billing.postgres.check import broken_invariants
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool, connect, open_pool, transaction
from cocoon.money import Amount
from tests.fixtures_postgres import PostgresServer
from tests.ledger_values import hold_request, job_id, settlement

T = TypeVar("T")
DEPOSIT = 10_000_000


async def funded(ledger: PostgresLedger, nano: int = DEPOSIT) -> uuid.UUID:
    customer = uuid.uuid4()
    await ledger.deposit(job_id(), customer, Amount(nano))
    return customer


async def persistently(call: Callable[[], Awaitable[T]]) -> T:
    """What the gateway does: the same call with the same ids until the ledger answers."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except LedgerUnavailableError:
                await asyncio.sleep(0.02)


@contextlib.contextmanager
def replaced_transaction(monkeypatch: pytest.MonkeyPatch, replacement: object) -> Generator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(module, "transaction", replacement)
        yield


async def test_a_commit_in_doubt_is_resent_and_counts_once(
    ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch
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

    customer, worker = await funded(ledger, 100_000), uuid.uuid4()
    with replaced_transaction(monkeypatch, doubtful):
        requests = [hold_request(customer, 20_000) for _ in range(3)]
        holds = await asyncio.gather(*(ledger.hold(request) for request in requests))
        assert [hold.amount for hold in holds] == [Amount(20_000)] * 3
        ends = [settlement(request.job_id, customer, worker=worker) for request in requests[:2]]
        posted = await asyncio.gather(*(ledger.settle(end) for end in ends))
        await ledger.void(requests[2].job_id, customer)
        await ledger.deposit(job_id(), customer, Amount(1))
        assert doubts >= 8
    spent = sum(answer.charge.nano for answer in posted)
    balance = await ledger.balance(customer)
    assert (balance.available.nano, balance.held.nano, balance.spent.nano) == (100_001 - spent, 0, spent)


class CutConnection:
    """Cuts the socket instead of sending its nth statement."""

    def __init__(self, connection: Connection, countdown: "itertools.count[int]", cut_at: int) -> None:
        self._connection = connection
        self._countdown = countdown
        self._cut_at = cut_at

    async def fetch(self, query: str, *args: object) -> object:
        self._maybe_cut()
        return await self._connection.fetch(query, *args)

    async def execute(self, query: str, *args: object) -> object:
        self._maybe_cut()
        return await self._connection.execute(query, *args)

    def _maybe_cut(self) -> None:
        if next(self._countdown) == self._cut_at:
            self._connection.terminate()


@pytest.mark.parametrize("cut_at", range(12))
async def test_a_connection_cut_at_any_statement_changes_nothing(
    ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    countdown = itertools.count()

    @contextlib.asynccontextmanager
    async def fragile(pool: Pool) -> AsyncGenerator[Connection]:
        async with transaction(pool) as connection:
            yield CutConnection(connection, countdown, cut_at)  # type: ignore[misc]

    customer = await funded(ledger, 100_000)
    with replaced_transaction(monkeypatch, fragile):
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        posted = await ledger.settle(settlement(request.job_id, customer, worker=uuid.uuid4()))
    assert next(countdown) > 12  # the cut lay within what was sent
    balance = await ledger.balance(customer)
    assert (balance.held, balance.spent) == (Amount(0), posted.charge)


async def test_a_killed_server_loses_nothing_and_doubles_nothing(own_postgres: PostgresServer) -> None:
    dice = random.Random(7)
    async with open_pool(own_postgres.url(), application="test") as pool, PostgresLedger(pool) as ledger:
        customers = [await funded(ledger) for _ in range(3)]
        workers = [uuid.uuid4() for _ in range(3)]
        ended: list[tuple[HoldRequest, Settlement | None, int]] = []

        async def one_job(number: int) -> None:
            request = hold_request(customers[number % 3], 20_000)
            await persistently(lambda: ledger.hold(request))
            if number % 7 == 0:
                await persistently(lambda: ledger.void(request.job_id, request.customer_id))
                ended.append((request, None, 0))
                return
            outcome = dice.choice(list(Outcome))
            end = settlement(request.job_id, request.customer_id, worker=workers[number % 2], outcome=outcome)
            posted = await persistently(lambda: ledger.settle(end))
            ended.append((request, end, posted.charge.nano))

        async def stream(first: int) -> None:
            for number in range(first, 480, 24):
                await one_job(number)

        async def kill_now_and_then() -> None:
            for _ in range(4):
                done = len(ended)
                async with asyncio.timeout(60):
                    while len(ended) < done + 40:  # noqa: ASYNC110  at a random moment, not at an event
                        await asyncio.sleep(dice.random() / 500)
                await asyncio.to_thread(own_postgres.kill)
                await asyncio.to_thread(own_postgres.start)

        with capture_logs() as logs:
            async with asyncio.TaskGroup() as group:
                group.create_task(kill_now_and_then())
                for first in range(24):
                    group.create_task(stream(first))
        assert len(ended) == 480
        assert sum(entry["event"] == "ledger_batch_resent" for entry in logs) >= 4  # the kills did hit batches
        replayed = [await persistently(lambda e=end: ledger.settle(e)) for _, end, _ in ended[:20] if end is not None]
        assert [posted.charge.nano for posted in replayed] == [c for _, end, c in ended[:20] if end is not None]
        for customer in customers:
            spent = sum(charge for request, _, charge in ended if request.customer_id == customer)
            balance = await ledger.balance(customer)
            assert (balance.spent.nano, balance.held.nano) == (spent, 0)
            assert balance.available.nano == DEPOSIT - spent
    async with connect(own_postgres.url(), application="test") as connection:
        assert await broken_invariants(connection) == []


async def test_without_a_server_callers_hear_soon_and_work_goes_on_after(own_postgres: PostgresServer) -> None:
    async with open_pool(own_postgres.url(), application="test") as pool, PostgresLedger(pool) as ledger:
        customer = await funded(ledger)
        await asyncio.to_thread(own_postgres.kill)
        async with asyncio.timeout(5):
            for call in (ledger.hold(hold_request(customer, 1)), ledger.balance(customer)):
                with pytest.raises(LedgerUnavailableError):
                    await call
        await asyncio.to_thread(own_postgres.start)
        assert (await persistently(lambda: ledger.hold(hold_request(customer, 1)))).amount == Amount(1)


async def test_holds_whose_callers_vanish_are_released(ledger: PostgresLedger, connection: Connection) -> None:
    customer = await funded(ledger)
    dice = random.Random(11)
    tasks = [asyncio.ensure_future(ledger.hold(hold_request(customer, 100))) for _ in range(200)]
    for task in tasks:
        for _ in range(dice.randrange(8)):
            await asyncio.sleep(0)
        if dice.random() < 0.7:
            task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert 0 < len(kept) < 200
    async with asyncio.timeout(60):
        while (await ledger.balance(customer)).held != Amount(100 * len(kept)):  # noqa: ASYNC110  polls a database
            await asyncio.sleep(0.01)
    assert await connection.fetchval("SELECT count(*) FROM open_holds") == len(kept)


async def test_leaving_the_context_finishes_what_waits(pool: Pool, connection: Connection) -> None:
    async with PostgresLedger(pool) as ledger:
        customer = await funded(ledger)
        requests = [hold_request(customer, 20_000) for _ in range(20)]
        await asyncio.gather(*(ledger.hold(request) for request in requests))
        settling = [asyncio.ensure_future(ledger.settle(settlement(r.job_id, customer))) for r in requests]
        await asyncio.sleep(0)
    assert all(task.done() for task in settling)
    assert {(await task).charge.nano for task in settling} <= {13_760, 13_761}
    assert await connection.fetchval("SELECT count(*) FROM open_holds") == 0
    with pytest.raises(LedgerUnavailableError):
        await ledger.hold(hold_request(customer, 1))


@pytest.mark.parametrize(
    "damage",
    [{"model": "x" * 129}, {"finish_reason": "\x00"}, {"model": "\ud800"}, {"finish_reason": "y" * 65}],
    ids=repr,
)
async def test_a_record_that_the_store_refuses_is_refused_alone(ledger: PostgresLedger, damage: dict[str, Any]) -> None:
    customer = await funded(ledger)
    requests = [hold_request(customer, 20_000) for _ in range(9)]
    await asyncio.gather(*(ledger.hold(request) for request in requests))
    ends = [settlement(request.job_id, customer) for request in requests]
    fields = {name: getattr(ends[4], name) for name in ends[4].__struct_fields__} | damage
    ends[4] = Settlement(**fields)
    answers = await asyncio.gather(*(ledger.settle(end) for end in ends), return_exceptions=True)
    assert [index for index, answer in enumerate(answers) if isinstance(answer, BaseException)] == [4]
    assert isinstance(answers[4], RecordRefusedError)
    assert (await ledger.balance(customer)).held == Amount(20_000)


async def test_a_job_of_a_day_without_partition_is_refused_alone(ledger: PostgresLedger) -> None:
    customer = await funded(ledger)
    ancient = HoldRequest(
        job_id=uuid.UUID(int=7 << 76 | 2 << 62),
        customer_id=customer,
        amount_min=Amount(1),
        amount_max=Amount(1),
        ttl_s=9,
    )
    answers = await asyncio.gather(
        ledger.hold(hold_request(customer, 5)), ledger.hold(ancient), ledger.hold(hold_request(customer, 6)),
        return_exceptions=True,
    )  # fmt: skip
    assert [type(answer).__name__ for answer in answers] == ["Hold", "RecordRefusedError", "Hold"]
    assert (await ledger.balance(customer)).held == Amount(11)


async def test_replicas_never_overspend_one_customer(database_url: str, connection: Connection) -> None:
    async with contextlib.AsyncExitStack() as stack:
        replicas: list[PostgresLedger] = []
        for _ in range(3):
            pool = await stack.enter_async_context(open_pool(database_url, application="test", connections_max=3))
            replicas.append(await stack.enter_async_context(PostgresLedger(pool)))
        customers = [await funded(replicas[0], 300_000) for _ in range(2)]
        worker = uuid.uuid4()

        async def one_job(number: int) -> bool:
            ledger, customer = replicas[number % 3], customers[number // 3 % 2]
            request = hold_request(customer, 20_000)
            try:
                await ledger.hold(request)
            except InsufficientCreditError:
                return False
            # Settled by another replica than the one that held.
            await replicas[(number + 1) % 3].settle(settlement(request.job_id, customer, worker=worker))
            return True

        async def sweep() -> None:
            for _ in range(20):
                await replicas[0].expire_due(10)

        served, _ = await asyncio.gather(asyncio.gather(*(one_job(number) for number in range(90))), sweep())
        assert 0 < sum(served) < 90
        for customer in customers:
            balance = await replicas[0].balance(customer)
            assert balance.held == Amount(0)
            assert balance.available.nano + balance.spent.nano == 300_000
    assert await broken_invariants(connection) == []
