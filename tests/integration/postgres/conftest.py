"""A pool, a connection and a ledger on this test's own database."""

from collections.abc import AsyncIterator

import pytest

from billing.postgres.check import broken_invariants
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool, connect, open_pool


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url, application="test") as opened:
        yield opened


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with connect(database_url, application="test") as opened:
        yield opened


@pytest.fixture
async def ledger(pool: Pool, connection: Connection) -> AsyncIterator[PostgresLedger]:
    """A ledger whose books must balance when the test is over."""
    async with PostgresLedger(pool) as opened:
        yield opened
    assert await broken_invariants(connection) == []
