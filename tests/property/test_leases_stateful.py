"""Three processes' leased ledgers on one real database, driven at random: crashes, expiries, recalls and late rows,
COMMITs in doubt, and receipts that agree, repeat, contradict, claim too much or race with their own gateway.

The model knows what was deposited, what every open hold promised and what every posted row costs. After every step the
books balance, nobody has been promised more than there is, and what was spent is what the rows cost, rounded once.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from billing.ports import Outcome, Posted, Settlement, TransferConflictError
from billing.postgres.leases import PostgresLeases
from billing.postgres.recoveries import Recoveries
from billing.recoveries import Claim
from cocoon.money import ceiling
from cocoon.receipt_batch import Verdict
from cocoon.usage import TokenUsage
from tests.fixtures_postgres import PostgresServer
from tests.ledger_values import settlement
from tests.loop_thread import LoopThread
from tests.property.lease_machine import LeaseMachine
from tests.property.lease_network import CUSTOMERS, PRICES, SEEN, STRANGER, WORKERS, Promise, answered, picks

receipts = st.tuples(
    picks,
    st.integers(0, 12),
    st.integers(0, 8),
    st.sampled_from(["honest", "honest", "other counts", "other attempt", "cut off"]),
    st.integers(0, 3),
)
Receipt = tuple[int, int, int, str, int]


class ReceiptMachine(LeaseMachine):
    """The lease machine, with lost answers and the workers' receipts."""

    @rule(count=st.integers(1, 3))
    def lose_answers(self, count: int) -> None:
        for process in self._network.processes:
            process.store.doubts = count

    @rule(
        delivered=st.lists(receipts, min_size=1, max_size=5),
        twice=st.booleans(),
        late=st.sampled_from(["soon", "expired", "closed"]),
    )
    def deliver_receipts(self, delivered: list[Receipt], twice: bool, late: str) -> None:
        """In one batch, perhaps to two gateways at once, soon or when the leases' time is over."""
        if late != "soon":
            self.expire_leases(number=0, sweeper=1, returns=False, living=True)
        if late == "closed":
            self.expire_leases(number=0, sweeper=1, returns=True, living=False)
        eligible = [promise for promise in self._promises if promise.open or promise.posted is not None]
        batch: dict[uuid.UUID, tuple[Promise, Claim]] = {}
        for receipt in delivered if eligible else []:
            promise = eligible[receipt[0] % len(eligible)]
            claim = _claim(promise, receipt)
            if ceiling(claim.settlement.numerator) <= promise.hold.amount:
                batch.setdefault(promise.hold.job_id, (promise, claim))
        if not batch:
            return
        states = {job: self._lease_state(promise) for job, (promise, _) in batch.items()}
        judged = self.thread.run(self._reconciled([claim for _, claim in batch.values()], gateways=1 + twice))
        for (job, (promise, claim)), verdicts in zip(batch.items(), zip(*judged, strict=True), strict=True):
            SEEN.update(f"receipt: {verdict.value}" for verdict in verdicts)
            self._judge_receipt(promise, claim, states[job], list(verdicts))

    async def _reconciled(self, claims: list[Claim], *, gateways: int) -> list[list[Verdict]]:
        pool = self._network.pool
        return await asyncio.gather(
            *(Recoveries(pool, PostgresLeases(pool, "")).reconcile(claims) for _ in range(gateways))
        )

    def _judge_receipt(self, promise: Promise, claim: Claim, state: str, verdicts: list[Verdict]) -> None:
        kinds = {"over_claim"} if claim.claimed != claim.settlement.usage else set[str]()
        usage = claim.settlement.usage
        if promise.posted is not None:
            kinds |= _difference(promise, claim)
        elif usage.total and state in {"living", "dead"}:
            assert set(verdicts) == {Verdict.PENDING}
            return
        elif usage.total and claim.settlement.outcome is not Outcome.COMPLETED:
            kinds.add("unfinished")
        elif usage.total:
            # Of two gateways one charges; the other one finds it done, or is told to ask again.
            assert verdicts.count(Verdict.RECOVERED) >= 1
            self._note_recovered(promise, claim.settlement)
            return
        expected = Verdict.DISCREPANCY if kinds else Verdict.RECORDED
        assert set(verdicts) == {expected}
        found = self._rows(
            "SELECT kind FROM discrepancies WHERE job_id = $1 AND attempt = $2",
            promise.hold.job_id, claim.settlement.attempt,
        )  # fmt: skip
        assert kinds <= {str(row["kind"]) for row in found}

    def _note_recovered(self, promise: Promise, settled: Settlement) -> None:
        found = self.thread.run(self._network.processes[0].store.find(settled.job_id, settled.attempt))
        assert found is not None, "recovered, and not in the books"
        self._note_posted(promise, settled, found[1])
        promise.contested = True
        [lost] = self._rows(
            "SELECT coalesce(sum(lost_nano), 0)::bigint AS nano FROM recoveries WHERE job_id = $1", settled.job_id
        )
        self._lost[settled.customer_id] += int(str(lost["nano"]))
        SEEN.update(["loss: some" if lost["nano"] else "loss: none"])

    @rule(delivered=receipts)
    def settle_while_the_receipt_arrives(self, delivered: Receipt) -> None:
        """A process that does not know that its lease has expired, against its own worker's receipt."""
        late = [
            promise
            for promise in self._promises
            if promise.open and promise.process is not None and self._lease_state(promise) == "recovering"
        ]
        if not late:
            return
        promise = late[delivered[0] % len(late)]
        claim = _claim(promise, (*delivered[:3], "honest", 0))
        if not claim.settlement.usage.total or ceiling(claim.settlement.numerator) > promise.hold.amount:
            return
        own = msgspec.structs.replace(claim.settlement, finish_reason="own")
        assert promise.process is not None
        ledger = promise.process.ledger

        async def both() -> tuple[object, list[list[Verdict]]]:
            return await asyncio.gather(answered(ledger.settle(own)), self._reconciled([claim], gateways=1))

        answer, [[verdict]] = self.thread.run(both())
        SEEN.update([f"race: {type(answer).__name__}"])
        if isinstance(answer, Posted):
            assert verdict in {Verdict.RECORDED, Verdict.PENDING}
            self._note_posted(promise, own, answer)
        else:
            assert isinstance(answer, TransferConflictError), repr(answer)
            assert verdict is Verdict.RECOVERED
            self._note_recovered(promise, claim.settlement)


def _claim(promise: Promise, receipt: Receipt) -> Claim:
    """What a worker may say about a job. An honest one says what the books say, if they do."""
    _, prompt, completion, how, over = receipt
    known = promise.ended if promise.posted is not None else None
    usage = TokenUsage(prompt=prompt, cached=prompt // 3, completion=completion)
    members: dict[str, Any] = {
        "price": PRICES[promise.hold.job_id.int % len(PRICES)],
        "worker": WORKERS[0],
        "usage": usage,
    }
    if known is not None:
        members |= {"price": known.price, "worker": known.worker_id or WORKERS[0]}
        if how != "other counts":
            members["usage"] = known.usage
    settled = settlement(
        promise.hold.job_id,
        promise.hold.customer_id,
        attempt=1 if how == "other attempt" else 0,
        outcome=Outcome.CLIENT_GONE if how == "cut off" else Outcome.COMPLETED,
        finish_reason="receipt",
        **members,
    )
    return Claim(
        settlement=settled,
        claimed=msgspec.structs.replace(settled.usage, completion=settled.usage.completion + over),
        hold_id=promise.hold.lease_id or promise.hold.job_id,
        ticket=b"t" * 125,
        receipt_body=b"b",
    )


def _difference(promise: Promise, claim: Claim) -> set[str]:
    """How a receipt differs from the row that was posted."""
    ended, usage = promise.ended, claim.settlement.usage
    assert ended is not None
    if claim.settlement.attempt != ended.attempt:
        return {"other_attempt"} if usage.total else set()
    if ended.outcome is Outcome.BROKEN:
        return {"broken"} if usage.total else set()
    if usage == ended.usage and claim.worker_id == ended.worker_id:
        return set()
    return {"client_left" if ended.outcome is Outcome.CLIENT_GONE else "counts_differ"}


@pytest.fixture
def machine(postgres_server: PostgresServer, migrated_template: str) -> Iterator[type[ReceiptMachine]]:
    """The machine, bound to this test process's server."""
    thread = LoopThread()
    try:
        yield type(
            "Bound", (ReceiptMachine,), {"server": postgres_server, "template": migrated_template, "thread": thread}
        )
    finally:
        thread.close()


@pytest.mark.timeout(400)
def test_leases_never_lose_or_overspend_a_nano(machine: type[ReceiptMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )


def test_the_machine_gets_somewhere(machine: type[ReceiptMachine]) -> None:
    """A walk by hand through what chance finds rarely: a machine that never gets anywhere proves nothing."""
    SEEN.clear()
    walk = machine()
    steps: list[Callable[[], None]] = [
        lambda: walk.lose_answers(1),
        lambda: walk.hold([(number, CUSTOMERS[0], 20, 10) for number in (0, 0, 0, 1, 1)]),
        lambda: walk.hold([(2, CUSTOMERS[0], 50, 0), (2, CUSTOMERS[0], 50, 0), (2, STRANGER, 1, 0)]),
        lambda: walk.lose_answers(2),
        lambda: walk.settle([(0, 3, 2, WORKERS[0], Outcome.COMPLETED, PRICES[0])]),
        lambda: walk.void([1]),
        lambda: walk.deliver_receipts([(0, 3, 2, "honest", 0), (2, 3, 2, "honest", 0)], twice=True, late="soon"),
        lambda: walk.deliver_receipts([(0, 3, 3, "other counts", 2)], twice=False, late="soon"),
        lambda: walk.deliver_receipts([(0, 3, 3, "other attempt", 0)], twice=False, late="soon"),
        lambda: walk.crash(0),
        lambda: walk.deliver_receipts([(1, 3, 3, "honest", 2)], twice=True, late="expired"),
        lambda: walk.settle_while_the_receipt_arrives((0, 3, 3, "honest", 0)),
        lambda: walk.deliver_receipts([(3, 3, 3, "cut off", 0)], twice=False, late="closed"),
        lambda: walk.deliver_receipts([(n, 3, 3, "honest", 0) for n in range(5)], twice=True, late="closed"),
    ]
    try:
        for step in [walk.fund, *steps]:
            step()
            walk.books_are_sound()
            walk.nothing_is_lost_and_every_row_is_charged_once()
            walk.every_lease_covers_its_holds()
    finally:
        walk.teardown()
    expected = {
        "hold: Hold", "hold: InsufficientCreditError", "hold: UnknownCustomerError", "doubt: change", "doubt: flush",
        "settle: Posted", "void: NoneType", "sweep: some", "receipt: recorded", "receipt: pending",
        "receipt: discrepancy", "receipt: recovered",
    }  # fmt: skip
    assert expected - set(SEEN) == set()
