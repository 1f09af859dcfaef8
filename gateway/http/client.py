"""The ASGI side of one exchange: body in, answer out, and one watcher that notices the client leaving.

`send()` succeeds silently after a disconnect, so `receive()` is the only signal (measured with granian); the watcher
is the one task that waits on it. An `http.disconnect` while the body is still arriving is not the body's end.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from litestar.types import HTTPScope, Receive, Send

from cocoon.errors import CocoonError
from gateway.client import ClientGoneError, Headers
from gateway.errors import BodyTooLargeError
from gateway.http.errors import error_answer, error_event

JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
DISCARD_BYTES_MAX = 256 * 1024 * 1024
DISCARD_S_MAX = 20.0
"""How much of a refused upload is still taken in, so that its sender gets to read the refusal."""
_NO_STORE = (b"cache-control", b"no-store")


class ASGIClient:
    """One client; an async context manager around everything after the body has been read."""

    def __init__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        self.gone = False
        self.blocked = False
        self.began = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._callback: Callable[[], None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._named: Headers = []
        self._ended = False

    async def read_body(self, bytes_max: int) -> bytes:
        """The whole body.

        Raises:
            BodyTooLargeError: longer than `bytes_max`, by its own word or in fact.
            ClientGoneError: the client left before the end of it.
        """
        for name, value in self._scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > bytes_max:
                raise BodyTooLargeError(f"The body is larger than {bytes_max} bytes.")
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                self.gone = True
                raise ClientGoneError
            part = message["body"]
            size += len(part)
            if size > bytes_max:
                raise BodyTooLargeError(f"The body is larger than {bytes_max} bytes.")
            if not message["more_body"] and not parts:
                return part
            parts.append(part)
            if not message["more_body"]:
                return b"".join(parts)

    async def discard_body(self) -> None:
        """Read on and throw away, for a while: a connection closed under an upload loses the answer as well."""
        left = DISCARD_BYTES_MAX
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S_MAX):
                while left > 0 and not self.gone:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message["more_body"]:
                        return
                    left -= len(message["body"])

    async def __aenter__(self) -> Self:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    def always(self, headers: Headers) -> None:
        """Put these headers on whatever is sent from now on."""
        self._named += headers

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once when the client leaves, at once if it has left."""
        self._callback = callback
        if callback is not None and self.gone:
            callback()

    def require_present(self) -> None:
        """Raise ClientGoneError if the client has left."""
        if self.gone:
            raise ClientGoneError

    async def answer(self, headers: Headers, body: bytes, status: int = 200) -> None:
        """Send a whole answer."""
        self.began = True
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [JSON, length, _NO_STORE, *self._named, *headers])
        await self._body(body, more=False)

    async def begin_stream(self, headers: Headers) -> None:
        """Send the head of a stream; proxies are asked not to buffer it."""
        self.began = True
        await self._start(200, [EVENT_STREAM, _NO_STORE, (b"x-accel-buffering", b"no"), *self._named, *headers])

    async def write(self, data: bytes) -> None:
        """Send whole events in one write."""
        if data:
            await self._body(data, more=True)

    async def finish(self) -> None:
        """End a stream."""
        await self._body(b"", more=False)

    async def fail(self, error: CocoonError) -> None:
        """An error answer, or an error event on a stream that has begun; nothing once the client is gone."""
        if self.gone or self._ended:
            return
        if self.began:
            await self._body(error_event(error), more=False)
            return
        answer = error_answer(error)
        await self.answer(answer.headers, answer.body, answer.status)

    async def _start(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self, data: bytes, *, more: bool) -> None:
        self._ended = not more
        self.blocked = True
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.blocked = False

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        self.gone = True
        if self._callback is not None:
            self._callback()
