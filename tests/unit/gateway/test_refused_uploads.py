"""Who uploads to a route that refuses it gets to read the refusal."""

from typing import Any, cast

import pytest
from litestar.types import ASGIApp, HTTPScope

from gateway.http.uploads import DISCARD_BYTES_MAX, read_before_refusing


class Connection:
    """A client that sends `parts`, and what the application did, in order."""

    def __init__(self, parts: list[bytes], *, leaves: bool = False) -> None:
        self._messages: list[Any] = [
            {"type": "http.request", "body": part, "more_body": leaves or number + 1 < len(parts)}
            for number, part in enumerate(parts)
        ]
        self._messages.append({"type": "http.disconnect"})
        self.seen: list[str] = []
        self.taken = 0

    async def receive(self) -> Any:
        message = self._messages.pop(0)
        self.seen.append(message["type"])
        self.taken += len(message.get("body", b""))
        return message

    async def send(self, message: Any) -> None:
        self.seen.append(message["type"])


def answering(status: int, *, reads: int) -> ASGIApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(reads):
            await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return read_before_refusing(cast("ASGIApp", app))


SENT = ["http.response.start", "http.response.body"]
SCOPE = cast("HTTPScope", {"type": "http"})


@pytest.mark.parametrize("reads", [0, 1, 3])
async def test_what_is_left_of_a_refused_upload_is_read_before_the_answer(reads: int) -> None:
    connection = Connection([b"a", b"b", b"c"])
    await answering(413, reads=reads)(SCOPE, connection.receive, connection.send)
    assert connection.seen == ["http.request"] * 3 + SENT


async def test_an_answer_that_refuses_nothing_waits_for_nothing() -> None:
    connection = Connection([b"a", b"b"])
    await answering(200, reads=1)(SCOPE, connection.receive, connection.send)
    assert connection.seen == ["http.request", *SENT]


async def test_a_sender_that_leaves_ends_the_reading() -> None:
    connection = Connection([b"a"], leaves=True)
    await answering(401, reads=0)(SCOPE, connection.receive, connection.send)
    assert connection.seen == ["http.request", "http.disconnect", *SENT]


async def test_an_endless_upload_is_not_read_to_its_end() -> None:
    part = b" " * (DISCARD_BYTES_MAX // 4)
    connection = Connection([part] * 40)
    await answering(413, reads=0)(SCOPE, connection.receive, connection.send)
    assert connection.taken == DISCARD_BYTES_MAX
