"""HTTP/1.1 for one machine's own programs: requests in, answers out, nothing else.

asyncio's protocol and `httptools`, both in the base install already: a general server would be another dependency of
whoever only wants the proxy. One request at a time per connection; the peer's leaving cancels the answer.
"""

import asyncio
import http
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import httptools
import msgspec

from cocoon.errors import CocoonError
from cocoon.sealed import BODY_BYTES_MAX

HEAD_BYTES_MAX: Final = 64 * 1024
EARLY_BYTES_MAX: Final = BODY_BYTES_MAX + HEAD_BYTES_MAX
WRITE_BUFFER_BYTES: Final = 256 * 1024
_FRAMING: Final = frozenset({"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"})


class Request(msgspec.Struct, frozen=True):
    """A whole request. Header names are lower-case; of two equal ones the last is kept."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class TooLongError(CocoonError):
    """The request is too long."""

    code = "request_too_long"


class Answer:
    """How a handler answers: `start` once, `write` any number of times, and return."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.started = False

    async def send(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """A whole answer."""
        self.started = True
        self._connection.head(status, [*headers, ("content-length", str(len(body)))])
        await self._connection.write(body)

    async def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """The head of an answer whose length is not known."""
        self.started = True
        self._connection.head(status, [*headers, ("transfer-encoding", "chunked")])

    async def write(self, part: bytes) -> None:
        """Part of the body; waits while the peer reads slowly."""
        if part:
            await self._connection.write(b"%x\r\n%s\r\n" % (len(part), part))

    async def end(self) -> None:
        """The body is whole. Without it the peer sees a broken answer."""
        await self._connection.write(b"0\r\n\r\n")


Handler = Callable[[Request, Answer], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One connection of a local program."""

    def __init__(self, handler: Handler, tasks: asyncio.TaskGroup, connections: "set[Connection]") -> None:
        self._handler = handler
        self._tasks = tasks
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._early = b""
        self._writable = asyncio.Event()
        self._writable.set()
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._body = bytearray()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer is there."""
        assert isinstance(transport, asyncio.Transport), "a stream"
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self._transport = transport
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._task is not None:
            # A peer that has its whole answer may ask again before the handler has put everything away.
            self._early += data
            if len(self._early) > EARLY_BYTES_MAX:
                self.abort()
            return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(413 if isinstance(cause, TooLongError) else 400, "not a request that can be read")

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer left: whatever is being answered is not wanted any more."""
        del exc
        self._connections.discard(self)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The peer reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    # What the parser calls

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        self._count(url)
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count(name + value)
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._body += body
        if len(self._body) > BODY_BYTES_MAX:
            raise TooLongError

    def on_message_complete(self) -> None:
        """The request is whole."""
        request = Request(
            method=self._parser.get_method().decode("latin-1"), target=self._target.decode("latin-1"),
            headers=self._headers, body=bytes(self._body),
        )  # fmt: skip
        keep = self._parser.should_keep_alive()
        self._reset()
        self._task = self._tasks.create_task(self._answer(request, keep_alive=keep))

    # What answers do

    def head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Status line and headers."""
        if self._transport is None or self._transport.is_closing():
            return
        lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
        lines += [f"{name}: {value}" for name, value in headers if not set(value) & {"\r", "\n", "\0"}]
        self._transport.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))

    async def write(self, data: bytes) -> None:
        """Bytes, when the peer can take them."""
        await self._writable.wait()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now, whatever has not been read."""
        if self._transport is not None:
            self._transport.abort()

    async def _answer(self, request: Request, *, keep_alive: bool) -> None:
        whole = False
        try:
            answer = Answer(self)
            await self._handler(request, answer)
            whole = answer.started
        finally:
            self._task = None
            early, self._early = self._early, b""
            if not (keep_alive and whole):
                self.close()
            elif early:
                self._parse(early)

    def _refuse(self, status: int, message: str) -> None:
        body = b'{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":null}}' % message.encode()
        self.head(status, [("content-type", "application/json"), ("content-length", str(len(body)))])
        if self._transport is not None:
            self._transport.write(body)
        self.close()

    def _count(self, part: bytes) -> None:
        self._head_bytes += len(part)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise TooLongError


def passed_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of an answer that do not describe its connection."""
    return [(name, value) for name, value in headers if name.lower() not in _FRAMING]


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Status"
