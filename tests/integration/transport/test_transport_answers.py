"""What targets answer, well and badly: streams, unary documents and frames become batches, or a clear failure."""

import asyncio
import contextlib
import gzip
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from cocoon import hop, splice, sse
from cocoon.clock import ManualClock
from cocoon.errors import MalformedError
from cocoon.http1 import HopClosedError, HopError
from cocoon.receipt import ReceiptHead
from cocoon.usage import TokenUsage
from tests.integration.transport.peers import BODY, Peer, Script, Served, a_certificate, a_job, serving
from workers import transport as module
from workers.targets import Target
from workers.transport import Answer, Batch, End, RefusedError, Transport, TransportError

USAGE = TokenUsage(prompt=3, completion=2)


@pytest.fixture
def transport() -> Transport:
    return Transport(ManualClock(), allow_private=True)


@contextlib.asynccontextmanager
async def opened(transport: Transport, script: Script, **job: Any) -> AsyncIterator[tuple[Answer, Served]]:
    async with serving(script) as served:
        answer = await transport.open(served.upstream(), a_job(**job))
        try:
            yield answer, served
        finally:
            answer.close()
            transport.close()


def stream(*writes: bytes, end: bool = True) -> Script:
    """An engine that answers with these writes, each in a segment of its own as far as can be arranged."""

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.begin()
        for write in writes:
            peer.chunk(write)
            await asyncio.sleep(0.01)
        if end:
            peer.end()
        await peer.gone()

    return script


def event(content: str | None = None, finish: str | None = None, **members: Any) -> bytes:
    choices = [{"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **members}).encode() + b"\n\n"


def usage_event(prompt: int = 3, completion: int = 2) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


async def drained(answer: Answer) -> tuple[bytes, Batch]:
    data = b""
    while True:
        batch = await answer.next()
        data += batch.data
        if batch.end is not None:
            return data, batch


async def test_the_usage_chunk_is_shown_only_to_those_who_asked_and_metered_always(transport: Transport) -> None:
    writes = [event("a"), event("b"), event(finish="stop"), usage_event(), sse.DONE_EVENT]
    for shown in (True, False):
        async with opened(transport, stream(*writes), stream=True, show_usage=shown) as (answer, _):
            data, last = await drained(answer)
        assert data == b"".join(write for write in writes if shown or write != usage_event())
        assert last.end == End(usage=USAGE, finish_reason="stop")


async def test_the_last_of_several_reports_counts(transport: Transport) -> None:
    first = event("a", usage={"prompt_tokens": 3, "completion_tokens": 0})
    writes = [first, event("b"), usage_event(3, 1), event(finish="length"), usage_event(), sse.DONE_EVENT]
    async with opened(transport, stream(b"".join(writes)), stream=True) as (answer, _):
        data, last = await drained(answer)
    # The engine's own stream puts counts on a chunk with content: that one is the client's to see.
    assert data == first + event("b") + event(finish="length") + sse.DONE_EVENT
    assert last.end == End(usage=USAGE, finish_reason="length")


async def test_crlf_streams_end_with_the_same_mark(transport: Transport) -> None:
    raw = (event("a") + event(finish="stop") + b"data: [DONE]\n\n").replace(b"\n", b"\r\n")
    for cut in (len(raw), len(raw) - 1, len(raw) - 3, len(raw) // 2, 20):
        async with opened(transport, stream(raw[:cut], raw[cut:]), stream=True) as (answer, _):
            data, last = await drained(answer)
        assert data.endswith(b"}\r\n\r\n" + sse.DONE_EVENT)
        assert last.end is not None
        assert last.end.finish_reason == "stop"


async def test_what_follows_done_is_not_the_clients_and_does_not_break_the_answer(transport: Transport) -> None:
    for writes in ([event("a") + sse.DONE_EVENT + event("late")], [event("a") + sse.DONE_EVENT, event("late")]):
        async with opened(transport, stream(*writes), stream=True) as (answer, _):
            data, _ = await drained(answer)
        assert data == event("a") + sse.DONE_EVENT


async def test_an_answer_whose_http_end_does_not_come_is_whole_and_costs_its_connection(transport: Transport) -> None:
    async with (
        asyncio.timeout(60),
        opened(transport, stream(event("a") + sse.DONE_EVENT, end=False), stream=True) as (answer, _),
    ):
        data, _ = await drained(answer)
        assert data == event("a") + sse.DONE_EVENT
        answer.close()
        assert not any(transport._connections._kept.values())


async def test_a_stream_without_done_is_broken_even_after_its_finish_reason(transport: Transport) -> None:
    async with opened(transport, stream(event("a"), event(finish="stop"), usage_event()), stream=True) as (answer, _):
        with pytest.raises(HopClosedError):
            await drained(answer)


async def test_comments_are_passed_on_only_between_events(transport: Transport) -> None:
    writes = [b": one\n\n", b": two\n\n", event("a"), b": three\n\n", sse.DONE_EVENT]
    async with opened(transport, stream(*writes), stream=True) as (answer, _):
        first = await answer.next()
        assert first.data.startswith(event("a"))
        data, _ = await drained(answer)
    assert first.data + data == event("a") + b": three\n\n" + sse.DONE_EVENT


async def test_an_error_in_the_stream_breaks_it(transport: Transport) -> None:
    async with opened(transport, stream(b'data: {"error" : {"message":"x"}}\n\n'), stream=True) as (answer, _):
        with pytest.raises(MalformedError):
            await drained(answer)


@pytest.mark.parametrize("reason", ["x" * 65, "nul\x00", "ünlike", "two words"])
async def test_a_finish_reason_that_is_none_is_recorded_as_other(transport: Transport, reason: str) -> None:
    async with opened(transport, stream(event(finish=reason) + sse.DONE_EVENT), stream=True) as (answer, _):
        data, last = await drained(answer)
    assert event(finish=reason) in data
    assert last.end is not None
    assert last.end.finish_reason == "other"


async def test_a_document_is_no_stream(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.answer(b'{"choices":[]}', content_type="application/json")
        await peer.gone()

    async with serving(script) as served:
        with pytest.raises(TransportError, match="event-stream"):
            await transport.open(served.upstream(), a_job(stream=True))


@pytest.mark.parametrize(
    "body",
    [
        event("a") + sse.DONE_EVENT,
        b"{}",
        b'{"object":"error","message":"flat","code":400}',
        b'{"choices":[{}],"error":{"message":"x"}}',
        b'{"choices":[{}],"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}',
        b'{"choices":[{}],"usage":{"completion_tokens":-1}}',
        gzip.compress(b'{"choices":[{}]}', mtime=0),
        b"",
    ],
)
async def test_a_unary_answer_that_is_none_is_refused(transport: Transport, body: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.answer(body)
        await peer.gone()

    async with opened(transport, script) as (answer, _):
        with pytest.raises(MalformedError):
            await answer.next()


async def test_a_unary_answer_longer_than_the_limit_is_given_up(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_BYTES_MAX", 1000)

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.answer(b'{"choices":[{}]}' + b" " * 1000)
        await peer.gone()

    async with opened(transport, script) as (answer, _):
        with pytest.raises(HopError):
            await answer.next()


async def test_a_body_that_cannot_be_edited_is_the_requests_fault_and_is_not_sent(transport: Transport) -> None:
    members = ",".join(f'"m{index}":0' for index in range(splice.MEMBERS_MAX))
    body = BODY[:-1] + b"," + members.encode() + b"}"

    async def script(peer: Peer) -> None:
        await peer.request()

    async with serving(script) as served:
        with pytest.raises(RefusedError) as refused:
            await transport.open(served.upstream(), a_job(body=body, stream=True))
        assert refused.value.status == 400
        assert "members" in msgspec.json.decode(refused.value.body)["error"]["message"]
        assert served.requests == []


@pytest.mark.parametrize("lie", ["receipt", "signature", "progress", "junk", "salt"])
async def test_an_agents_lie_breaks_the_answer(transport: Transport, tmp_path: pathlib.Path, lie: str) -> None:
    pin = a_certificate(tmp_path / "cert.pem")
    head = ReceiptHead(
        global_id=-3, stake=bytes(32), seq=0, ticket_sha256=bytes(32), body_sha256=bytes(32), usage=USAGE
    ).encode()
    usage = TokenUsage(prompt=3, completion=3) if lie == "receipt" else USAGE
    trailer = hop.Trailer(
        usage=usage, finish_reason="stop", receipt_head=head, receipt_body=b"",
        receipt_signature=bytes(63 if lie == "signature" else 64),
    )  # fmt: skip
    data = hop.data_frame(b"{}") + hop.trailer_frame(trailer)
    if lie == "progress":
        data = hop.progress_frame(TokenUsage(prompt=1))[:-12] + b"\x00\x00\x00\x01\x00\x00\x00\x02" + bytes(4) + data
    if lie == "junk":
        data += b"\x01"

    async def script(peer: Peer) -> None:
        await peer.request()
        salt = "x-cocoon-salt: a\x01b\r\n" if lie == "salt" else ""
        peer.send(
            f"HTTP/1.1 200 OK\r\ncontent-type: {hop.CONTENT_TYPE}\r\n{salt}content-length: {len(data)}\r\n\r\n".encode()
        )
        peer.send(data)
        await peer.gone()

    async with serving(script, tmp_path / "cert.pem") as served:
        with pytest.raises((MalformedError, TransportError, HopError)):
            await whole(transport, served.worker(pin))
        transport.close()


async def whole(transport: Transport, target: Target) -> None:
    answer = await transport.open(target, a_job())
    try:
        await drained(answer)
    finally:
        answer.close()
