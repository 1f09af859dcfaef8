"""A small HTTP/1.1 client exchange on `httptools`, for hops inside the network.

General clients cost the relay more than half of its throughput; this one does only what the hops need: one
request at a time per connection, keep-alive, bounded buffering with back-pressure, and an abort that is a close.
It opens no socket itself: whoever owns the event loop connects it and decides about pooling and pinning.
"""

import asyncio
import re
import select
from collections.abc import Iterable
from typing import cast

import httptools

from cocoon.errors import CocoonError

READ_BUFFER_BYTES_MAX = 256 * 1024
HEAD_BYTES_MAX = 64 * 1024
"""Most bytes of headers and trailers together, and most bytes in a row that are neither a head's end nor body."""

_FRAMING_HEADERS = frozenset((b"content-length", b"transfer-encoding"))
_UNSAFE = re.compile(rb"[\x00\r\n]")
_UNSAFE_TARGET = re.compile(rb"[\x00-\x20\x7f]")


class HopError(CocoonError):
    """The connection to the other side failed."""

    code = "hop_failed"
    transient = True


class HopClosedError(HopError):
    """The other side closed the connection before the answer was complete."""

    code = "hop_closed"


class Head:
    """Status line and headers of an answer. Header names are lower-case."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers


class Connection(asyncio.Protocol):
    """One connection; `send`, then `head`, then `read` until it returns b"" (the end of the answer)."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: HopError | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._silent_bytes = 0
        self._head: Head | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._complete = True
        self._paused = False
        self._keep_alive = False
        self._news: select.poll | None = None
        self.idle_since = 0.0
        self.bytes_received = 0

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: the last answer is complete and both sides keep the connection."""
        transport = self._transport
        return (
            self._complete
            and not self._chunks
            and self._error is None
            and transport is not None
            and not transport.is_closing()
        )

    @property
    def silent(self) -> bool:
        """Whether nothing has arrived that the loop has not told us yet: a close that came a moment ago, above all."""
        if self._news is None:
            self._news = select.poll()
            self._news.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._news.poll(0)

    @property
    def transport(self) -> asyncio.Transport:
        """The transport, for reading the peer's certificate."""
        assert self._transport is not None, "not connected"
        return self._transport

    def send(self, request: bytes) -> None:
        """Write one whole request. The previous answer must be complete."""
        assert self.reusable, "one request at a time"
        self._headers = {}
        self._head = None
        self._head_bytes = self._silent_bytes = 0
        self._complete = self._keep_alive = False
        self.bytes_received = 0
        self.transport.write(request)

    async def head(self) -> Head:
        """Wait for status and headers.

        Raises:
            HopClosedError: the connection closed first.
            HopError: the bytes are not HTTP.
        """
        while self._head is None:
            await self._wait()
        return self._head

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end.

        Raises:
            HopClosedError: the connection closed before the end.
            HopError: the bytes are not HTTP.
        """
        while not self._chunks:
            if self._complete:
                return b""
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()
        return data

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body.

        Raises:
            HopError: longer than `limit` bytes, closed early, or not HTTP.
        """
        parts: list[bytes] = []
        size = 0
        while chunk := await self.read():
            size += len(chunk)
            if size > limit:
                self.abort()
                raise HopError("the answer is too long")
            parts.append(chunk)
        return b"".join(parts)

    def abort(self) -> None:
        """Close at once, losing what is unsent: the other side sees it as an abort. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        assert self._waiter is None, "one reader at a time"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: HopError) -> None:
        self._error = self._error or error
        self._wake()

    def _break(self, error: HopError) -> None:
        self._fail(error)
        self.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's stream transports are not subclasses of asyncio's: only the shape can be relied on.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._complete:
            # Bytes nobody asked for: the connection cannot be trusted with another request.
            self._break(HopError("unexpected bytes after the answer"))
            return
        self.bytes_received += len(data)
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # What one of the callbacks below raised is the parser error's context. After a complete answer this
            # costs the connection but not the answer.
            failure = error.__context__
            if not isinstance(failure, HopError):
                failure = HopError("the answer is not HTTP/1.1")
                failure.__cause__ = error
            self._break(failure)
            return
        if self._silent_bytes > HEAD_BYTES_MAX and not self._complete:
            self._break(HopError("the answer's headers are too long"))
            return
        if self._buffered > READ_BUFFER_BYTES_MAX and not self._paused and not self._complete:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Called by the loop; a body without a length ends here."""
        if not self._complete and self._head is not None and self._ends_with_connection():
            self._complete = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        failure = HopClosedError()
        failure.__cause__ = exc
        self._fail(failure)

    # httptools callbacks

    def on_message_begin(self) -> None:
        """Called by the parser; a second answer in the same segment must not mix with the first."""
        if self._complete:
            raise HopError("unexpected bytes after the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, for trailers too."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise HopError("the answer's headers are too long")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._silent_bytes = 0
        status = self._parser.get_status_code()
        if status >= 200:  # noqa: PLR2004  informational answers are not the answer
            self._keep_alive = self._parser.should_keep_alive()
            self._head = Head(status, self._headers)
        self._headers = {}

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._silent_bytes = 0
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._head is None:
            return
        self._complete = True
        if self.transport.get_write_buffer_size():
            # Answered before it was sent whole (a 413): nobody wants the rest, and close() would wait for it.
            self.transport.abort()
        elif not self._keep_alive:
            self.transport.close()

    def _ends_with_connection(self) -> bool:
        assert self._head is not None, "asked before the head"
        headers = self._head.headers
        return b"content-length" not in headers and b"transfer-encoding" not in headers


def request_bytes(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes = b"") -> bytes:
    """One HTTP/1.1 request. The length of the body is stated here and nowhere else.

    Raises:
        HopError: the target or a header would inject another, or a header contradicts the body's length.
    """
    if _UNSAFE_TARGET.search(target):
        raise HopError("a request target may not contain spaces or line breaks")
    lines = [method + b" " + target + b" HTTP/1.1"]
    for name, value in headers:
        if name.lower() in _FRAMING_HEADERS:
            raise HopError("the body's length is stated once")
        lines.append(name + b": " + value)
    if _UNSAFE.search(b"".join(lines)):
        raise HopError("a header may not contain line breaks")
    lines.append(b"content-length: %d\r\n\r\n" % len(body))
    return b"\r\n".join(lines) + body
