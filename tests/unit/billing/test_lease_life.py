"""How a process deals with its leases: when it asks the store, and when it does not."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from billing import leases as module
from billing.lease_book import LeaseTerms
from billing.lease_store import JournalRow, LeaseAnswer, LeaseChange
from billing.leases import LeasedLedger
from billing.memory_leases import InMemoryLeases
from billing.ports import BillingError, InsufficientCreditError, LedgerUnavailableError, Outcome, Posted
from cocoon.clock import ManualClock
from cocoon.money import Amount
from cocoon.usage import TokenUsage
from tests.ledger_values import CLOCK, DICE, hold_request, job_id, settlement

TERMS = LeaseTerms(ttl_s=60, margin_s=5, idle_s=10, headroom_min_nano=1000, headroom_max_nano=100_000)


class WatchedLeases(InMemoryLeases):
    """Remembers what was asked, and can be away."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.asked: list[LeaseChange] = []
        self.flushes = 0
        self.away = False
        self.flushing = asyncio.Event()
        self.flushing.set()

    async def change(self, changes: Sequence[LeaseChange]) -> list[LeaseAnswer | BillingError]:
        self._require_reachable()
        self.asked += changes
        return await super().change(changes)

    async def flush(self, rows: Sequence[JournalRow]) -> list[Posted | BillingError]:
        self._require_reachable()
        self.flushes += 1
        await self.flushing.wait()
        return await super().flush(rows)

    def _require_reachable(self) -> None:
        if self.away:
            raise LedgerUnavailableError


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(CLOCK.now())


@pytest.fixture
def store(clock: ManualClock) -> WatchedLeases:
    return WatchedLeases(clock)


@pytest.fixture
async def ledger(store: WatchedLeases, clock: ManualClock) -> AsyncIterator[LeasedLedger]:
    async with LeasedLedger(store, store, clock, DICE, holder="test", terms=TERMS, linger_s=0) as opened:
        yield opened


async def funded(store: InMemoryLeases, nano: int = 10_000_000) -> uuid.UUID:
    customer = uuid.uuid4()
    await store.deposit(job_id(), customer, Amount(nano))
    return customer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  the condition is anything
            await asyncio.sleep(0.001)


async def held_and_available(store: InMemoryLeases, customer: uuid.UUID) -> tuple[int, int]:
    balance = await store.balance(customer)
    return balance.held.nano, balance.available.nano


async def test_a_warm_lease_admits_releases_and_settles_without_asking(
    store: WatchedLeases, ledger: LeasedLedger
) -> None:
    customer = await funded(store)
    await ledger.hold(hold_request(customer, 100))
    asked, store.away = len(store.asked), True
    for _ in range(4):
        request = hold_request(customer, 100)
        await ledger.hold(request)
        await ledger.void(request.job_id, customer)
    assert len(store.asked) == asked
    store.away = False


async def test_a_lease_grows_ahead_of_running_dry_while_requests_go_on(
    store: WatchedLeases, ledger: LeasedLedger
) -> None:
    customer = await funded(store)
    for _ in range(50):
        await ledger.hold(hold_request(customer, 100))
        await asyncio.sleep(0)
    await until(lambda: ledger._book.purses and not ledger._book.due)
    # 5,000 nano in steps of about half the target, not one call for each request.
    assert 2 <= len(store.asked) <= 15
    assert all(change.need_nano == 0 for change in store.asked[1:])


async def test_admission_stops_before_the_store_could_end_the_lease(
    store: WatchedLeases, ledger: LeasedLedger, clock: ManualClock
) -> None:
    customer = await funded(store)
    await ledger.hold(hold_request(customer, 100))
    clock.advance(54.9)
    await ledger.hold(hold_request(customer, 100))
    asked = len(store.asked)
    clock.advance(0.2)
    await ledger.hold(hold_request(customer, 100))
    assert len(store.asked) == asked + 1
    store.away = True
    clock.advance(55)
    with pytest.raises(LedgerUnavailableError):
        await ledger.hold(hold_request(customer, 100))
    store.away = False


async def test_a_lease_is_renewed_while_a_request_runs_on_it(
    store: WatchedLeases, ledger: LeasedLedger, clock: ManualClock
) -> None:
    customer = await funded(store)
    request = hold_request(customer, 100)
    hold = await ledger.hold(request)
    for _ in range(4):
        clock.advance(31)
        ledger.tick(clock.monotonic(), 31)
        await until(lambda: not ledger._book.due)
        assert await store.sweep(10, 900) == 0
    assert {change.lease_id for change in store.asked} == {hold.lease_id}
    await ledger.void(request.job_id, customer)


async def test_what_is_idle_goes_back_and_the_lease_ends_when_nothing_depends_on_it(
    store: WatchedLeases, ledger: LeasedLedger, clock: ManualClock
) -> None:
    customer = await funded(store)
    request = hold_request(customer, 100)
    await ledger.hold(request)
    clock.advance(11)
    ledger.tick(clock.monotonic(), 11)
    await until(lambda: store.asked[-1].give_back_nano)
    assert await held_and_available(store, customer) == (100, 9_999_900)
    await ledger.void(request.job_id, customer)
    ledger.tick(clock.monotonic(), 0.5)
    await until(lambda: store.asked[-1].close)
    assert await held_and_available(store, customer) == (0, 10_000_000)
    await ledger.hold(hold_request(customer, 100))
    assert store.asked[-1].seq == 1


async def test_a_lease_outlives_the_rows_that_cost_nothing(
    store: WatchedLeases, ledger: LeasedLedger, clock: ManualClock
) -> None:
    customer = await funded(store)
    request = hold_request(customer, 100)
    await ledger.hold(request)
    store.flushing.clear()
    settling = asyncio.ensure_future(
        ledger.settle(settlement(request.job_id, customer, usage=TokenUsage(), outcome=Outcome.BROKEN))
    )
    await until(lambda: store.flushes)
    clock.advance(11)
    ledger.tick(clock.monotonic(), 11)
    await until(lambda: not ledger._book.due)
    assert not any(change.close for change in store.asked)
    store.flushing.set()
    assert (await settling).charge == Amount(0)
    ledger.tick(clock.monotonic(), 0.5)
    await until(lambda: store.asked[-1].close)


async def test_the_balance_counts_what_this_process_has_idle_as_available(
    store: WatchedLeases, ledger: LeasedLedger
) -> None:
    customer = await funded(store)
    await ledger.hold(hold_request(customer, 100))
    assert (await held_and_available(store, customer))[0] > 100
    balance = await ledger.balance(customer)
    assert (balance.available.nano, balance.held.nano) == (9_999_900, 100)


async def test_a_lease_that_was_swept_pays_for_what_runs_and_is_replaced(
    store: WatchedLeases, ledger: LeasedLedger, clock: ManualClock
) -> None:
    customer = await funded(store)
    running = hold_request(customer, 20_000)
    first = await ledger.hold(running)
    clock.advance(61)
    assert await store.sweep(10, 900) == 1
    second = await ledger.hold(hold_request(customer, 20_000))
    assert second.lease_id != first.lease_id
    assert (await ledger.settle(settlement(running.job_id, customer))).charge == Amount(13_761)


async def test_admission_stops_while_the_journal_might_overflow(
    store: WatchedLeases, ledger: LeasedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JOURNAL_ROWS_MAX", 3)
    customer = await funded(store)
    requests = [hold_request(customer, 20_000) for _ in range(3)]
    for request in requests:
        await ledger.hold(request)
    store.away = True
    settling = [asyncio.ensure_future(ledger.settle(settlement(r.job_id, customer))) for r in requests[:2]]
    await asyncio.sleep(0)
    with pytest.raises(LedgerUnavailableError):
        await ledger.hold(hold_request(customer, 1))
    store.away = False
    await asyncio.gather(*settling)
    await ledger.hold(hold_request(customer, 1))


async def test_settlements_that_come_together_are_flushed_together(store: WatchedLeases, clock: ManualClock) -> None:
    async with LeasedLedger(store, store, clock, DICE, holder="test", terms=TERMS, linger_s=0.005) as ledger:
        customer = await funded(store)
        requests = [hold_request(customer, 20_000) for _ in range(40)]
        await asyncio.gather(*(ledger.hold(request) for request in requests))
        await asyncio.gather(*(ledger.settle(settlement(request.job_id, customer)) for request in requests))
    assert store.flushes == 1


async def test_a_dead_holder_makes_a_refusal_late_but_certain(store: WatchedLeases, clock: ManualClock) -> None:
    customer = await funded(store, 1000)
    dead = LeaseChange(
        lease_id=job_id(), customer_id=customer, asset=Amount(0).asset, holder="dead", seq=1, ttl_s=60,
        need_min_nano=700, need_nano=700,
    )  # fmt: skip
    await store.change([dead])
    terms = LeaseTerms(recall_s_max=0.05, headroom_min_nano=1000)
    async with LeasedLedger(store, store, CLOCK, DICE, holder="test", terms=terms, linger_s=0) as ledger:
        assert (await ledger.hold(hold_request(customer, 100, 5000))).amount == Amount(300)
        with pytest.raises(InsufficientCreditError):
            await ledger.hold(hold_request(customer, 1))
        clock.advance(61)
        assert await store.sweep(10, 900) == 2


async def test_the_facts_show_a_journal_that_waits_and_what_became_of_its_rows(
    ledger: LeasedLedger, store: WatchedLeases, clock: ManualClock
) -> None:
    customer = uuid.uuid4()
    await store.deposit(job_id(), customer, Amount(10**6))
    requests = [hold_request(customer, 20_000) for _ in range(3)]
    for request in requests:
        await ledger.hold(request)
    facts = ledger.facts
    assert (facts.holds, facts.leases, facts.rows_waiting, facts.waiting_s) == (3, 1, 0, 0.0)
    store.away = True
    settling = asyncio.ensure_future(ledger.settle(settlement(requests[0].job_id, customer)))
    await until(lambda: ledger.facts.resends > 0)
    clock.advance(7)
    facts = ledger.facts
    assert (facts.rows_waiting, facts.waiting_s, facts.rows_flushed) == (1, 7.0, 0)
    assert facts.rows_room == module.JOURNAL_ROWS_MAX - 3
    store.away = False
    await settling
    facts = ledger.facts
    assert (facts.rows_waiting, facts.waiting_s, facts.flush_ms) == (0, 0.0, 7000.0)
    assert (facts.rows_flushed, facts.rows_quarantined, facts.holds) == (1, 0, 2)
