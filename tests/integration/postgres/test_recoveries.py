"""Receipts against real books: what is lost is charged once, what differs is recorded, nothing is ever overwritten."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from billing.lease_store import JournalRow, LeaseAnswer, LeaseChange
from billing.ports import HoldClosedError, Outcome, Settlement, TransferConflictError
from billing.postgres.check import broken_invariants
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool, open_pool
from billing.postgres.recoveries import Recoveries
from cocoon.money import Amount, Asset
from cocoon.receipt_batch import DeliveredReceipt, Verdict
from cocoon.ticket import Ticket
from cocoon.usage import TokenUsage
from gateway.recovery import Reconciler
from tests.ledger_values import hold_request, job_id, settlement
from tests.receipt_values import GLOBAL_ID, RECEIPT_PRICE, SECRET, Signer

CREDIT = 1_000
HELD = 200  # (100 prompt + 50 completion tokens) at most: 100 + 100 nano
USAGE = TokenUsage(prompt=10, completion=5)  # 20 nano; 18 to the worker


class Scene:
    """A customer with credit, a worker, and a judge."""

    def __init__(self, ledger: PostgresLedger, pool: Pool, connection: Connection) -> None:
        self.ledger = ledger
        self.connection = connection
        self.signer = Signer()
        self.customer = uuid.uuid4()
        self.judge = Reconciler(Recoveries(pool, PostgresLeases(pool, "")), network_secret=SECRET, global_id=GLOBAL_ID)

    async def hold(self) -> Ticket:
        request = hold_request(self.customer, HELD)
        await self.ledger.hold(request)
        return self.signer.ticket(job=request.job_id)

    async def lose(self) -> Ticket:
        """A job whose gateway was killed, long ago: its hold has expired."""
        ticket = await self.hold()
        await self.connection.execute(
            "UPDATE open_holds SET expires_at = now() - interval '1 s' WHERE id = $1", ticket.job_id
        )
        assert await self.ledger.expire_due(10) == 1
        return ticket

    def settled(self, ticket: Ticket, usage: TokenUsage = USAGE, **changes: Any) -> Settlement:
        return settlement(
            ticket.job_id, self.customer, worker=self.signer.worker_id, price=RECEIPT_PRICE, usage=usage, **changes
        )

    async def deliver(self, *receipts: DeliveredReceipt) -> list[Verdict]:
        judged = await self.judge.judge(self.signer.worker_id, self.signer.batch(*receipts))
        self.judged = judged
        return [one.verdict for one in judged]

    async def balance(self) -> tuple[int, int, int]:
        found = await self.ledger.balance(self.customer)
        return found.available.nano, found.held.nano, found.spent.nano

    async def found(self) -> list[tuple[Any, ...]]:
        """Discrepancies: kind, against the worker, booked and claimed completion tokens, booked and claimed nano."""
        rows = await self.connection.fetch(
            "SELECT kind, against_worker, booked_completion_tokens, claimed_completion_tokens, booked_nano,"
            " claimed_nano FROM discrepancies ORDER BY created_at, kind"
        )
        return [tuple(int(v) if not isinstance(v, str | bool | None) else v for v in row.values()) for row in rows]

    async def sums(self) -> dict[str, int]:
        rows = await self.connection.fetch(
            "SELECT code, sum(amount) AS nano FROM transfers WHERE phase = 'single' GROUP BY code"
        )
        return {row["code"]: int(row["nano"]) for row in rows}


@pytest.fixture
async def scene(ledger: PostgresLedger, pool: Pool, connection: Connection) -> AsyncIterator[Scene]:
    made = Scene(ledger, pool, connection)
    await ledger.deposit(job_id(), made.customer, Amount(CREDIT))
    yield made
    assert await broken_invariants(connection) == []


async def test_a_lost_charge_is_recovered_once_and_the_worker_is_paid(scene: Scene) -> None:
    ticket = await scene.lose()
    receipt = scene.signer.delivered(ticket, scene.customer, USAGE)
    assert await scene.balance() == (CREDIT, 0, 0)
    assert await scene.deliver(receipt) == [Verdict.RECOVERED]
    assert await scene.balance() == (CREDIT - 20, 0, 20)
    for _ in range(2):
        assert await scene.deliver(receipt) == [Verdict.RECORDED]
    assert await scene.balance() == (CREDIT - 20, 0, 20)
    assert await scene.sums() == {"deposit": CREDIT, "recovered": 20, "charge": 20, "share": 18, "fee": 2}
    [row] = await scene.connection.fetch("SELECT * FROM usage")
    assert (row["job_id"], row["charge_nano"], row["share_nano"], row["outcome"]) == (
        ticket.job_id,
        20,
        18,
        "completed",
    )
    assert (row["receipt_head"], row["worker_id"], row["model"]) == (receipt.head, scene.signer.worker_id, "m")
    [recovery] = await scene.connection.fetch("SELECT * FROM recoveries")
    assert (recovery["ticket"], recovery["receipt_body"]) == (ticket.encode(), receipt.body)
    assert await scene.found() == []


async def test_what_the_gateway_settled_itself_is_only_acknowledged(scene: Scene) -> None:
    ticket = await scene.hold()
    receipt = scene.signer.delivered(ticket, scene.customer, USAGE)
    await scene.ledger.settle(scene.settled(ticket))  # its head is another one, so that the counts decide
    assert await scene.deliver(receipt, receipt) == [Verdict.RECORDED, Verdict.PENDING]
    assert await scene.found() == []
    assert await scene.balance() == (CREDIT - 20, 0, 20)


async def test_while_the_hold_is_open_its_gateway_may_still_settle(scene: Scene) -> None:
    ticket = await scene.hold()
    receipt = scene.signer.delivered(ticket, scene.customer, USAGE)
    assert await scene.deliver(receipt) == [Verdict.PENDING]
    assert await scene.balance() == (CREDIT - HELD, HELD, 0)
    await scene.ledger.settle(scene.settled(ticket))
    assert await scene.deliver(receipt) == [Verdict.RECORDED]


async def test_a_gateway_that_comes_back_from_the_dead_charges_nothing_more(scene: Scene) -> None:
    ticket = await scene.lose()
    with pytest.raises(HoldClosedError):
        await scene.ledger.settle(scene.settled(ticket))
    assert await scene.deliver(scene.signer.delivered(ticket, scene.customer, USAGE)) == [Verdict.RECOVERED]
    with pytest.raises(TransferConflictError):
        await scene.ledger.settle(scene.settled(ticket))
    assert await scene.balance() == (CREDIT - 20, 0, 20)


@pytest.mark.parametrize(("left", "drawn", "lost"), [(20, 20, 0), (19, 19, 1), (0, 0, 20)])
async def test_what_the_customer_cannot_cover_is_the_operators_loss_and_the_worker_is_paid(
    scene: Scene, left: int, drawn: int, lost: int
) -> None:
    ticket = await scene.lose()
    # The customer spends what came back: a hold of everything but `left`.
    rest = hold_request(scene.customer, CREDIT - left)
    await scene.ledger.hold(rest)
    assert await scene.deliver(scene.signer.delivered(ticket, scene.customer, USAGE)) == [Verdict.RECOVERED]
    assert await scene.balance() == (left - drawn, CREDIT - left, 20)
    sums = await scene.sums()
    assert (sums.get("recovered", 0), sums.get("loss", 0), sums["share"]) == (drawn, lost, 18)
    kinds = [row[0] for row in await scene.found()]
    assert kinds == (["operator_loss"] if lost else [])


async def test_other_counts_than_the_books_are_a_discrepancy_with_both_numbers_and_change_nothing(scene: Scene) -> None:
    more, less = await scene.hold(), await scene.hold()
    for ticket in (more, less):
        await scene.ledger.settle(scene.settled(ticket))
    before = await scene.balance()
    greedy = scene.signer.delivered(more, scene.customer, TokenUsage(prompt=10, completion=9))
    modest = scene.signer.delivered(less, scene.customer, TokenUsage(prompt=10, completion=1))
    for _ in range(2):
        assert await scene.deliver(greedy, modest) == [Verdict.DISCREPANCY] * 2
    assert sorted(await scene.found()) == [
        ("counts_differ", False, 5, 1, 20, 12), ("counts_differ", True, 5, 9, 20, 28),
    ]  # fmt: skip
    assert await scene.balance() == before


async def test_claims_above_the_ticket_are_capped_recorded_and_held_against_the_worker(scene: Scene) -> None:
    lost, settled = await scene.lose(), await scene.hold()
    await scene.ledger.settle(scene.settled(settled, TokenUsage(prompt=10, completion=50)))
    over = TokenUsage(prompt=10, completion=5_000)
    receipts = [scene.signer.delivered(ticket, scene.customer, over) for ticket in (lost, settled)]
    assert await scene.deliver(*receipts) == [Verdict.RECOVERED, Verdict.DISCREPANCY]
    # The ticket's 50 tokens, never more.
    assert await scene.balance() == (CREDIT - 2 * 110, 0, 2 * 110)
    assert sorted(await scene.found(), key=str) == [
        ("over_claim", True, 50, 5_000, 110, 10_010), ("over_claim", True, None, 5_000, None, 10_010),
    ]  # fmt: skip


async def test_broken_answers_and_those_cut_off_by_nobody_knows_whom_are_free(scene: Scene) -> None:
    nothing, unfinished, broken = await scene.lose(), await scene.lose(), await scene.hold()
    await scene.ledger.settle(scene.settled(broken, outcome=Outcome.BROKEN))
    verdicts = await scene.deliver(
        scene.signer.delivered(nothing, scene.customer, TokenUsage(), finish_reason="engine_failed"),
        scene.signer.delivered(unfinished, scene.customer, USAGE, finish_reason="abort"),
        scene.signer.delivered(broken, scene.customer, USAGE),
    )
    assert verdicts == [Verdict.RECORDED, Verdict.DISCREPANCY, Verdict.DISCREPANCY]
    assert {row[0] for row in await scene.found()} == {"unfinished", "broken"}
    assert await scene.balance() == (CREDIT, 0, 0)


async def test_a_client_that_left_pays_what_the_gateway_saw(scene: Scene) -> None:
    ticket = await scene.hold()
    await scene.ledger.settle(scene.settled(ticket, outcome=Outcome.CLIENT_GONE))
    later = scene.signer.delivered(ticket, scene.customer, TokenUsage(prompt=10, completion=7), finish_reason="abort")
    assert await scene.deliver(later) == [Verdict.DISCREPANCY]
    assert await scene.found() == [("client_left", False, 5, 7, 20, 24)]
    assert await scene.balance() == (CREDIT - 20, 0, 20)


async def test_released_unknown_and_foreign_holds_and_other_attempts_pay_for_nothing(scene: Scene) -> None:
    released, other = await scene.hold(), await scene.hold()
    await scene.ledger.void(released.job_id, scene.customer)
    await scene.ledger.settle(scene.settled(other))
    second = scene.signer.ticket(job=other.job_id, attempt=1)
    unknown = scene.signer.ticket()
    foreign = await scene.lose()
    before = await scene.balance()
    verdicts = await scene.deliver(
        *(scene.signer.delivered(ticket, scene.customer, USAGE) for ticket in (released, second, unknown)),
        scene.signer.delivered(foreign, uuid.uuid4(), USAGE),
    )
    assert verdicts == [Verdict.DISCREPANCY, Verdict.DISCREPANCY, Verdict.PENDING, Verdict.PENDING]
    kinds = sorted(row[0] for row in await scene.found())
    assert kinds == ["hold_released", "other_attempt", "unknown_hold", "unknown_hold"]
    assert await scene.balance() == before


async def leased(scene: Scene, pool: Pool, nano: int) -> tuple[PostgresLeases, Ticket]:
    """A job under a lease of `nano`, whose process dies now."""
    store, lease = PostgresLeases(pool, ""), job_id()
    [answer] = await store.change([
        LeaseChange(
            lease_id=lease, customer_id=scene.customer, asset=Asset.TON, holder="gone", seq=1, ttl_s=60,
            need_min_nano=nano, need_nano=nano,
        )
    ])  # fmt: skip
    assert isinstance(answer, LeaseAnswer)
    return store, scene.signer.ticket(lease=lease)


async def test_an_expired_lease_pays_for_what_its_process_lost(scene: Scene, pool: Pool) -> None:
    store, ticket = await leased(scene, pool, 100)
    receipt = scene.signer.delivered(ticket, scene.customer, USAGE)
    assert await scene.deliver(receipt) == [Verdict.PENDING]
    await scene.connection.execute("UPDATE leases SET expires_at = now() - interval '1 s'")
    assert await store.sweep(10, recovery_s=60) == 1
    assert await scene.deliver(receipt) == [Verdict.RECOVERED]
    assert await scene.deliver(receipt) == [Verdict.RECORDED]
    assert await scene.balance() == (CREDIT - 100, 80, 20)
    assert await scene.found() == []


async def test_a_job_that_its_gateway_settled_as_broken_is_not_charged_from_another_attempts_receipt(
    scene: Scene, pool: Pool
) -> None:
    """A worker that failed, or refused, before its answer arrived may hold a receipt for a whole one."""
    store, ticket = await leased(scene, pool, 100)
    [row] = await scene.connection.fetch("SELECT fence FROM leases")
    broken = scene.settled(msgspec.structs.replace(ticket, attempt=1), outcome=Outcome.BROKEN, attempt=1)
    await store.flush([JournalRow(settlement=broken, lease_id=ticket.lease, fence=row["fence"])])
    await scene.connection.execute("UPDATE leases SET expires_at = now() - interval '1 s'")
    for _ in range(2):
        assert await store.sweep(10, recovery_s=0) == 1
        assert await scene.deliver(scene.signer.delivered(ticket, scene.customer, USAGE)) == [Verdict.DISCREPANCY]
    assert [kind for kind, *_ in await scene.found()] == ["other_attempt"]
    assert await scene.balance() == (CREDIT, 0, 0)


@pytest.mark.parametrize("leased_nano", [5, 100])
async def test_once_its_lease_is_closed_a_late_receipt_draws_on_the_customers_credit(
    scene: Scene, pool: Pool, leased_nano: int
) -> None:
    store, ticket = await leased(scene, pool, leased_nano)
    receipt = scene.signer.delivered(ticket, scene.customer, USAGE)
    await scene.connection.execute("UPDATE leases SET expires_at = now() - interval '1 s'")
    await store.sweep(10, recovery_s=60)
    if leased_nano < 20:
        # Less than the charge is left in recovery: nobody is overdrawn, the receipt waits.
        assert await scene.deliver(receipt) == [Verdict.PENDING]
    await scene.connection.execute("UPDATE leases SET returns_at = now() - interval '1 s'")
    await store.sweep(10, recovery_s=60)
    assert await scene.deliver(receipt) == [Verdict.RECOVERED]
    assert await scene.balance() == (CREDIT - 20, 0, 20)


async def test_a_charge_above_what_was_held_is_not_made(scene: Scene) -> None:
    ticket = await scene.lose()
    wider = scene.signer.ticket(job=ticket.job_id, max_completion=1_000)
    over = scene.signer.delivered(wider, scene.customer, TokenUsage(prompt=1, completion=1_000))
    assert await scene.deliver(over) == [Verdict.DISCREPANCY]
    assert [row[0] for row in await scene.found()] == ["above_hold"]
    assert await scene.balance() == (CREDIT, 0, 0)


async def test_forged_receipts_stop_no_honest_ones_in_their_batch(scene: Scene) -> None:
    good, bad = await scene.lose(), await scene.lose()
    forged = scene.signer.delivered(bad, scene.customer, USAGE)
    forged = DeliveredReceipt(
        keyset=0, ticket=forged.ticket, stub=forged.stub, head=forged.head, signature=b"\x01" * 64, body=forged.body
    )
    junk = DeliveredReceipt(keyset=3, ticket="?", stub="", head=b"\x00" * 124, signature=b"\x00" * 64, body=b"")
    verdicts = await scene.deliver(junk, forged, scene.signer.delivered(good, scene.customer, USAGE))
    assert verdicts == [Verdict.REFUSED, Verdict.REFUSED, Verdict.RECOVERED]
    assert await scene.balance() == (CREDIT - 20, 0, 20)


async def test_gateways_that_get_the_same_batch_at_once_charge_once(
    scene: Scene, database_url: str, connection: Connection
) -> None:
    tickets = [await scene.lose() for _ in range(20)]
    receipts = [scene.signer.delivered(ticket, scene.customer, USAGE) for ticket in tickets]

    async def other_gateway(order: int) -> list[Verdict]:
        async with open_pool(database_url, application="test") as pool:
            judge = Reconciler(Recoveries(pool, PostgresLeases(pool, "")), network_secret=SECRET, global_id=GLOBAL_ID)
            batch = scene.signer.batch(*(receipts if order % 2 else reversed(receipts)))
            return [one.verdict for one in await judge.judge(scene.signer.worker_id, batch)]

    answers = await asyncio.gather(*(other_gateway(order) for order in range(4)))
    judged = [verdict for answer in answers for verdict in answer]
    assert judged.count(Verdict.RECOVERED) == 20
    assert judged.count(Verdict.RECORDED) == 60
    assert await scene.balance() == (CREDIT - 20 * 20, 0, 20 * 20)


async def test_a_receipt_that_the_books_refuse_waits_and_stops_no_other(scene: Scene, connection: Connection) -> None:
    good, stuck = await scene.lose(), await scene.lose()
    await connection.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF new.job_id = '{stuck.job_id}' THEN RAISE 'no'; END IF; RETURN new; END $$"
    )
    await connection.execute("CREATE TRIGGER no BEFORE INSERT ON recoveries FOR EACH ROW EXECUTE FUNCTION no()")
    receipts = [scene.signer.delivered(ticket, scene.customer, USAGE) for ticket in (stuck, good)]
    assert await scene.deliver(*receipts) == [Verdict.PENDING, Verdict.RECOVERED]
    await connection.execute("DROP TRIGGER no ON recoveries")
    assert await scene.deliver(*receipts) == [Verdict.RECOVERED, Verdict.RECORDED]


async def test_recoveries_and_discrepancies_cannot_be_changed(scene: Scene) -> None:
    receipt = scene.signer.delivered(await scene.lose(), scene.customer, TokenUsage(prompt=10, completion=51))
    assert await scene.deliver(receipt) == [Verdict.RECOVERED]
    for statement in ("DELETE FROM recoveries", "UPDATE discrepancies SET against_worker = false"):
        with pytest.raises(Exception, match="insert-only"):
            await scene.connection.execute(statement)
