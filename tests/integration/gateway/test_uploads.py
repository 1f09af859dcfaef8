"""Bodies on their way in: nobody's are read, everybody's fit, and connections carry one request after the other."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx

from tests.fixtures_gateway import Stack, chat
from tests.scripted_engine import until

PATH = "/v1/chat/completions"


class Upload:
    """A request on a raw socket, sent piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer, which has a length."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        return int(head[0].split(" ")[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def head(stack: Stack, length: int, *, key: str | None = None, method: str = "POST", extra: str = "") -> bytes:
    return (
        f"{method} {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key or stack.api_key}\r\n"
        f"content-length: {length}\r\n{extra}\r\n"
    ).encode()


@contextlib.asynccontextmanager
async def connected(stack: Stack) -> AsyncIterator[Upload]:
    upload = Upload(*await asyncio.open_connection("127.0.0.1", stack.port))
    try:
        yield upload
    finally:
        await upload.close()


async def test_who_has_no_key_is_refused_before_the_upload(gateway: Stack) -> None:
    async with connected(gateway) as upload:
        # Not one byte of the body is sent.
        await upload.send(head(gateway, 10_000_000, key="sk-cocoon-wrong"))
        status, headers, body = await upload.answer()
    assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
    assert headers["x-request-id"]


@contextlib.asynccontextmanager
async def stalled_upload(stack: Stack, client: httpx.AsyncClient, body: bytes) -> AsyncIterator[Upload]:
    """An upload that lacks its last byte and has its room, so that a second `body` has none.

    While both are on their way in, either may be the one that is refused; then the upload is begun again.
    """
    for _ in range(20):
        async with connected(stack) as upload:
            await upload.send(head(stack, len(body)) + body[:-1])
            answered = asyncio.ensure_future(upload.reader.read(1))
            refused = 0
            while not answered.done() and refused < 2:  # The first refusal may have met both.
                probe = await client.post(PATH, content=body)
                assert probe.status_code in {200, 503}
                if probe.status_code == 503:
                    assert probe.json()["error"]["code"] == "overloaded"
                    assert probe.headers["retry-after"] == "1"
                    refused += 1
            if not answered.done():
                answered.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await answered
                yield upload
                return
    raise AssertionError("the stalled upload was refused each time")


async def test_bodies_that_do_not_fit_together_are_refused_until_there_is_room(stack: Stack) -> None:
    await stack.start_gateway(COCOON_BODY_BYTES_MAX="100000", COCOON_BODIES_BYTES_MAX="150000")
    body = json.dumps(chat(max_tokens=5, filler="x" * 90_000)).encode()
    async with stack.client() as client:
        async with stalled_upload(stack, client, body) as stalled:
            assert (await client.post(PATH, json=chat())).status_code == 200
            await stalled.send(body[-1:])
            assert (await stalled.answer())[0] == 200
            assert (await client.post(PATH, content=body)).status_code == 200
        async with stalled_upload(stack, client, body) as stalled:
            await stalled.close()
            await stack.until_true(lambda: client.post(PATH, content=body), lambda answer: answer.status_code == 200)
    await stack.check_books()


async def test_a_connection_carries_requests_one_after_the_other_even_when_they_come_at_once(gateway: Stack) -> None:
    bodies = [json.dumps(chat(script={"tokens": tokens, "first_s": 0.05})).encode() for tokens in (1, 2, 3)]
    async with connected(gateway) as upload:
        await upload.send(b"".join(head(gateway, len(body)) + body for body in bodies))
        for tokens in (1, 2, 3):
            status, _, body = await upload.answer()
            assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, tokens)
        # A refusal before the body leaves the connection in step.
        bad = json.dumps(chat()).encode()
        await upload.send(head(gateway, len(bad), key="sk-cocoon-wrong") + bad)
        assert (await upload.answer())[0] == 401
    await gateway.usage(3)
    await gateway.check_books()


async def test_leaving_with_more_requests_under_way_stops_the_engine(gateway: Stack) -> None:
    body = json.dumps(chat(stream=True, script={"tokens": 500, "interval_s": 0.02})).encode()
    async with connected(gateway) as upload:
        await upload.send((head(gateway, len(body)) + body) * 3)
        await until(lambda: gateway.engine.requests and gateway.engine.requests[0].sent_tokens > 3)
    await until(lambda: all(seen.ended for seen in gateway.engine.requests))
    assert gateway.engine.requests[0].ended == "aborted"
    await gateway.check_books()


async def test_other_methods_are_answered_without_a_walk(gateway: Stack) -> None:
    async with gateway.client() as client:
        for method in ("HEAD", "GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            answer = await client.request(method, PATH, content=b"x" * 1000 if method in {"PUT", "PATCH"} else None)
            assert answer.status_code == (204 if method == "OPTIONS" else 405)
            assert answer.headers["allow"] == "POST, OPTIONS"
            if method not in {"HEAD", "OPTIONS"}:
                assert answer.json()["error"]["code"] == "method_not_allowed"
        assert (await client.post(PATH, json=chat())).status_code == 200
    assert len(gateway.engine.requests) == 1


async def test_a_client_that_asks_before_it_sends_is_let_in_only_with_a_key(gateway: Stack) -> None:
    body = json.dumps(chat()).encode()
    async with connected(gateway) as upload:
        await upload.send(head(gateway, len(body), extra="expect: 100-continue\r\n"))
        assert b"100 Continue" in await asyncio.wait_for(upload.reader.readuntil(b"\r\n\r\n"), 60)
        await upload.send(body)
        assert (await upload.answer())[0] == 200
    async with connected(gateway) as upload:
        await upload.send(head(gateway, len(body), key="sk-cocoon-wrong", extra="expect: 100-continue\r\n"))
        assert (await upload.answer())[0] == 401
