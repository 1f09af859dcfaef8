"""The chain through its liteserver, and books of this test's own."""

import uuid
from collections.abc import AsyncIterator

import pytest

from billing.postgres.check import broken_invariants
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool, connect, open_pool
from billing.ton.chain import Chain
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from cocoon.clock import SystemClock
from tests.fixtures_chain import LocalChain
from tests.settlement_chain import GLOBAL_ID, SettlementNetwork


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


@pytest.fixture
async def chain(local_chain: LocalChain) -> AsyncIterator[Chain]:
    async with LiteChain(read_liteservers(local_chain.config), SystemClock(), global_id=GLOBAL_ID) as opened:
        yield opened


@pytest.fixture
async def network(chain: Chain, local_chain: LocalChain) -> SettlementNetwork:
    """An operator with a payout contract that nobody else uses."""
    made = SettlementNetwork(chain, local_chain, uuid.uuid4().hex)
    await made.deploy()
    return made
