"""The chain through its liteserver, and an operator on it."""

import uuid
from collections.abc import AsyncIterator

import pytest

from billing.ton.chain import Chain
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from cocoon.clock import SystemClock
from tests.fixtures_chain import LocalChain
from tests.settlement_chain import GLOBAL_ID, SettlementNetwork


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
