"""The Postgres ledger against the model, step by step, on a real server: same answers, same balances, sound books."""

import asyncio
import collections
import datetime as dt
import threading
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from billing.memory import InMemoryLedger
from billing.ports import BillingError, Hold, HoldRequest, Outcome, Settlement
from billing.postgres.check import broken_invariants
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, connect, open_pool
from cocoon.clock import ManualClock
from cocoon.money import Amount, Price
from cocoon.usage import TokenUsage
from tests.fixtures_postgres import PostgresServer, cloned_database
from tests.ledger_values import CLOCK, hold_request, job_id, settlement

T = TypeVar("T")

CUSTOMERS = [uuid.UUID(int=0xC0 + n) for n in range(2)]
STRANGER = uuid.UUID(int=0xFF)
WORKERS = [uuid.UUID(int=0xA0 + n) for n in range(2)]
PRICES = [
    Price(version=1, prompt=333_333, cached=33_333, completion=777_777, share_bps=9_500),
    Price(version=2, prompt=1_000_001, cached=0, completion=2_500_000, share_bps=3_333),
    Price(version=4, prompt=333_333, cached=33_333, completion=777_777, share_bps=9_500, customer_bps=9_501),
    Price(version=5, prompt=1_000_001, cached=7, completion=2_500_000, share_bps=3_333, customer_bps=12_345),
    Price(version=3, prompt=0, cached=0, completion=0, share_bps=10_000),
]

SEEN: "collections.Counter[str]" = collections.Counter()
"""How often each call was answered in which way: a machine that never gets anywhere proves nothing."""
LONG_AGO = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)

amounts = st.integers(0, 60)
usages = st.builds(
    lambda prompt, cached, completion: TokenUsage(prompt=prompt, cached=min(prompt, cached), completion=completion),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 15),
)


class LoopThread:
    """An event loop in a thread of its own, for a machine whose steps are synchronous."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def answered(call: Coroutine[None, None, object]) -> object:
    """The answer, or the type of the refusal."""
    try:
        return await call
    except BillingError as error:
        return type(error)


class Books:
    """The real ledger and its model, driven with the same calls. Entered and left in one task."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self.clock = ManualClock(CLOCK.now())
        self.model = InMemoryLedger(self.clock)
        self.opened = asyncio.Event()
        self.leave = asyncio.Event()
        self.real: PostgresLedger
        self.connection: Connection

    async def serve(self) -> None:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(open_pool(self._database_url, application="test"))
            self.connection = await stack.enter_async_context(connect(self._database_url, application="test"))
            self.real = await stack.enter_async_context(PostgresLedger(pool))
            self.opened.set()
            await self.leave.wait()


class LedgerMachine(RuleBasedStateMachine):
    """Bound to a server by a subclass."""

    server: ClassVar[PostgresServer]
    template: ClassVar[str]
    loop: ClassVar[LoopThread]
    holds = Bundle("holds")
    ends = Bundle("ends")
    deposits = Bundle("deposits")

    def __init__(self) -> None:
        super().__init__()
        self._database = cloned_database(self.server, self.template)
        self._books = Books(self._database.__enter__())
        self._serving = asyncio.run_coroutine_threadsafe(self._books.serve(), self.loop._loop)
        self.loop.run(self._books.opened.wait())
        self._age_s = 0

    def teardown(self) -> None:
        self.loop._loop.call_soon_threadsafe(self._books.leave.set)
        self._serving.result(60)
        self._database.__exit__(None, None, None)

    def _same(self, *calls: "tuple[str, tuple[object, ...]]") -> list[object]:
        """Make the calls: all at once on the real ledger, one after the other on the model; compare answers."""

        async def both() -> tuple[Sequence[object], Sequence[object]]:
            real = await asyncio.gather(*(answered(getattr(self._books.real, n)(*a)) for n, a in calls))
            model = [await answered(getattr(self._books.model, n)(*a)) for n, a in calls]
            return real, model

        real, model = self.loop.run(both())
        for (name, _), answer in zip(calls, model, strict=True):
            SEEN.update([f"{name}: {answer.__name__ if isinstance(answer, type) else type(answer).__name__}"])
        assert list(real) == list(model)
        return list(real)

    @initialize(target=deposits)
    def fund(self) -> object:
        funded = [(job_id(), customer, Amount(300)) for customer in CUSTOMERS]
        self._same(*(("deposit", arguments) for arguments in funded))
        return multiple(*funded)

    @rule(target=deposits, customer=st.sampled_from(CUSTOMERS), nano=st.integers(1, 120))
    def deposit(self, customer: uuid.UUID, nano: int) -> object:
        arguments = (job_id(), customer, Amount(nano))
        self._same(("deposit", arguments))
        return arguments

    @rule(first=deposits, more=st.integers(0, 1))
    def deposit_again(self, first: "tuple[uuid.UUID, uuid.UUID, Amount]", more: int) -> None:
        self._same(("deposit", (first[0], first[1], first[2] + Amount(more))))

    @rule(
        target=holds,
        wanted=st.lists(
            st.tuples(st.sampled_from([*CUSTOMERS, *CUSTOMERS, STRANGER]), amounts, amounts), min_size=1, max_size=4
        ),
    )
    def hold(self, wanted: "list[tuple[uuid.UUID, int, int]]") -> object:
        requests = [hold_request(customer, least, least + more) for customer, least, more in wanted]
        answers = self._same(*(("hold", (request,)) for request in requests))
        granted = zip(requests, answers, strict=True)
        return multiple(*(request for request, answer in granted if isinstance(answer, Hold)))

    @rule(request=holds, more=st.integers(0, 1))
    def hold_again(self, request: HoldRequest, more: int) -> None:
        changed = HoldRequest(
            job_id=request.job_id,
            customer_id=request.customer_id,
            amount_min=request.amount_min,
            amount_max=request.amount_max + Amount(more),
            ttl_s=request.ttl_s,
        )
        self._same(("hold", (changed,)), ("hold", (changed,)))

    @rule(
        target=ends,
        wanted=st.lists(
            st.tuples(
                holds,
                usages,
                st.sampled_from([*WORKERS, None]),
                st.sampled_from(Outcome),
                st.sampled_from(PRICES),
                st.integers(0, 1),
            ),
            min_size=1,
            max_size=5,
        ),
        voids_too=st.booleans(),
    )
    def settle(
        self,
        wanted: "list[tuple[HoldRequest, TokenUsage, uuid.UUID | None, Outcome, Price, int]]",
        *,
        voids_too: bool,
    ) -> object:
        ended = [
            settlement(
                request.job_id,
                request.customer_id,
                worker=worker,
                usage=usage,
                outcome=outcome,
                price=price,
                attempt=attempt,
            )
            for request, usage, worker, outcome, price, attempt in wanted
        ]
        voids = [("void", (end.job_id, end.customer_id)) for end in ended if voids_too]
        self._same(*(("settle", (end,)) for end in ended), *voids)
        return multiple(*ended)

    @rule(again=st.lists(ends, min_size=1, max_size=3))
    def settle_again(self, again: "list[Settlement]") -> None:
        self._same(*(("settle", (end,)) for end in again))

    @rule(end=ends, customer=st.sampled_from([*CUSTOMERS, STRANGER]))
    def settle_for_another(self, end: Settlement, customer: uuid.UUID) -> None:
        self._same(("settle", (settlement(end.job_id, customer, usage=end.usage, finish_reason="length"),)))

    @rule(first=holds, second=holds, customer=st.sampled_from([*CUSTOMERS, None]), end=ends)
    def void_among_settlements(
        self, first: HoldRequest, second: HoldRequest, customer: uuid.UUID | None, end: Settlement
    ) -> None:
        self._same(
            ("void", (first.job_id, customer or first.customer_id)),
            ("settle", (end,)),
            ("void", (second.job_id, second.customer_id)),
        )

    @rule(request=holds)
    def make_overdue(self, request: HoldRequest) -> None:
        """Every hold gets an age of its own, so that both sides expire in the same order."""
        self._age_s += 1
        record = self._books.model._holds.get(request.job_id)
        if record is not None:
            record.expires_at = LONG_AGO + dt.timedelta(seconds=self._age_s)
        self.loop.run(
            self._books.connection.execute(
                "UPDATE open_holds SET expires_at = $2 WHERE id = $1",
                request.job_id,
                LONG_AGO + dt.timedelta(seconds=self._age_s),
            )
        )

    @rule(limit=st.integers(1, 3))
    def expire(self, limit: int) -> None:
        self._same(("expire_due", (limit,)))

    @invariant()
    def balances_agree(self) -> None:
        self._same(*(("balance", (customer,)) for customer in CUSTOMERS))

    @invariant()
    def network_accounts_agree(self) -> None:
        rows = self.loop.run(
            self._books.connection.fetch(
                "SELECT kind, owner, credits_posted - debits_posted AS balance FROM accounts "
                "WHERE kind IN ('worker_payable', 'network_revenue', 'rounding')"
            )
        )
        real = {(row["kind"], row["owner"]): int(row["balance"]) for row in rows if row["balance"]}
        model = self._books.model
        expected = {("network_revenue", None): model.revenue, ("rounding", None): model.rounding} | {
            ("worker_payable", worker): nano for worker, nano in model.worker_payable.items()
        }
        assert real == {account: nano for account, nano in expected.items() if nano}

    @invariant()
    def books_are_sound(self) -> None:
        assert self.loop.run(broken_invariants(self._books.connection)) == []


@pytest.mark.timeout(300)
def test_the_ledger_does_what_its_model_does(postgres_server: PostgresServer, migrated_template: str) -> None:
    loop = LoopThread()
    try:
        run_state_machine_as_test(
            type("Bound", (LedgerMachine,), {"server": postgres_server, "template": migrated_template, "loop": loop}),
            settings=settings(
                max_examples=25,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            ),
        )
    finally:
        loop.close()
    reached = {"hold: Hold", "hold: InsufficientCreditError", "settle: Posted", "settle: TransferConflictError",
               "settle: HoldClosedError", "void: NoneType", "void: HoldClosedError"}  # fmt: skip
    assert reached - set(SEEN) == set()
