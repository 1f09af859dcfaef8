"""The ASGI side of one exchange: body in, answer out, and one watcher that notices the client leaving.

`send()` succeeds silently after a disconnect, so `receive()` is the only signal (measured with granian); the watcher
is the one task that waits on it. It starts when the answer has not come at once: `receive()` still tells then of a
client that left before. An `http.disconnect` while the body is still arriving is not the body's end.
"""

import asyncio
import contextlib
from collections.abc import Callable

from litestar.types import HTTPScope, Receive, Send

from cocoon.errors import CocoonError
from gateway.alarms import Alarms, Within
from gateway.client import ClientGoneError, Headers
from gateway.errors import BodyTimeoutError, BodyTooLargeError
from gateway.http.bodies import BODY_S_MAX, BodyRoom
from gateway.http.errors import SEALED_TYPE, error_answer, error_event
from gateway.outcomes import Recording

JSON = (b"content-type", b"application/json")
SEALED = (b"content-type", SEALED_TYPE)
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
DISCARD_BYTES_MAX = 256 * 1024 * 1024
DISCARD_S_MAX = 20.0
"""How much of a refused upload is still taken in, so that its sender gets to read the refusal."""
FAIL_S_MAX = 5.0
WATCH_AFTER_S = 0.01
"""How long after its body a client is not watched yet (and a tick of the alarms)."""
_NO_STORE = (b"cache-control", b"no-store")


class ASGIClient:
    """One client; `close` when its exchange is over."""

    def __init__(self, scope: HTTPScope, receive: Receive, send: Send, room: BodyRoom, alarms: Alarms) -> None:
        self.gone = False
        self.blocked = False
        self.began = False
        self._sealed = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._room = room
        self._alarms = alarms
        self.due_at = 0.0
        self._held = 0
        self.read = False
        self._callback: Callable[[], None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._recording: Recording | None = None
        self._named: Headers = []
        self._head_sent = False
        self._ended = False

    async def body(self) -> bytes:
        """See `Client.body`. From its end on, the client is watched."""
        for name, value in self._scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._room.each_max:
                raise BodyTooLargeError(f"The body is larger than {self._room.each_max} bytes.")
        try:
            with Within(self._alarms, BODY_S_MAX) as within:
                body = await self._whole_body()
        except TimeoutError:
            raise BodyTimeoutError from None
        self.read = True
        self.due_at = within.loop.time() + WATCH_AFTER_S
        self._alarms.add(self)
        return body

    def ring(self) -> None:
        """The answer does not come at once: watch the client from now on. Called by the alarms."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def discard_body(self) -> None:
        """Read what is left of the body and throw it away: under an upload, closing would lose the answer as well."""
        left = DISCARD_BYTES_MAX
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S_MAX):
                while left > 0 and not self.gone:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message["more_body"]:
                        return
                    left -= len(message["body"])

    def close(self) -> None:
        """Watch no longer and hold nothing."""
        self._alarms.discard(self)
        if self._watcher is not None:
            self._watcher.cancel()
        self._room.give_back(self._held)
        self._held = 0

    def always(self, headers: Headers) -> None:
        """Put these headers on whatever is sent from now on."""
        self._named += headers

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once when the client leaves, at once if it has left."""
        self._callback = callback
        if callback is not None and self.gone:
            callback()

    def seal(self) -> None:
        """See `Client.seal`."""
        self._sealed = True

    def record(self, recording: Recording) -> None:
        """Copy into `recording` whatever is sent from now on."""
        self._recording = recording

    async def answer(self, headers: Headers, body: bytes, status: int = 200) -> None:
        """Send a whole answer."""
        await self._whole(status, SEALED if self._sealed else JSON, headers, body)

    async def begin_stream(self, headers: Headers) -> None:
        """Send the head of a stream; proxies are asked not to buffer it."""
        self.began = True
        if self._recording is not None:
            self._recording.begin(headers, stream=True)
        kind = SEALED if self._sealed else EVENT_STREAM
        await self._start(200, [kind, _NO_STORE, (b"x-accel-buffering", b"no"), *self._named, *headers])

    async def write(self, data: bytes) -> None:
        """Send whole events in one write."""
        if self._recording is not None:
            self._recording.add(data, last=False)
        await self._body(data, more=True)

    async def finish(self, data: bytes) -> None:
        """Send the last events of a stream and end it."""
        if self._recording is not None:
            self._recording.add(data, last=True)
        await self._body(data, more=False)

    async def fail(self, error: CocoonError) -> None:
        """An error answer, or an error event on a stream that has begun; nothing once the client is gone.

        A sealed stream just ends: nobody but its worker can put anything on it, its end included.

        A client that does not read is not waited for beyond `FAIL_S_MAX`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAIL_S_MAX):
                if self.gone or self._ended:
                    return
                if self.began:
                    await self._body(b"" if self._sealed else error_event(error), more=False)
                elif not self._head_sent:
                    answer = error_answer(error)
                    kind = (b"content-type", answer.content_type)
                    await self._whole(answer.status, kind, answer.headers, answer.body)

    async def _whole(self, status: int, kind: tuple[bytes, bytes], headers: Headers, body: bytes) -> None:
        if self._recording is not None:
            self._recording.begin(headers, stream=False)
            self._recording.add(body, last=True)
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [kind, length, _NO_STORE, *self._named, *headers])
        await self._body(body, more=False)

    async def _whole_body(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                self.gone = True
                raise ClientGoneError
            part, more = message["body"], message["more_body"]
            size += len(part)
            if size > self._room.each_max:
                raise BodyTooLargeError(f"The body is larger than {self._room.each_max} bytes.")
            self._room.take(len(part))
            self._held = size
            if not more and not parts:
                return part
            parts.append(part)
            if not more:
                return b"".join(parts)

    async def _start(self, status: int, headers: Headers) -> None:
        self._head_sent = self.blocked = True
        try:
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
        except Exception:
            # The server would not have it: something else can still be said.
            self._head_sent = self.began = False
            raise
        self.blocked = False

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
