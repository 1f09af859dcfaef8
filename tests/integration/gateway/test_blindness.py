"""A gateway is blind: what is sealed is nowhere in its memory, logs, spans and rows while, and after, it relays it."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from cocoon.sealed import CONTENT_TYPE
from tests.fixtures_gateway import Stack, chat
from tests.integration.traces.collector import Collector
from tests.process_memory import family_of, holds
from tests.scripted_engine import until
from tests.sealed_client import SealedCall

PATH = "/v1/chat/completions"
HEADERS = {"content-type": CONTENT_TYPE, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def _marked(**script: Any) -> tuple[bytes, dict[str, Any]]:
    """A body whose prompt and answer both contain octets that are nowhere else in the world."""
    marker = secrets.token_hex(24)
    return marker.encode(), chat(stream=True, script={"text": f"{marker} ", **script}, max_tokens=1000)


@asynccontextmanager
async def _running(stack: Stack, content: bytes, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    """A request in the middle of its answer."""
    async with stack.client() as client, client.stream("POST", PATH, content=content, headers=headers) as answer:
        await until(lambda: stack.engine.requests and stack.engine.requests[-1].sent_tokens > 3)
        yield answer


async def _sealed(stack: Stack, body: dict[str, Any]) -> SealedCall:
    keysets = [row["keyset"] for row in await stack.rows("SELECT keyset FROM workers")]
    return SealedCall(body, keysets, stack.api_key)


async def _in_rows(stack: Stack, needle: bytes) -> bool:
    """Whether any column of any row of any table has it, as text or in a binary value."""
    tables = await stack.rows(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    assert len(tables) > 20
    for table in tables:
        for row in await stack.rows(f"SELECT t::text AS whole FROM {table['name']} AS t"):
            if needle.decode() in row["whole"] or needle.hex() in row["whole"]:
                return True
    return False


async def test_nothing_that_is_sealed_is_in_the_gateway_and_the_search_would_find_it(
    stack: Stack, collector: Collector
) -> None:
    traced: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
    await stack.start_gateway(upstream=False, **traced)
    worker = await stack.start_worker("worker-1", stack.engine, **traced)
    assert stack.gateway is not None
    gateway = family_of(stack.gateway.pid)
    assert os.getpid() not in gateway
    marker, body = _marked(tokens=600, interval_s=0.02)
    call = await _sealed(stack, body)

    async def in_gateway(needle: bytes) -> bool:
        return any([await asyncio.to_thread(holds, pid, needle) for pid in gateway])

    async with _running(stack, call.sent.raw, HEADERS):
        # The search finds what is there: the request's own ciphertext, and the marker where it was opened.
        assert await in_gateway(call.sent.raw[-200:])
        assert await asyncio.to_thread(holds, worker.pid, marker)
        assert not await in_gateway(marker)
    # A whole answer, an idempotent one, and the engine's own words about a prompt.
    whole, whole_body = _marked(tokens=3)
    call = await _sealed(stack, whole_body)
    said, _ = quoted = _marked(status=400, body={"error": {"message": "cannot read " + secrets.token_hex(4)}})
    quoted[1]["messages"][0]["content"] = json.dumps(
        {"status": 400, "body": {"error": {"message": f"cannot read {said.decode()}"}}}
    )
    failing = await _sealed(stack, quoted[1])
    async with stack.client() as client:
        answer = await client.post(PATH, content=call.sent.raw, headers={**HEADERS, "idempotency-key": "a"})
        assert whole in call.opened(answer.content).data
        answer = await client.post(PATH, content=failing.sent.raw, headers=HEADERS)
        assert (answer.status_code, answer.headers["content-type"]) == (400, CONTENT_TYPE)
        error = msgspec.json.decode(failing.opened(answer.content).data)
    assert said.decode() in error["error"]["message"]
    await stack.usage(3)
    await stack.until_settled()
    await until(lambda: len(collector.spans()) >= 3)
    for needle in (marker, whole, said):
        assert not await in_gateway(needle)
        assert not await _in_rows(stack, needle)
        assert needle not in collector.received
        assert needle.decode() not in stack.log("gateway", None) + stack.log("worker-1", None)
    # A plain request of the same kind is in the memory of the gateway that relays it.
    plain, plain_body = _marked(tokens=600, interval_s=0.02)
    async with _running(stack, msgspec.json.encode(plain_body), {"content-type": "application/json"}):
        assert await in_gateway(plain)
    await stack.until_settled()
    await stack.check_books()
