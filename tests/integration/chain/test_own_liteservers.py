"""A synchronous client that asks liteservers itself, on the real local chain."""

import asyncio
from typing import Any

import msgspec
import pytest

from billing.ton.beacons import beacon_of
from billing.ton.liteclient import LiteChain
from billing.ton.settings import read_liteservers
from cli.own_chain import Liteservers
from cocoon.clock import SystemClock
from cocoon.statement import Beacon
from cocoon_client import OpenAI
from cocoon_client.errors import NotTrustedError
from cocoon_client.openai import SealingClient
from tests.fake_network import API_KEY, BASE_URL, MODEL, NETWORK, FakeGateway, FakeWorker
from tests.fixtures_chain import LocalChain

ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "the plaintext"}], "max_tokens": 9}


async def last_block(local: LocalChain) -> Beacon:
    async with LiteChain(read_liteservers(local.config), SystemClock(), global_id=NETWORK) as chain:
        return beacon_of(await chain.head())


def test_a_client_without_an_event_loop_asks_its_liteservers(own_chain: LocalChain) -> None:
    named = asyncio.run(last_block(own_chain))
    worker = FakeWorker()
    worker.named = named
    gateway = FakeGateway(worker)

    def client() -> OpenAI:
        chain = Liteservers(own_chain.config, NETWORK)
        http = SealingClient(gateway.trust(), transport=gateway, asking=lambda: gateway, chain=chain)
        return OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http, max_retries=0)

    with client() as honest:
        honest.chat.completions.create(**ASKED)
        assert honest.cocoon.newest is not None
        gateway.bundle(honest.cocoon.newest)
        report = honest.verify()
    assert report.holds, report.in_words()
    assert report.step("beacon").outcome == "held"

    worker.named = msgspec.structs.replace(named, file_hash=bytes(32))
    with client() as lied_to, pytest.raises(NotTrustedError, match="beacon_foreign"):
        lied_to.chat.completions.create(**ASKED)
