"""What money costs: admission in memory, a lease's round trip, the usage journal with fsync on, and receipts.

    python -m benchmarks.ledger [--rows 50000] [--customers 200] [--workers 20]

Admission is measured on leases in memory, so that nothing but our own code counts; the rest on the embedded Postgres of
`make dev`, whose client shares the machine with it. `benchmarks.month` asks what a month of rows costs.
"""

import argparse
import asyncio
import datetime as dt
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from billing.lease_book import LeaseTerms
from billing.lease_store import ROWS_MAX, JournalRow, LeaseAnswer, LeaseChange
from billing.leases import JOURNAL_ROWS_MAX, LeasedLedger
from billing.memory_leases import InMemoryLeases
from billing.ports import HoldRequest, Outcome, Posted, Settlement
from billing.postgres.check import broken_invariants
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.migrate import migrate
from billing.postgres.pool import Pool, acquired, connect, open_pool
from cli.dev.postgres import EmbeddedPostgres
from cocoon.clock import SystemClock
from cocoon.ids import new_job_id
from cocoon.money import Amount, Asset, Price
from cocoon.usage import TokenUsage
from gateway.recovery import verify
from tests.receipt_values import GLOBAL_ID, SECRET, Signer

CREDIT_NANO = 10**15
HELD_NANO = 20_000
PRICE = Price(version=1, prompt=400_000, cached=40_000, completion=1_600_001, share_bps=9_500)
CLOCK = SystemClock()
DICE = random.Random(7)
TERMS = LeaseTerms(headroom_min_nano=10**12, headroom_max_nano=10**13)


def main() -> None:
    """Run everything and print one line for each figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--customers", type=int, default=200)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    asyncio.run(measure_admission(options.rounds))
    measure_receipts(options.rounds)
    with (
        tempfile.TemporaryDirectory(prefix="cocoon-bench-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", password="benchmark") as postgres,
    ):
        asyncio.run(measure_postgres(postgres.dsn, options))
    postgres.remove()


async def measure_admission(rounds: int) -> None:
    store = InMemoryLeases(CLOCK)
    customers = [uuid.uuid4() for _ in range(50)]
    count = JOURNAL_ROWS_MAX // 2
    held: list[float] = []
    voided: list[float] = []
    async with LeasedLedger(store, store, CLOCK, DICE, holder="benchmark", terms=TERMS) as ledger:
        for customer in customers:
            await store.deposit(new_job_id(CLOCK, DICE), customer, Amount(CREDIT_NANO))
            await ledger.hold(hold_request(customer))
        for _ in range(rounds):
            requests = [hold_request(customers[number % 50]) for number in range(count)]
            began = time.perf_counter()
            for request in requests:
                await ledger.hold(request)
            held.append((time.perf_counter() - began) / count)
            began = time.perf_counter()
            for request in requests:
                await ledger.void(request.job_id, request.customer_id)
            voided.append((time.perf_counter() - began) / count)
    say("admission from a warm lease", f"{1e6 * statistics.median(held):.2f} us", "target <= 5 us")
    say("release of a hold", f"{1e6 * statistics.median(voided):.2f} us")


def measure_receipts(rounds: int, count: int = 500) -> None:
    """Ticket, stub, head and signature of what a gateway does not know yet; what it knows is compared by bytes."""
    signer, customer = Signer(), uuid.uuid4()
    receipts = [signer.delivered(signer.ticket(), customer) for _ in range(count)]
    took: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        for delivered in receipts:
            verify(delivered, [signer.raw], signer.worker_id, SECRET, global_id=GLOBAL_ID)
        took.append((time.perf_counter() - began) / count)
    each = statistics.median(took)
    say("verification of a receipt", f"{1e6 * each:.0f} us", f"{1 / each:,.0f} a second, one process")


async def measure_postgres(url: str, options: argparse.Namespace) -> None:
    await migrate(url)
    async with open_pool(url, application="benchmark") as pool:
        books = PostgresLedger(pool)
        customers = [uuid.uuid4() for _ in range(options.customers)]
        for customer in customers:
            await books.deposit(new_job_id(CLOCK, DICE), customer, Amount(CREDIT_NANO))
        workers = [uuid.uuid4() for _ in range(options.workers)]
        await measure_store(PostgresLeases(pool, url), customers, workers, options)
        async with LeasedLedger(
            books, PostgresLeases(pool, url), CLOCK, DICE, holder="benchmark", terms=TERMS
        ) as ledger:
            await measure_round_trip(ledger, customers)
            await measure_journal(ledger, customers, workers, options.rows)
        await measure_size(pool)
    async with connect(url, application="benchmark") as connection:
        broken = await broken_invariants(connection)
    say("invariants broken", str(len(broken)))


async def measure_round_trip(ledger: LeasedLedger, customers: Sequence[uuid.UUID]) -> None:
    took: list[float] = []
    for customer in customers:
        began = time.perf_counter()
        await ledger.hold(hold_request(customer))
        took.append(1e3 * (time.perf_counter() - began))
    say("lease round trip", f"{statistics.median(took):.2f} ms", f"p99 {sorted(took)[len(took) * 99 // 100]:.2f} ms")
    cold = [uuid.uuid4() for _ in range(200)]
    for customer in cold:
        await ledger.deposit(new_job_id(CLOCK, DICE), customer, Amount(CREDIT_NANO))
    began = time.perf_counter()
    await asyncio.gather(*(ledger.hold(hold_request(customer)) for customer in cold))
    say("200 cold customers at once", f"{1e3 * (time.perf_counter() - began):.1f} ms")


async def measure_store(
    store: PostgresLeases, customers: Sequence[uuid.UUID], workers: Sequence[uuid.UUID], options: argparse.Namespace
) -> None:
    """Flushes one after the other, straight into the store."""
    leases: dict[uuid.UUID, tuple[uuid.UUID, int]] = {}
    for customer in customers:
        change = LeaseChange(
            lease_id=new_job_id(CLOCK, DICE), customer_id=customer, asset=Asset.TON, holder="benchmark", seq=1,
            ttl_s=600, need_min_nano=10**12, need_nano=10**12,
        )  # fmt: skip
        [answer] = await store.change([change])
        assert isinstance(answer, LeaseAnswer)
        leases[customer] = change.lease_id, answer.fence
    rates: list[float] = []
    for _ in range(options.rounds):
        batches: list[list[JournalRow]] = []
        for _ in range(max(1, options.rows // options.rounds // ROWS_MAX)):
            batch: list[JournalRow] = []
            for _ in range(ROWS_MAX):
                customer = DICE.choice(customers)
                lease_id, fence = leases[customer]
                end = settlement(new_job_id(CLOCK, DICE), customer, DICE.choice(workers))
                batch.append(JournalRow(settlement=end, lease_id=lease_id, fence=fence))
            batches.append(batch)
        began, used = time.perf_counter(), time.process_time()
        for batch in batches:
            answers = await store.flush(batch)
            assert all(isinstance(answer, Posted) for answer in answers)
        count = ROWS_MAX * len(batches)
        used = time.process_time() - used
        rates.append(count / (time.perf_counter() - began))
    say("store, flushes of 500 in a row", f"{statistics.median(rates):,.0f} rows/s", "target >= 10,000 rows/s")
    say("client's own time", f"{1e6 * used / count:.0f} us/row")


async def measure_journal(
    ledger: LeasedLedger, customers: Sequence[uuid.UUID], workers: Sequence[uuid.UUID], rows: int
) -> None:
    """From `settle` to durable, through the ledger, as a gateway would."""
    rates: list[float] = []
    for _ in range(max(1, rows // 10_000)):
        requests = [hold_request(DICE.choice(customers)) for _ in range(10_000)]
        for request in requests:
            await ledger.hold(request)
        ends = [settlement(request.job_id, request.customer_id, DICE.choice(workers)) for request in requests]
        began = time.perf_counter()
        await asyncio.gather(*(ledger.settle(end) for end in ends))
        rates.append(len(ends) / (time.perf_counter() - began))
    say("ledger, settle to durable", f"{statistics.median(rates):,.0f} rows/s", "10,000 tasks at once")


async def measure_size(pool: Pool) -> None:
    async with acquired(pool) as connection:
        rows = await connection.fetchval("SELECT count(*) FROM usage")
        sizes = await connection.fetch(
            "SELECT inhparent::regclass::text AS name, sum(pg_total_relation_size(inhrelid))::bigint AS bytes"
            " FROM pg_inherits WHERE inhparent IN ('usage'::regclass, 'transfers'::regclass) GROUP BY inhparent"
            " UNION ALL SELECT 'usage_daily', pg_total_relation_size('usage_daily') ORDER BY name"
        )
    for size in sizes:
        say(f"{size['name']} per million requests", f"{size['bytes'] / rows:,.0f} MB")


def hold_request(customer: uuid.UUID) -> HoldRequest:
    return HoldRequest(
        job_id=new_job_id(CLOCK, DICE), customer_id=customer, amount_min=Amount(HELD_NANO),
        amount_max=Amount(HELD_NANO), ttl_s=900,
    )  # fmt: skip


def settlement(job_id: uuid.UUID, customer: uuid.UUID, worker: uuid.UUID) -> Settlement:
    ended = CLOCK.now()
    return Settlement(
        job_id=job_id, attempt=0, customer_id=customer, key_id=uuid.UUID(int=7), worker_id=worker, model="mock",
        price=PRICE, usage=TokenUsage(prompt=900, cached=300, completion=400), outcome=Outcome.COMPLETED,
        finish_reason="stop", started_at=ended - dt.timedelta(seconds=1), first_token_at=ended, ended_at=ended,
        receipt_head=DICE.randbytes(124), receipt_signature=DICE.randbytes(64),
    )  # fmt: skip


def say(what: str, figure: str, note: str = "") -> None:
    print(f"{what:<32}{figure:>16}  {note}")


if __name__ == "__main__":
    main()
