"""Settlements are made once, whatever the ledger does meanwhile, and one's trouble is nobody else's."""

import asyncio
import datetime as dt
import random
import uuid
from collections.abc import AsyncIterator

import pytest

from billing.memory import InMemoryLedger
from billing.ports import (
    HoldClosedError,
    HoldRequest,
    LedgerUnavailableError,
    Outcome,
    Posted,
    RecordRefusedError,
    Settlement,
)
from cocoon.clock import ManualClock
from cocoon.ids import new_job_id
from cocoon.money import Amount, Price
from cocoon.usage import TokenUsage
from gateway import settle as module
from gateway.errors import OverloadedError
from gateway.settle import Settler
from tests.scripted_engine import until

CUSTOMER = uuid.UUID(int=5)
PRICE = Price(version=1, prompt=1_000_000, cached=0, completion=1_000_000)


class ShakyLedger(InMemoryLedger):
    """Fails as told, one failure a call, then works."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.failures: list[Exception] = []
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def settle(self, settlement: Settlement) -> Posted:
        self.asked += 1
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return await super().settle(settlement)

    async def void(self, job_id: uuid.UUID, customer_id: uuid.UUID) -> None:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        await super().void(job_id, customer_id)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ledger(clock: ManualClock) -> ShakyLedger:
    ledger = ShakyLedger(clock)
    await ledger.deposit(new_job_id(clock, random.Random(1)), CUSTOMER, Amount(1000))
    return ledger


@pytest.fixture
async def settler(ledger: ShakyLedger, clock: ManualClock) -> AsyncIterator[Settler]:
    async with Settler(ledger, clock) as settler:
        yield settler


async def held(ledger: ShakyLedger, clock: ManualClock, seed: int = 2, tokens: int = 10) -> Settlement:
    """A hold of 10, and a settlement against it."""
    job_id = new_job_id(clock, random.Random(seed))
    await ledger.hold(
        HoldRequest(job_id=job_id, customer_id=CUSTOMER, amount_min=Amount(10), amount_max=Amount(10), ttl_s=900)
    )
    return Settlement(
        job_id=job_id, attempt=0, customer_id=CUSTOMER, key_id=uuid.UUID(int=1), worker_id=None, model="m",
        price=PRICE, usage=TokenUsage(completion=tokens), outcome=Outcome.COMPLETED, finish_reason="stop",
        started_at=clock.now(), first_token_at=None, ended_at=clock.now() + dt.timedelta(seconds=1),
    )  # fmt: skip


async def money(ledger: ShakyLedger) -> tuple[int, int, int]:
    balance = await ledger.balance(CUSTOMER)
    return balance.available.nano, balance.held.nano, balance.spent.nano


async def test_a_ledger_that_comes_back_is_told_again_and_charges_once(
    settler: Settler, ledger: ShakyLedger, clock: ManualClock
) -> None:
    told: list[Posted | None] = []
    settlement = await held(ledger, clock)
    ledger.failures = [LedgerUnavailableError(), LedgerUnavailableError()]
    settler.submit(settlement, told.append)
    assert await settler.drain(5)
    assert await money(ledger) == (990, 0, 10)
    assert [posted.charge.nano for posted in told if posted] == [10]


@pytest.mark.parametrize("error", [RecordRefusedError(), HoldClosedError(), RuntimeError("bug")])
async def test_a_charge_that_is_refused_for_good_gives_the_credit_back(
    settler: Settler, ledger: ShakyLedger, clock: ManualClock, error: Exception
) -> None:
    told: list[Posted | None] = []
    settlement = await held(ledger, clock)
    ledger.failures = [error, LedgerUnavailableError()]
    settler.submit(settlement, told.append)
    assert await settler.drain(5)
    assert await money(ledger) == (1000, 0, 0)
    assert told == [None]


async def test_a_charge_above_its_hold_is_refused_and_gives_the_credit_back(
    settler: Settler, ledger: ShakyLedger, clock: ManualClock
) -> None:
    settler.submit(await held(ledger, clock, tokens=11), lambda _: None)
    assert await settler.drain(5)
    assert await money(ledger) == (1000, 0, 0)


async def test_a_charge_that_was_made_already_stays(settler: Settler, ledger: ShakyLedger, clock: ManualClock) -> None:
    settlement = await held(ledger, clock)
    await ledger.settle(settlement)
    settler.submit(settlement, lambda _: None)
    settler.submit_void(settlement.job_id, CUSTOMER)
    assert await settler.drain(5)
    assert await money(ledger) == (990, 0, 10)


async def test_a_listener_that_fails_takes_no_other_settlement_with_it(
    settler: Settler, ledger: ShakyLedger, clock: ManualClock
) -> None:
    def fail(_: Posted | None) -> None:
        raise RuntimeError("tracing is broken")

    ledger.gate.clear()
    for seed in range(2, 6):
        settler.submit(await held(ledger, clock, seed), fail)
    ledger.gate.set()
    assert await settler.drain(5)
    settler.submit(await held(ledger, clock, 6), fail)
    assert await settler.drain(5)
    assert await money(ledger) == (950, 0, 50)


async def test_what_the_ledger_does_not_answer_in_time_is_given_up_at_the_end(
    ledger: ShakyLedger, clock: ManualClock
) -> None:
    async with Settler(ledger, clock) as settler:
        ledger.gate.clear()
        settler.submit(await held(ledger, clock), lambda _: None)
        assert not await settler.drain(0.01)
    assert settler.pending == 0
    # Too late is too late, but it is no crash: the hold expires.
    settler.submit(await held(ledger, clock, 3), lambda _: None)
    settler.submit_void(new_job_id(clock, random.Random(4)), CUSTOMER)
    assert settler.pending == 0
    assert (await money(ledger))[1] == 20
    clock.advance(901)
    assert await ledger.expire_due(10) == 2
    assert await money(ledger) == (1000, 0, 0)


async def test_a_ledger_away_for_too_long_leaves_the_hold_to_expire(
    settler: Settler, ledger: ShakyLedger, clock: ManualClock
) -> None:
    settlement = await held(ledger, clock)
    ledger.gate.clear()
    settler.submit(settlement, lambda _: None)
    await until(lambda: ledger.asked)
    clock.advance(module.SETTLE_S_MAX)
    ledger.failures = [LedgerUnavailableError()]
    ledger.gate.set()
    assert await settler.drain(5)
    assert await money(ledger) == (990, 10, 0)


async def test_nothing_is_admitted_while_too_much_waits(
    settler: Settler, ledger: ShakyLedger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PENDING_MAX", 2)
    ledger.gate.clear()
    for seed in (2, 3):
        settler.require_room()
        settler.submit(await held(ledger, clock, seed), lambda _: None)
    with pytest.raises(OverloadedError):
        settler.require_room()
    ledger.gate.set()
    assert await settler.drain(5)
    settler.require_room()


class Journaling(ShakyLedger):
    """A ledger that takes settlements in at once; its rows are durable, or refused, when told."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.taken: list[asyncio.Future[Posted]] = []
        self.full = False

    def submit(self, settlement: Settlement) -> "asyncio.Future[Posted]":
        if self.full:
            raise LedgerUnavailableError
        self.taken.append(asyncio.get_running_loop().create_future())
        return self.taken[-1]


@pytest.fixture
async def journaling(clock: ManualClock) -> AsyncIterator[tuple[Journaling, Settler]]:
    ledger = Journaling(clock)
    await ledger.deposit(new_job_id(clock, random.Random(1)), CUSTOMER, Amount(1000))
    async with Settler(ledger, clock, ledger) as settler:
        yield ledger, settler


POSTED = Posted(charge=Amount(10), worker_share=Amount(0), fee=Amount(10))


async def test_what_the_journal_takes_in_is_pending_until_it_is_durable(
    journaling: tuple[Journaling, Settler], clock: ManualClock
) -> None:
    ledger, settler = journaling
    heard: list[Posted | None] = []
    settler.submit(await held(ledger, clock), heard.append)
    assert settler.pending == 1
    ledger.taken[0].set_result(POSTED)

    assert await settler.drain(5)
    assert (heard, ledger.asked, settler.pending) == ([POSTED], 0, 0)


async def test_a_full_journal_leaves_the_settlement_to_the_ledger(
    journaling: tuple[Journaling, Settler], clock: ManualClock
) -> None:
    ledger, settler = journaling
    ledger.full = True
    heard: list[Posted | None] = []
    settler.submit(await held(ledger, clock), heard.append)

    assert await settler.drain(5)
    assert [posted.charge for posted in heard if posted] == [Amount(10)]


async def test_a_row_that_the_journal_fails_is_put_to_the_ledger_and_never_counts_as_settled_meanwhile(
    journaling: tuple[Journaling, Settler], clock: ManualClock
) -> None:
    ledger, settler = journaling
    heard: list[Posted | None] = []
    settler.submit(await held(ledger, clock), heard.append)
    drained = asyncio.create_task(settler.drain(5))
    await asyncio.sleep(0)
    ledger.gate.clear()
    ledger.taken[0].set_exception(RecordRefusedError())
    await until(lambda: ledger.asked == 1)
    assert not drained.done()
    assert settler.pending == 1
    ledger.gate.set()

    assert await drained
    assert [posted.charge for posted in heard if posted] == [Amount(10)]


async def test_whoever_hears_of_a_journaled_row_may_fail(
    journaling: tuple[Journaling, Settler], clock: ManualClock
) -> None:
    ledger, settler = journaling

    def deaf(_: Posted | None) -> None:
        raise RuntimeError("the exporter")

    settler.submit(await held(ledger, clock), deaf)
    ledger.taken[0].set_result(POSTED)

    assert await settler.drain(5)
