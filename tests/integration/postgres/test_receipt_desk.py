"""Receipts from delivery to bundle on a real database: kept once, proven, and never forgiven when they contradict."""

import asyncio
import contextlib
import datetime as dt
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest

from audit.entries import entry_of, receipt_envelope
from audit.postgres.reader import LogReader
from audit.postgres.sequencer import append, sign
from billing.ports import BillingError, LedgerUnavailableError, Settlement
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from billing.postgres.recoveries import Recoveries
from cocoon.bundle import ReceiptBundle
from cocoon.clock import SystemClock
from cocoon.money import Amount
from cocoon.receipt_batch import DeliveredReceipt, ReceiptVerdicts, Verdict
from cocoon.signed_batch import Countersignature, head_digest, open_batch, require_leaf
from cocoon.ticket import Ticket, open_unverified
from cocoon.transparency import LeafType
from cocoon.usage import TokenUsage
from gateway.postgres.receipts import ReceiptBook
from gateway.postgres.standing import StandingStore
from gateway.receipts import PROMISE_S, ReceiptDesk, ReceiptUnknownError
from gateway.recovery import Reconciler
from gateway.signing import BatchSigner, GatewayKey, SigningUnavailableError
from tests.integration.postgres.test_log_sequencer import SIGNER
from tests.ledger_values import hold_request, job_id, settlement
from tests.receipt_values import GLOBAL_ID, RECEIPT_PRICE, SECRET, Signer
from tests.signing_values import Operator
from workers.agent.staking import StakedKey

CLOCK = SystemClock()
USAGE = TokenUsage(prompt=10, completion=5)


class Scene:
    """A customer, a worker, and a gateway's desk, with the operator that they belong to."""

    def __init__(
        self, ledger: PostgresLedger, pool: Pool, connection: Connection, *, operator: Operator | None = None,
        staked: StakedKey | None = None,
    ) -> None:  # fmt: skip
        self.ledger = ledger
        self.pool = pool
        self.connection = connection
        self.operator = operator or Operator(GLOBAL_ID)
        self.network = self.operator.global_id
        self.signer = Signer(staked=staked, global_id=self.network)
        self.customer = uuid.uuid4()
        key = GatewayKey(
            self.operator.gateway.private_bytes_raw(), self.operator.carried, global_id=self.network, clock=CLOCK
        )
        self.batches = BatchSigner(key, global_id=self.network, network_secret=SECRET, clock=CLOCK)
        self.desk = self.new_desk()

    def new_desk(self) -> ReceiptDesk:
        recoveries = Recoveries(self.pool, PostgresLeases(self.pool, ""))
        judge = Reconciler(recoveries, network_secret=SECRET, global_id=self.network)
        return ReceiptDesk(judge, self.batches, ReceiptBook(self.pool), recoveries, LogReader(self.pool), CLOCK)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Scene"]:
        """With credit, and a gateway that signs."""
        await self.ledger.deposit(job_id(), self.customer, Amount(100_000))
        task = asyncio.ensure_future(self.batches.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def answer(self, seq: int = 0, **changes: Any) -> DeliveredReceipt:
        """A job that a gateway has settled, and its receipt."""
        delivered, settled = await self.unsettled(seq, **changes)
        await self.ledger.settle(settled)
        return delivered

    async def unsettled(self, seq: int = 0, **changes: Any) -> tuple[DeliveredReceipt, Settlement]:
        request = hold_request(self.customer, 200)
        await self.ledger.hold(request)
        ticket = self.signer.ticket(job=request.job_id)
        delivered = self.receipt(ticket, seq, **changes)
        settled = settlement(
            ticket.job_id, self.customer, worker=self.signer.worker_id, price=RECEIPT_PRICE, usage=USAGE
        )
        return delivered, msgspec.structs.replace(
            settled, receipt_head=delivered.head, receipt_signature=delivered.signature
        )

    def receipt(self, ticket: Ticket, seq: int, *, usage: TokenUsage = USAGE, **changes: Any) -> DeliveredReceipt:
        return self.signer.delivered(ticket, self.customer, usage, head={"seq": seq}, **changes)

    async def deliver(self, *receipts: DeliveredReceipt) -> ReceiptVerdicts:
        return await self.desk.deliver(self.signer.worker_id, self.signer.batch(*receipts))

    async def log(self) -> None:
        while await append(self.connection):
            pass
        await sign(self.connection, SIGNER)

    async def bundle(self, delivered: DeliveredReceipt) -> ReceiptBundle | None:
        return await self.desk.bundle(self.customer, job_of(delivered))

    async def count(self, table: str) -> int:
        return await self.connection.fetchval(f"SELECT count(*) FROM {table}")

    async def entries(self) -> set[bytes]:
        return {row["digest"] for row in await self.connection.fetch("SELECT digest FROM log_queue")}

    def entry(self, delivered: DeliveredReceipt) -> bytes:
        envelope = receipt_envelope(self.signer.keyset.receipt_pk, delivered.head, delivered.signature)
        return entry_of(LeafType.RECEIPT, envelope).digest


def ticket_of(delivered: DeliveredReceipt) -> Ticket:
    return Ticket.decode(open_unverified(delivered.ticket))


def job_of(delivered: DeliveredReceipt) -> uuid.UUID:
    return ticket_of(delivered).job_id


@pytest.fixture
async def scene(ledger: PostgresLedger, pool: Pool, connection: Connection) -> AsyncIterator[Scene]:
    async with Scene(ledger, pool, connection).running() as made:
        yield made


async def test_a_delivered_receipt_is_a_bundle_in_which_everything_proves_itself(scene: Scene) -> None:
    delivered = await scene.answer()
    before = int(CLOCK.now().timestamp())
    answer = await scene.deliver(delivered)
    assert answer.verdicts == (Verdict.RECORDED,)
    assert answer.batch is not None
    assert answer.countersigned[0] is not None
    await scene.log()
    bundle = await scene.bundle(delivered)

    assert bundle is not None
    assert (bundle.head, bundle.signature, bundle.body) == (delivered.head, delivered.signature, delivered.body)
    assert bundle.ticket_signed is not None
    assert bundle.countersigned is not None
    head = open_batch(
        bundle.ticket_signed.batch, operator_key=scene.operator.public, global_id=GLOBAL_ID,
        now_s=CLOCK.now().timestamp(),
    )  # fmt: skip
    require_leaf(head, bundle.ticket, bundle.ticket_signed.proof)
    require_leaf(head, bundle.countersigned.leaf, bundle.countersigned.signed.proof)
    said = Countersignature.decode(bundle.countersigned.leaf)
    numerator = await scene.connection.fetchval("SELECT numerator FROM usage")
    assert (said.head_sha256, said.charge_numerator) == (head_digest(delivered.head), int(numerator))
    assert before + PROMISE_S <= said.include_by <= before + PROMISE_S + 60
    assert bundle.log is not None
    assert (bundle.log.index, bundle.log.size) == (0, 1)
    assert (bundle.evidence, bundle.endorsements, bundle.manifest) == (None, None, None)
    assert ReceiptBundle.decode(bundle.encode()) == bundle


async def test_delivering_again_adds_nothing_and_another_process_knows_it(scene: Scene) -> None:
    receipts = [await scene.answer(seq) for seq in range(3)]
    await scene.deliver(*receipts)
    first = await scene.bundle(receipts[0])
    scene.desk = scene.new_desk()
    again = await scene.deliver(*receipts)

    assert set(again.verdicts) == {Verdict.RECORDED}
    assert await scene.bundle(receipts[0]) == first
    assert await scene.entries() == {scene.entry(one) for one in receipts}
    assert (await scene.count("receipts"), await scene.count("receipt_slots")) == (3, 3)
    assert await scene.count("equivocations") == 0


async def test_a_receipt_is_its_customers_alone(scene: Scene) -> None:
    delivered = await scene.answer()
    await scene.deliver(delivered)

    with pytest.raises(ReceiptUnknownError):
        await scene.desk.bundle(uuid.uuid4(), uuid.uuid4())
    assert await scene.desk._book.find(uuid.uuid4(), job_of(delivered)) is None


async def test_until_it_is_delivered_a_receipt_is_awaited(scene: Scene) -> None:
    delivered = await scene.answer()

    assert await scene.bundle(delivered) is None
    await scene.deliver(delivered)
    assert await scene.bundle(delivered) is not None


@pytest.mark.parametrize("part", ["signature", "head", "body", "ticket"])
async def test_nothing_altered_is_kept_or_logged_although_the_books_know_the_head(scene: Scene, part: str) -> None:
    delivered = await scene.answer()
    value = getattr(delivered, part)
    altered = value[:-5] + ("AAAAA" if isinstance(value, str) else bytes(5))
    answer = await scene.deliver(msgspec.structs.replace(delivered, **{part: altered}))

    assert answer.verdicts == (Verdict.REFUSED,)
    assert (await scene.entries(), await scene.count("receipts")) == (set(), 0)


async def test_a_receipt_that_may_still_be_settled_is_kept_when_it_is(scene: Scene) -> None:
    delivered, settled = await scene.unsettled()
    assert (await scene.deliver(delivered)).verdicts == (Verdict.PENDING,)
    assert await scene.count("receipts") == 0
    await scene.ledger.settle(settled)
    assert (await scene.deliver(delivered)).verdicts == (Verdict.RECORDED,)

    assert await scene.count("receipts") == 1


async def test_of_two_heads_of_an_attempt_the_charged_one_is_the_receipt(scene: Scene) -> None:
    delivered = await scene.answer(seq=1)
    ticket = ticket_of(delivered)
    other = scene.receipt(ticket, 2)
    answer = await scene.deliver(other, delivered)

    assert answer.verdicts[1] is Verdict.RECORDED
    assert [one is None for one in answer.countersigned] == [True, False]
    bundle = await scene.bundle(delivered)
    assert bundle is not None
    assert bundle.head == delivered.head
    assert await scene.entries() == {scene.entry(delivered)}


async def test_without_a_signer_receipts_are_kept_without_what_it_would_have_said(scene: Scene) -> None:
    class Silent:
        async def countersign(self, *_: object, **__: object) -> Any:
            raise SigningUnavailableError

    silent: Any = Silent()
    scene.desk._signer = silent
    delivered = await scene.answer()
    assert (await scene.deliver(delivered)).countersigned == ()
    bundle = await scene.bundle(delivered)

    assert bundle is not None
    assert (bundle.ticket_signed, bundle.countersigned) == (None, None)
    assert await scene.entries() == {scene.entry(delivered)}


async def test_a_promise_that_was_not_kept_is_not_given(scene: Scene) -> None:
    delivered = await scene.answer()
    await scene.connection.execute("ALTER TABLE log_queue RENAME TO away")
    with pytest.raises(LedgerUnavailableError):
        await scene.deliver(delivered)
    await scene.connection.execute("ALTER TABLE away RENAME TO log_queue")

    assert (await scene.count("receipts"), await scene.count("receipt_slots")) == (0, 0)
    assert (await scene.deliver(delivered)).countersigned[0] is not None


# Equivocation


async def test_two_heads_under_one_number_are_slashing_evidence_and_suspend_the_worker(scene: Scene) -> None:
    first, second = await scene.answer(seq=7), await scene.answer(seq=7)
    await scene.deliver(first)
    assert await scene.count("equivocations") == 0
    answer = await scene.deliver(second)

    assert answer.verdicts == (Verdict.RECORDED,)
    evidence = await scene.connection.fetchrow("SELECT * FROM equivocations")
    assert evidence is not None
    assert evidence["slot"] == scene.signer.keyset.receipt_pk + (7).to_bytes(8, "big")
    assert (evidence["first_head"], evidence["second_head"]) == (first.head, second.head)
    public = scene.signer.key.public_key()
    public.verify(evidence["first_signature"], evidence["first_head"])
    public.verify(evidence["second_signature"], evidence["second_head"])
    # Both customers have what they paid for, and both heads stand in the log for everybody to compare.
    assert await scene.entries() == {scene.entry(first), scene.entry(second)}
    held = await scene.connection.fetch("SELECT kind, against_worker, worker_id FROM discrepancies")
    assert [tuple(row) for row in held] == [("equivocation", True, scene.signer.worker_id)]
    store = StandingStore(scene.pool)
    assert [one.worker_id for one in await store.suspend_offenders()] == [scene.signer.worker_id]


async def test_equivocation_within_one_batch_is_found(scene: Scene) -> None:
    receipts = [await scene.answer(seq=3), await scene.answer(seq=3), await scene.answer(seq=4)]
    await scene.deliver(*receipts)
    await scene.deliver(*receipts)

    assert (await scene.count("equivocations"), await scene.count("discrepancies")) == (1, 1)


async def test_the_same_number_of_another_key_and_two_attempts_of_a_job_are_no_equivocation(scene: Scene) -> None:
    first = await scene.answer(seq=1)
    await scene.deliver(first)
    scene.signer = Signer(scene.signer.worker_id)
    await scene.deliver(await scene.answer(seq=1))
    ticket = ticket_of(first)
    other_worker = Signer()
    retried = other_worker.delivered(
        other_worker.ticket(job=ticket.job_id, attempt=1), scene.customer, USAGE, head={"seq": 0}
    )
    await scene.desk.deliver(other_worker.worker_id, other_worker.batch(retried))

    assert await scene.count("equivocations") == 0


async def test_evidence_cannot_be_taken_back(scene: Scene) -> None:
    await scene.deliver(await scene.answer(seq=7), await scene.answer(seq=7))

    for statement in ("DELETE FROM equivocations", "UPDATE equivocations SET worker_id = gen_random_uuid()"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await scene.connection.execute(statement)


# Age


@pytest.mark.usefixtures("one_day")
async def test_receipts_are_dropped_by_the_day_and_nothing_else_is(scene: Scene) -> None:
    delivered = await scene.answer()
    await scene.deliver(delivered)
    await scene.connection.execute("SELECT ensure_day_partitions(current_date - 100, current_date - 95)")
    await scene.connection.execute("UPDATE receipt_slots SET day = current_date - 100")
    book = ReceiptBook(scene.pool)

    assert await book.forget(97) == 6
    assert await book.forget(97) == 0
    assert await scene.count("receipt_slots") == 0
    assert await scene.bundle(delivered) is not None


@pytest.mark.usefixtures("one_day")
async def test_a_receipt_of_a_day_that_is_not_kept_is_judged_and_logged(scene: Scene) -> None:
    delivered = await scene.answer()
    today = dt.datetime.now(dt.UTC).strftime("%Y%m%d")
    await scene.connection.execute(f"DROP TABLE receipts_{today}")
    await scene.connection.execute(f"DROP TABLE receipt_batches_{today}")
    answer = await scene.deliver(delivered)

    assert answer.verdicts == (Verdict.RECORDED,)
    assert await scene.entries() == {scene.entry(delivered)}


async def test_gateways_that_get_the_same_batch_at_once_keep_it_once(scene: Scene) -> None:
    receipts = [await scene.answer(seq) for seq in range(20)]
    desks = [scene.new_desk() for _ in range(4)]

    async def deliver(desk: ReceiptDesk) -> None:
        with contextlib.suppress(BillingError):
            await desk.deliver(scene.signer.worker_id, scene.signer.batch(*receipts))

    await asyncio.gather(*(deliver(desk) for desk in desks))
    await scene.deliver(*receipts)

    assert await scene.entries() == {scene.entry(one) for one in receipts}
    assert (await scene.count("receipts"), await scene.count("equivocations")) == (20, 0)
