"""One client behind ASGI: its body taken in within limits, its answer said once, its leaving noticed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.alarms import Alarms
from gateway.client import ClientGoneError
from gateway.errors import AnswerBrokenError, BodyTimeoutError, BodyTooLargeError, OverloadedError
from gateway.http import bodies
from gateway.http import client as module
from gateway.http.bodies import BodyRoom
from gateway.http.client import ASGIClient
from gateway.outcomes import Outcome, OutcomeRoom, Recording
from tests.scripted_engine import until

DISCONNECT = {"type": "http.disconnect"}


class Wire:
    """An ASGI server's two functions: messages to receive one by one, and what was sent."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.taken = 0
        self.alarms = Alarms()
        self.refuse = False
        self.full = asyncio.Event()
        self.left = asyncio.Event()
        self._messages = list(messages)

    async def receive(self) -> Any:
        if self.taken < len(self._messages):
            self.taken += 1
            return self._messages[self.taken - 1]
        await self.left.wait()
        return DISCONNECT

    async def send(self, message: Any) -> None:
        if self.refuse:
            raise RuntimeError("Unsupported ASGI message")
        self.sent.append(message)
        if self.full.is_set():
            await asyncio.Event().wait()

    def client(self, room: BodyRoom, **headers: str) -> ASGIClient:
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        return ASGIClient({"headers": raw}, self.receive, self.send, room, self.alarms)  # type: ignore[typeddict-item,arg-type]


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.fixture
def room() -> BodyRoom:
    return BodyRoom(each_max=10, total_max=15)


@pytest.fixture
async def reading(room: BodyRoom) -> AsyncIterator[tuple[Wire, ASGIClient]]:
    """A client whose body has been read."""
    wire = Wire(part(b"{}"))
    client = wire.client(room)
    await client.body()
    yield wire, client
    client.close()


async def test_a_body_is_put_together_and_its_room_given_back(room: BodyRoom) -> None:
    client = Wire(part(b"01234", more=True), part(b"", more=True), part(b"56789")).client(room)
    assert await client.body() == b"0123456789"
    assert room.left == 5
    client.close()
    client.close()
    assert room.left == 15


@pytest.mark.parametrize(
    ("messages", "headers"),
    [
        ([part(b"0" * 6, more=True), part(b"0" * 5)], {}),
        ([part(b"0" * 11)], {}),
        ([part(b"0", more=True)], {"content_length": "11"}),
    ],
)
async def test_a_body_over_its_limit_is_refused(
    room: BodyRoom, messages: list[dict[str, Any]], headers: dict[str, str]
) -> None:
    client = Wire(*messages).client(room, **headers)
    with pytest.raises(BodyTooLargeError):
        await client.body()
    client.close()
    assert room.left == 15


async def test_bodies_that_do_not_fit_together_are_refused_before_they_are_whole(room: BodyRoom) -> None:
    first, second = Wire(part(b"0" * 10)).client(room), Wire(part(b"0" * 6, more=True)).client(room)
    await first.body()
    with pytest.raises(OverloadedError):
        await second.body()
    second.close()
    first.close()
    assert room.left == 15


async def test_half_a_body_is_no_body(room: BodyRoom) -> None:
    client = Wire(part(b"{", more=True), DISCONNECT).client(room)
    with pytest.raises(ClientGoneError):
        await client.body()
    assert client.gone
    client.close()
    assert room.left == 15


async def test_an_upload_that_dawdles_is_refused(room: BodyRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_S_MAX", 0.01)
    assert bodies.BODY_S_MAX <= 60
    for messages in ([], [part(b"{", more=True)]):
        client = Wire(*messages).client(room)
        with pytest.raises(BodyTimeoutError):
            await client.body()
        client.close()
    assert room.left == 15


async def test_what_is_left_of_a_refused_body_is_thrown_away_up_to_a_limit(
    room: BodyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DISCARD_BYTES_MAX", 25)
    wire = Wire(*[part(b"0" * 10, more=True)] * 9)
    await wire.client(room).discard_body()
    assert wire.taken == 3
    wire = Wire(part(b"0", more=True), part(b"0"), part(b"another request's"))
    await wire.client(room).discard_body()
    assert wire.taken == 2


async def test_a_body_that_was_read_leaves_nothing_to_throw_away(
    reading: tuple[Wire, ASGIClient], room: BodyRoom
) -> None:
    _, client = reading
    assert client.read
    gone = Wire(part(b"{", more=True), DISCONNECT).client(room)
    with pytest.raises(ClientGoneError):
        await gone.body()
    assert not gone.read
    await asyncio.wait_for(gone.discard_body(), 60)


async def test_leaving_is_told_once_and_to_those_who_come_late(reading: tuple[Wire, ASGIClient]) -> None:
    wire, client = reading
    told: list[str] = []
    client.on_gone(lambda: told.append("first"))
    wire.left.set()
    await until(lambda: client.gone)
    client.on_gone(lambda: told.append("late"))
    assert told == ["first", "late"]
    await client.fail(AnswerBrokenError())
    assert wire.sent == []


async def test_an_error_is_an_answer_before_the_stream_and_an_event_on_it(
    reading: tuple[Wire, ASGIClient], room: BodyRoom
) -> None:
    wire, client = reading
    await client.fail(AnswerBrokenError())
    head, body = wire.sent
    assert head["status"] == 502
    assert (b"content-length", str(len(body["body"])).encode()) in head["headers"]
    assert body["more_body"] is False
    wire = Wire(part(b"{}"))
    client = wire.client(room)
    await client.begin_stream([])
    await client.write(b"data: 1\n\n")
    await client.fail(AnswerBrokenError())
    assert wire.sent[-1]["body"].startswith(b"data: ")
    assert json.loads(wire.sent[-1]["body"][6:])["error"]["code"] == "worker_failed"
    assert [message.get("more_body") for message in wire.sent] == [None, True, False]


async def test_nothing_follows_an_answer_that_has_begun_or_ended(room: BodyRoom) -> None:
    ended, cut = Wire(), Wire()
    client = ended.client(room)
    await client.answer([], b"{}")
    await client.fail(AnswerBrokenError())
    assert len(ended.sent) == 2
    client = ended.client(room)
    await client.begin_stream([])
    await client.finish(b"data: [DONE]\n\n")
    await client.fail(AnswerBrokenError())
    assert len(ended.sent) == 4
    # Cancelled between the head and the body of a document: an event would be taken for a part of it.
    cut.full.set()
    client = cut.client(room)
    answering = asyncio.create_task(client.answer([], b"{}"))
    await until(lambda: cut.sent)
    cut.full.clear()
    answering.cancel()
    await asyncio.wait([answering])
    await client.fail(AnswerBrokenError())
    assert len(cut.sent) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_head_that_the_server_refuses_leaves_room_for_an_error(room: BodyRoom, stream: bool) -> None:
    wire = Wire()
    client = wire.client(room)
    wire.refuse = True
    with pytest.raises(RuntimeError):
        await (client.begin_stream([]) if stream else client.answer([], b"{}"))
    wire.refuse = False
    await client.fail(AnswerBrokenError())
    assert wire.sent[0]["status"] == 502


async def test_a_client_that_does_not_read_is_not_waited_for_with_an_error(
    reading: tuple[Wire, ASGIClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAIL_S_MAX", 0.01)
    wire, client = reading
    wire.full.set()
    await asyncio.wait_for(client.fail(AnswerBrokenError()), 60)
    assert client.blocked


@pytest.fixture
def recording(reading: tuple[Wire, ASGIClient]) -> Recording:
    made = Recording(OutcomeRoom(1000))
    reading[1].record(made)
    return made


async def test_a_recorded_document_is_what_was_sent(reading: tuple[Wire, ASGIClient], recording: Recording) -> None:
    wire, client = reading
    client.always([(b"x-request-id", b"1")])
    await client.answer([(b"x-cocoon-worker", b"w")], b"{}")
    assert recording.outcome == Outcome(stream=False, headers=((b"x-cocoon-worker", b"w"),), body=wire.sent[1]["body"])


async def test_a_recorded_stream_is_what_was_sent(reading: tuple[Wire, ASGIClient], recording: Recording) -> None:
    wire, client = reading
    await client.begin_stream([(b"x-cocoon-worker", b"w")])
    await client.write(b": keep-alive\n\n")
    assert recording.outcome is None
    await client.finish(b"data: [DONE]\n\n")
    assert recording.outcome == Outcome(
        stream=True,
        headers=((b"x-cocoon-worker", b"w"),),
        body=b"".join(message["body"] for message in wire.sent[1:]),
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_the_end_of_an_answer_is_recorded_before_the_client_takes_it(
    reading: tuple[Wire, ASGIClient], recording: Recording, stream: bool
) -> None:
    wire, client = reading
    wire.full.set()
    if stream:
        sending = asyncio.create_task(client.finish(b"data: [DONE]\n\n"))
        recording.begin([], stream=True)
    else:
        sending = asyncio.create_task(client.answer([], b"{}"))
    await until(lambda: wire.sent)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert recording.outcome is not None


async def test_an_error_event_on_a_recorded_stream_does_not_make_it_whole(
    reading: tuple[Wire, ASGIClient], recording: Recording
) -> None:
    _, client = reading
    await client.begin_stream([])
    await client.write(b"data: {}\n\n")
    await client.fail(AnswerBrokenError())
    assert recording.outcome is None
