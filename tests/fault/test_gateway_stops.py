"""However the gateway is told to stop, it stops in time, with its books closed."""

import asyncio
import json
import os
import pathlib
import signal
import subprocess

import pytest

from tests.fixtures_gateway import Stack, chat, events_of
from tests.scripted_engine import until

PATH = "/v1/chat/completions"
LONG = {"tokens": 1_000_000, "interval_s": 0.02}
"""Hours of it: whoever ends while it runs has not waited for its end."""
STOPPED_S = 60.0


async def stopped(stack: Stack, *, by_itself: bool = True) -> None:
    """The gateway has ended well (`by_itself`: before its main process would have killed it), and nothing is held."""
    assert stack.gateway is not None
    try:
        code = await asyncio.to_thread(stack.gateway.wait, STOPPED_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it did not stop:\n{stack.log()}")
    assert code == 0, stack.log()
    log = stack.log()
    assert "Traceback" not in log, log
    assert ('"settled": true' in log) == by_itself, log
    assert await stack.rows("SELECT 1 FROM open_holds") == []
    await stack.check_books()


async def generating(stack: Stack) -> "asyncio.Task[str]":
    """A stream that outlasts every drain here."""

    async def read() -> str:
        async with stack.client() as client:
            return (await client.post(PATH, json=chat(stream=True, script=LONG))).text

    task = asyncio.create_task(read())
    await until(lambda: stack.engine.requests and stack.engine.requests[-1].sent_tokens > 3)
    return task


@pytest.mark.parametrize("how", ["SIGINT", "SIGINT to all, as Ctrl-C does", "SIGTERM twice"])
async def test_every_way_to_stop_is_a_drain_with_an_end(stack: Stack, how: str) -> None:
    await stack.start_gateway(COCOON_DRAIN_S="1")
    assert stack.gateway is not None
    stream = await generating(stack)
    if how == "SIGINT":
        stack.gateway.send_signal(signal.SIGINT)
    elif how == "SIGTERM twice":
        stack.gateway.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        stack.gateway.send_signal(signal.SIGTERM)
    else:
        for pid in (*children(stack.gateway.pid), stack.gateway.pid):
            os.kill(pid, signal.SIGINT)
    await stopped(stack)
    events = events_of(await stream)
    assert events[-1]["error"]["type"] == "server_error"
    rows = await stack.rows("SELECT outcome, charge_nano FROM usage")
    assert [(row["outcome"], row["charge_nano"]) for row in rows] == [("broken", 0)]


async def test_an_upload_does_not_outlast_the_drain(stack: Stack) -> None:
    await stack.start_gateway(COCOON_DRAIN_S="1")
    assert stack.gateway is not None
    body = json.dumps(chat(stream=True, script=LONG)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.api_key}\r\ncontent-length: {len(body)}\r\n"
    )
    writer.write(head.encode() + b"\r\n" + body[:-1])
    await writer.drain()
    async with stack.client() as client:
        # Answered after the upload's head, so that the upload is known by then.
        assert (await client.post(PATH, json=chat())).status_code == 200
    stack.gateway.send_signal(signal.SIGTERM)
    await stopped(stack)
    assert b"503" in await reader.readline()
    writer.close()
    assert len(stack.engine.requests) == 1


async def test_a_client_that_does_not_read_does_not_hold_up_the_end(stack: Stack) -> None:
    await stack.start_gateway(COCOON_DRAIN_S="1")
    assert stack.gateway is not None
    body = json.dumps(chat(stream=True, max_tokens=4000, script={"tokens": 4000, "text": "x" * 20_000})).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port, limit=1024)
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.api_key}\r\ncontent-length: {len(body)}\r\n"
    )
    writer.write(head.encode() + b"\r\n" + body)
    await reader.readexactly(100)
    sent = -1
    while sent != stack.engine.requests[0].sent_tokens:
        # Every buffer on the way is full once the engine stands still.
        sent = stack.engine.requests[0].sent_tokens
        await asyncio.sleep(0.3)
    stack.gateway.send_signal(signal.SIGTERM)
    # granian waits for what the client has not read, until its main process ends that wait. The money is safe by then.
    await stopped(stack, by_itself=False)
    writer.transport.abort()
    rows = await stack.rows("SELECT outcome FROM usage")
    assert [row["outcome"] for row in rows] == ["broken"]


def children(main: int) -> list[int]:
    """Processes under granian's main process."""
    found: list[int] = []
    for task in pathlib.Path(f"/proc/{main}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
