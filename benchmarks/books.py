"""The real books of a benchmark: PostgreSQL with fsync on, and Redis, as `make dev` runs them."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from billing.postgres.account import Accounts
from billing.postgres.ledger import PostgresLedger
from billing.postgres.migrate import migrate
from billing.postgres.pool import open_pool
from billing.postgres.prices import set_model, set_price
from billing.pricing import ModelTerms
from cli.dev.postgres import EmbeddedPostgres
from cli.dev.redis import EmbeddedRedis
from cocoon.clock import SystemClock
from cocoon.ids import new_job_id
from cocoon.money import Amount
from gateway.postgres.keys import KeySpec, KeyStore

CREDIT_NANO = 10**15


class Books(NamedTuple):
    """Where they are, and their processes."""

    database_url: str
    redis_url: str
    pids: tuple[int, ...]


@contextlib.contextmanager
def own_books(folder: Path, key: str, model: str) -> Iterator[Books]:
    """Servers of their own, seeded with one customer, its key and one model's price."""
    with (
        EmbeddedPostgres(folder / "postgres", password="benchmark") as postgres,
        EmbeddedRedis(folder / "redis", password="benchmark") as redis,
    ):
        asyncio.run(_seed(postgres.dsn, key, model))
        assert postgres.pid is not None
        assert redis.pid is not None
        yield Books(postgres.dsn, redis.url, (postgres.pid, redis.pid))
    postgres.remove()


async def _seed(database_url: str, key: str, model: str) -> None:
    await migrate(database_url)
    async with open_pool(database_url, application="benchmark") as pool, PostgresLedger(pool) as ledger:
        await set_model(pool, ModelTerms(model=model, context_tokens=8192))
        await set_price(pool, model, prompt=1_000_000, cached=500_000, completion=2_000_000, share_bps=9_500)
        customer = await Accounts(pool).open_customer(uuid.uuid4(), "benchmark")
        await KeyStore(pool, random.SystemRandom()).seed(key, KeySpec(customer_id=customer, name="benchmark"))
        await ledger.deposit(new_job_id(SystemClock(), random.SystemRandom()), customer, Amount(CREDIT_NANO))
