"""A month of usage in the books: what its questions cost when ten million rows lie behind them.

    python -m benchmarks.month [--rows 10000000] [--customers 1000] [--seconds 600]

Rows are made by the database itself, set-based, a day at a time, through the same table and trigger that the journal
writes to. A third belongs to one customer. About 700 MB a million rows on disk while it runs, deleted at the end; it
stops adding days after `--seconds` and says how many rows it got to.
"""

import argparse
import asyncio
import datetime as dt
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.ledger import CLOCK, CREDIT_NANO, DICE, say
from billing.postgres.account import Accounts
from billing.postgres.check import CHECK_S_MAX, CHECKS
from billing.postgres.ledger import PostgresLedger
from billing.postgres.migrate import migrate
from billing.postgres.pool import Pool, acquired, open_pool
from cli.dev.postgres import EmbeddedPostgres
from cocoon.ids import new_job_id
from cocoon.money import Amount

DAYS = 30
CHUNK_ROWS = 100_000
"""Rows of one transaction."""
CALLS = 300
KEYS = 3
MODELS = 4
INSERT = """
INSERT INTO usage (
    day, job_id, attempt, customer_id, key_id, worker_id, model, asset, price_version, share_bps, prompt_tokens,
    cached_tokens, completion_tokens, numerator, charge_nano, share_nano, fee_nano, outcome, finish_reason, started_at,
    first_token_at, ended_at, receipt_head, receipt_signature, body_digest
)
SELECT
    $1::date, uuidv7($1::date + interval '1 hour' - now()), 0, made.customer_id,
    md5(made.customer_id::text || made.number / 7 % $4)::uuid, md5((made.number % 20)::text)::uuid,
    'model-' || made.number / 11 % $5, 'TON', 1, 9500, 900, 300, 400, 892000400, 892, 847, 44, 'completed', 'stop',
    made.at, made.at, made.at, made.noise || made.noise || made.noise || substr(made.noise, 1, 28),
    made.noise || made.noise, made.noise
FROM (
    SELECT
        number, $1::date + interval '1 hour' AS at, sha256(number::text::bytea) AS noise,
        ($2::uuid[])[CASE number % 3 WHEN 0 THEN 1 ELSE 1 + number % array_length($2::uuid[], 1) END] AS customer_id
    FROM generate_series($3::bigint, $3 + $6 - 1) AS number
) AS made
"""


def main() -> None:
    """Fill, ask, print one line for each figure, delete everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--customers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="cocoon-bench-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", password="benchmark") as postgres,
    ):
        asyncio.run(measure_month(postgres.dsn, options))
    postgres.remove()


async def measure_month(url: str, options: argparse.Namespace) -> None:
    await migrate(url)
    customers = [uuid.uuid4() for _ in range(options.customers)]
    async with open_pool(url, application="benchmark") as pool:
        books, accounts = PostgresLedger(pool), Accounts(pool)
        for customer in customers:
            await books.deposit(new_job_id(CLOCK, DICE), customer, Amount(CREDIT_NANO))
        last = CLOCK.now().date()
        rows = await fill(pool, customers, last, options)
        busiest = customers[0]
        async with acquired(pool) as connection:
            await connection.execute("VACUUM ANALYZE usage_daily, accounts")
        await ask("balance", lambda: books.balance(busiest), "target < 1 ms")
        for days in (1, DAYS, 92):
            first = last - dt.timedelta(days=days - 1)
            lines = len(await accounts.usage(busiest, first, last))
            await ask(
                f"usage by day, {days} days",
                lambda first=first: accounts.usage(busiest, first, last),
                f"{lines} lines; target < 200 ms",
            )
        await measure_sizes(pool, rows)
        async with acquired(pool) as connection:
            await connection.execute("SET statement_timeout = 0")
            began = time.perf_counter()
            broken = await connection.fetch(CHECKS["rollups_equal_usage"], timeout=CHECK_S_MAX)
        say("rollups against all rows", f"{time.perf_counter() - began:.1f} s", f"{len(broken)} differ")


async def fill(pool: Pool, customers: list[uuid.UUID], last: dt.date, options: argparse.Namespace) -> int:
    """Add a day at a time until there are enough rows, or time is up; returns how many."""
    async with acquired(pool) as connection:
        await connection.execute("SELECT ensure_day_partitions($1, $2)", last - dt.timedelta(days=DAYS - 1), last)
    began, made, used = time.perf_counter(), 0, 0.0
    a_day = options.rows // DAYS
    for back in range(DAYS):
        day = last - dt.timedelta(days=back)
        end = made + a_day
        while made < end and used < options.seconds:
            count = min(CHUNK_ROWS, end - made)
            async with acquired(pool) as connection:
                await connection.execute(INSERT, day, customers, made, KEYS, MODELS, count, timeout=120)  # pyright: ignore[reportCallIssue]  asyncpg's
            made += count
            used = time.perf_counter() - began
    say("rows of the month", f"{made:,}", f"{made / used:,.0f} rows/s inside the database")
    return made


async def ask(what: str, question: Callable[[], Awaitable[object]], note: str) -> None:
    """As a gateway asks: through the pool, one answer after the other."""
    took: list[float] = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await question()
        took.append(1e3 * (time.perf_counter() - began))
    say(what, f"{statistics.median(took):.2f} ms", f"p99 {sorted(took)[CALLS * 99 // 100]:.2f} ms; {note}")


async def measure_sizes(pool: Pool, rows: int) -> None:
    async with acquired(pool) as connection:
        row = await connection.fetchrow(
            "SELECT (SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits"
            " WHERE inhparent = 'usage'::regclass)::bigint AS usage,"
            " pg_total_relation_size('usage_daily') AS rollups, (SELECT count(*) FROM usage_daily) AS lines"
        )
    assert row is not None
    say("usage rows on disk", f"{row['usage'] / 1e9:.2f} GB", f"{row['usage'] / rows:.0f} bytes a row")
    say("rollups on disk", f"{row['rollups'] / 1e6:.1f} MB", f"{row['lines']:,} lines")


if __name__ == "__main__":
    main()
