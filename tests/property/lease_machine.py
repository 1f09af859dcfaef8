"""Random interleavings of everything a process and a database can do to leases, and what must hold after each step."""

import asyncio
import collections
import collections.abc
import uuid
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from billing.lease_store import JournalRow, LeaseActiveError, LeaseLostError
from billing.ports import (
    Hold,
    HoldClosedError,
    InsufficientCreditError,
    Outcome,
    Posted,
    Settlement,
    TransferConflictError,
    UnknownCustomerError,
)
from billing.postgres.check import broken_invariants
from billing.postgres.leases import PostgresLeases
from cocoon.money import NUMERATOR_PER_NANO, Amount, Price, ceiling
from cocoon.usage import TokenUsage
from tests.fixtures_postgres import PostgresServer, cloned_database
from tests.ledger_values import hold_request, job_id, settlement
from tests.loop_thread import LoopThread
from tests.property.lease_network import (
    CUSTOMERS,
    SEEN,
    STRANGER,
    Network,
    Process,
    Promise,
    answered,
    ends,
    picks,
    processes,
    wants,
)


class LeaseMachine(RuleBasedStateMachine):
    """Bound to a server by a subclass."""

    server: ClassVar[PostgresServer]
    template: ClassVar[str]
    thread: ClassVar[LoopThread]

    def __init__(self) -> None:
        super().__init__()
        self._database = cloned_database(self.server, self.template)
        self._network = Network(self._database.__enter__())
        self._serving = asyncio.run_coroutine_threadsafe(self._network.serve(), self.thread.loop)
        self.thread.run(self._network.opened.wait())
        self._deposited = dict.fromkeys(CUSTOMERS, 0)
        self._numerator = dict.fromkeys(CUSTOMERS, 0)
        self._lost = dict.fromkeys(CUSTOMERS, 0)
        self._promises: list[Promise] = []

    def teardown(self) -> None:
        self.thread.loop.call_soon_threadsafe(self._network.leaving.set)
        self._serving.result(60)
        self._database.__exit__(None, None, None)

    def _rows(self, query: str, *arguments: object) -> "list[collections.abc.Mapping[str, object]]":
        return self.thread.run(self._network.connection.fetch(query, *arguments))

    def _free(self, customer: uuid.UUID) -> int:
        """Nano that no living hold, no dead or expired lease and no charge has taken."""
        [trapped] = self._rows(
            "SELECT coalesce(sum(amount), 0)::bigint AS nano FROM leases WHERE customer_id = $1"
            " AND (state = 'recovering' OR (state = 'active' AND holder = ANY($2::text[])))",
            customer, self._network.dead,
        )  # fmt: skip
        living = sum(
            promise.hold.amount.nano
            for promise in self._promises
            if promise.open and promise.hold.customer_id == customer and self._lease_state(promise) == "living"
        )
        spent = -(-self._numerator[customer] // NUMERATOR_PER_NANO)
        return self._deposited[customer] + self._lost[customer] - spent - living - int(str(trapped["nano"]))

    def _lease_state(self, promise: Promise) -> str:
        found = self._rows("SELECT state, holder FROM leases WHERE lease_id = $1", promise.hold.lease_id)
        if found and found[0]["state"] == "active":
            return "dead" if found[0]["holder"] in self._network.dead else "living"
        return str(found[0]["state"]) if found else "closed"

    @initialize()
    def fund(self) -> None:
        for customer in CUSTOMERS:
            self.deposit(customer, 200)

    @rule(customer=st.sampled_from(CUSTOMERS), nano=st.integers(1, 100))
    def deposit(self, customer: uuid.UUID, nano: int) -> None:
        self.thread.run(self._network.processes[0].ledger.deposit(job_id(), customer, Amount(nano)))
        self._deposited[customer] += nano

    @rule(wanted=wants)
    def hold(self, wanted: "list[tuple[int, uuid.UUID, int, int]]") -> None:
        free = {customer: self._free(customer) for customer in CUSTOMERS}
        asked = [
            (self._network.processes[number], hold_request(customer, least, least + more))
            for number, customer, least, more in wanted
        ]

        async def all_at_once() -> list[object]:
            return await asyncio.gather(*(answered(process.ledger.hold(request)) for process, request in asked))

        answers = self.thread.run(all_at_once())
        for (process, request), answer in zip(asked, answers, strict=True):
            SEEN.update([f"hold: {type(answer).__name__}"])
            if isinstance(answer, Hold):
                assert request.amount_min <= answer.amount <= request.amount_max
                promise = Promise(request, answer, process)
                self._promises.append(promise)
                # A lease that was swept too early pays out of what it left.
                if self._lease_state(promise) == "living":
                    free[request.customer_id] -= answer.amount.nano
        assert min(free.values()) >= 0, "more was promised than there is"
        for (_, request), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Hold):
                continue
            if request.customer_id == STRANGER:
                assert isinstance(answer, UnknownCustomerError)
            else:
                assert isinstance(answer, InsufficientCreditError), repr(answer)
                assert free[request.customer_id] < request.amount_min.nano, "a customer that can pay was refused"

    def _some_promises(self, picked: "list[int]") -> list[Promise]:
        living = [promise for promise in self._promises if promise.process is not None]
        chosen = {pick % len(living) for pick in picked} if living else set[int]()
        return [living[index] for index in sorted(chosen)]

    def _settlements(
        self, wanted: "list[tuple[int, int, int, uuid.UUID | None, Outcome, Price]]", promises: list[Promise]
    ) -> list[Settlement]:
        return [
            promise.ended
            or settlement(
                promise.hold.job_id,
                promise.hold.customer_id,
                usage=TokenUsage(prompt=prompt, cached=prompt // 3, completion=completion),
                worker=worker,
                outcome=outcome,
                price=price,
            )
            for promise, (_, prompt, completion, worker, outcome, price) in zip(promises, wanted, strict=False)
        ]

    @rule(wanted=ends)
    def settle(self, wanted: "list[tuple[int, int, int, uuid.UUID | None, Outcome, Price]]") -> None:
        promises = self._some_promises([pick for pick, *_ in wanted])
        settlements = self._settlements(wanted, promises)
        states = [self._lease_state(promise) for promise in promises]

        async def all_at_once() -> list[object]:
            return await asyncio.gather(
                *(
                    answered(promise.process.ledger.settle(end))
                    for promise, end in zip(promises, settlements, strict=True)
                    if promise.process is not None
                )
            )

        for promise, end, state, answer in zip(
            promises, settlements, states, self.thread.run(all_at_once()), strict=True
        ):
            SEEN.update([f"settle: {type(answer).__name__}"])
            self._judge(promise, end, state, answer)

    def _judge(self, promise: Promise, end: Settlement, state: str, answer: object) -> None:
        if promise.posted is not None:
            refused = promise.contested and isinstance(answer, TransferConflictError | HoldClosedError)
            assert answer == promise.posted or refused
        elif not promise.open:
            # Refused before, for good; by the same process also as another body than the one that was refused.
            assert isinstance(answer, HoldClosedError | LeaseLostError | TransferConflictError), repr(answer)
        elif ceiling(end.numerator) > promise.hold.amount:
            assert isinstance(answer, TransferConflictError)
        else:
            promise.open = False
            if state == "closed":
                assert isinstance(answer, LeaseLostError), repr(answer)
                return
            assert isinstance(answer, Posted), repr(answer)
            self._note_posted(promise, end, answer)

    def _note_posted(self, promise: Promise, end: Settlement, posted: Posted) -> None:
        promise.open, promise.ended, promise.posted = False, end, posted
        self._numerator[promise.hold.customer_id] += end.numerator

    @rule(pick=picks, number=processes)
    def settle_again_elsewhere(self, pick: int, number: int) -> None:
        posted = [promise for promise in self._promises if promise.posted is not None]
        if not posted:
            return
        promise = posted[pick % len(posted)]
        assert promise.ended is not None
        again = self.thread.run(answered(self._network.processes[number].ledger.settle(promise.ended)))
        if promise.contested and isinstance(again, TransferConflictError | HoldClosedError):
            return  # the process has ended this job itself, and was not heard in time
        assert again == promise.posted

    @rule(picked=st.lists(picks, min_size=1, max_size=4))
    def void(self, picked: "list[int]") -> None:
        for promise in self._some_promises(picked):
            assert promise.process is not None
            answer = self.thread.run(
                answered(promise.process.ledger.void(promise.hold.job_id, promise.hold.customer_id))
            )
            charged = promise.ended is not None and promise.ended.outcome.chargeable
            if promise.open:
                assert answer is None
                promise.open = False
            elif charged and not promise.contested:
                assert isinstance(answer, HoldClosedError)
            SEEN.update([f"void: {type(answer).__name__}"])

    @rule(number=processes)
    def outlive_every_hold(self, number: int) -> None:
        """The process's clock leaps: its holds are over, and its leases must be renewed before they admit again."""
        process = self._network.processes[number]
        process.clock.skip(601)
        self.thread.run(process.ledger.expire_due(1000))
        for promise in self._promises:
            if promise.process is process:
                promise.open = False

    @rule(number=processes, seconds=st.sampled_from([0, 11, 31]))
    def tick(self, number: int, seconds: int) -> None:
        """Renew, grow, or give back what was idle for long."""
        process = self._network.processes[number]

        async def tick() -> None:
            process.clock.skip(seconds)
            process.ledger.tick(process.clock.monotonic(), 0.5)
            await asyncio.sleep(0)

        self.thread.run(tick())

    @rule(customer=st.sampled_from(CUSTOMERS))
    def recall(self, customer: uuid.UUID) -> None:
        self.thread.run(self._network.processes[0].store.recall([customer], "an operator"))

    @rule(number=processes, sweeper=processes, returns=st.booleans(), living=st.booleans())
    def expire_leases(self, number: int, sweeper: int, returns: bool, living: bool) -> None:
        """Whose time is over by the database: dead processes' leases, or those of one that lives and does not know."""
        holders = [*self._network.dead, *([self._network.processes[number].holder] if living else [])]
        self._rows(
            "UPDATE leases SET expires_at = now() - interval '1 s' WHERE state = 'active' AND holder = ANY($1::text[])",
            holders,
        )
        if returns:
            self._rows("UPDATE leases SET returns_at = now() - interval '1 s' WHERE state = 'recovering'")
        swept = self.thread.run(self._network.processes[sweeper].store.sweep(500, 900))
        SEEN.update(["sweep: some" if swept else "sweep: none"])

    @rule(number=processes)
    def crash(self, number: int) -> None:
        self._bury(self.thread.run(self._network.crash(number)))

    def _bury(self, victim: Process) -> None:
        for promise in self._promises:
            if promise.process is victim:
                promise.process = None

    @rule(wanted=ends, number=processes, turns=st.integers(0, 40))
    def crash_while_settling(
        self, wanted: "list[tuple[int, int, int, uuid.UUID | None, Outcome, Price]]", number: int, turns: int
    ) -> None:
        """What was on its way is posted whole or not at all; the database tells."""
        victim = self._network.processes[number]
        promises = [p for p in self._some_promises([pick for pick, *_ in wanted]) if p.process is victim and p.open]
        settlements = self._settlements(wanted, promises)

        async def crash() -> None:
            calls = [asyncio.ensure_future(answered(victim.ledger.settle(end))) for end in settlements]
            for _ in range(turns):
                await asyncio.sleep(0)
            await self._network.crash(number)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

        self.thread.run(crash())
        self._bury(victim)
        for promise, end in zip(promises, settlements, strict=True):
            found = self.thread.run(victim.store.find(end.job_id, end.attempt))
            SEEN.update(["crash: posted" if found else "crash: lost"])
            if found is not None:
                self._note_posted(promise, end, found[1])

    @rule(wanted=ends)
    def claim_what_died(self, wanted: "list[tuple[int, int, int, uuid.UUID | None, Outcome, Price]]") -> None:
        """Receipts of a dead process: paid out of recovery, once, or refused when it is too late."""
        orphans = [promise for promise in self._promises if promise.process is None]
        if not orphans:
            return
        chosen = [orphans[index] for index in sorted({pick % len(orphans) for pick, *_ in wanted})]
        for promise, end in zip(chosen, self._settlements(wanted, chosen), strict=True):
            if ceiling(end.numerator) > promise.hold.amount or (promise.ended is None and not promise.open):
                continue
            state = self._lease_state(promise)
            store = PostgresLeases(self._network.pool, "")
            claim = JournalRow(settlement=end, lease_id=promise.hold.lease_id or end.job_id, fence=None)
            [answer] = self.thread.run(store.flush([claim]))
            SEEN.update([f"claim: {type(answer).__name__}"])
            if promise.posted is not None:
                assert answer == promise.posted
            elif state == "recovering":
                assert isinstance(answer, Posted), repr(answer)
                self._note_posted(promise, end, answer)
            elif state == "closed":
                assert isinstance(answer, LeaseLostError)
            else:
                assert isinstance(answer, LeaseActiveError)

    @invariant()
    def books_are_sound(self) -> None:
        assert self.thread.run(broken_invariants(self._network.connection)) == []

    @invariant()
    def nothing_is_lost_and_every_row_is_charged_once(self) -> None:
        for customer in CUSTOMERS:
            if self._deposited[customer]:
                balance = self.thread.run(self._network.processes[0].ledger.balance(customer))
                total = balance.available.nano + balance.held.nano + balance.spent.nano
                assert total == self._deposited[customer] + self._lost[customer]
                assert balance.spent.nano == -(-self._numerator[customer] // NUMERATOR_PER_NANO)

    @invariant()
    def every_lease_covers_its_holds(self) -> None:
        promised: collections.Counter[uuid.UUID] = collections.Counter()
        for promise in self._promises:
            if promise.open and promise.hold.lease_id is not None:
                promised[promise.hold.lease_id] += promise.hold.amount.nano
        rows = self._rows("SELECT lease_id, amount FROM leases WHERE state <> 'closed'")
        assert [row for row in rows if int(str(row["amount"])) < promised[uuid.UUID(str(row["lease_id"]))]] == []
