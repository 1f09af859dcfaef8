"""Clients that leave: generation stops within a second, and what was generated is charged."""

import asyncio
import contextlib
import json

import pytest

from tests.fixtures_gateway import Stack, chat
from tests.scripted_engine import until

PATH = "/v1/chat/completions"


@pytest.fixture(params=["upstream", "agent"])
async def served(stack: Stack, request: pytest.FixtureRequest) -> Stack:
    await stack.start_gateway(upstream=request.param == "upstream")
    if request.param == "agent":
        await stack.start_worker("worker-1", stack.engine)
    return stack


async def send_and_leave(stack: Stack, body: dict[str, object], read_until: bytes | None) -> None:
    """Send a request on a raw socket, read until the marker, close. The engine would go on for an hour."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    payload = json.dumps(body).encode()
    writer.write(
        b"POST %s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (PATH.encode(), stack.api_key.encode(), len(payload), payload)
    )
    await writer.drain()
    if read_until is None:
        await until(lambda: stack.engine.requests)
    else:
        await asyncio.wait_for(reader.readuntil(read_until), 60)
    await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close at once, without a goodbye."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_leaving_mid_stream_stops_the_engine_and_charges_what_was_generated(served: Stack) -> None:
    body = chat(stream=True, script={"tokens": 100_000, "interval_s": 0.02})
    await send_and_leave(served, body, b"t3 ")
    seen = served.engine.requests[-1]
    await until(lambda: seen.ended)
    assert seen.ended == "aborted"
    [row] = await served.usage()
    assert row["outcome"] == "client_gone"
    assert 4 <= row["completion_tokens"] <= seen.sent_tokens
    assert row["charge_nano"] >= 4 * 2
    await served.check_books()


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_first_token_stops_the_engine(served: Stack, stream: bool) -> None:
    await send_and_leave(served, chat(stream=stream, script={"first_s": 3600}), None)
    seen = served.engine.requests[-1]
    await until(lambda: seen.ended)
    assert seen.ended == "aborted"
    await served.check_books()
    rows = await served.rows("SELECT outcome, completion_tokens FROM usage")
    assert [(row["outcome"], row["completion_tokens"]) for row in rows] == [("client_gone", 0)]


async def test_leaving_during_the_upload_is_not_a_request(gateway: Stack) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b'POST %s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: 1000\r\n\r\n{"model":'
        % (PATH.encode(), gateway.api_key.encode())
    )
    await writer.drain()
    await hang_up(writer)
    async with gateway.client() as client:
        assert (await client.post(PATH, json=chat())).status_code == 200
    assert len(gateway.engine.requests) == 1
    await gateway.usage(1)
    await gateway.check_books()


async def test_a_client_that_stops_reading_is_let_go_and_pays_for_what_was_generated(stack: Stack) -> None:
    await stack.start_gateway(COCOON_IDLE_S="1")
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port, limit=1024)
    payload = json.dumps(chat(stream=True, max_tokens=4000, script={"tokens": 4000, "text": "x" * 20_000})).encode()
    writer.write(
        b"POST %s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s"
        % (PATH.encode(), stack.api_key.encode(), len(payload), payload)
    )
    await reader.readexactly(100)
    [row] = await stack.usage()
    assert row["outcome"] == "client_gone"
    assert row["completion_tokens"] > 0
    await hang_up(writer)
    await stack.check_books()


async def test_many_clients_leaving_at_random_leave_the_books_balanced(served: Stack) -> None:
    async def one(index: int) -> None:
        script = {"tokens": 30, "interval_s": 0.005, "first_s": 0.01 * (index % 5)}
        marker = None if index % 3 == 0 else b"t%d " % (index % 20)
        await send_and_leave(served, chat(stream=True, script=script), marker)

    async with asyncio.TaskGroup() as group:
        for index in range(40):
            group.create_task(one(index))
    await until(lambda: all(seen.ended for seen in served.engine.requests))
    await served.check_books()
