"""The client as the pipeline sees it: a port, the signal that it has left, and comments that keep it waiting."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol, Self

import msgspec

from cocoon.errors import CocoonError
from cocoon.sse import KEEP_ALIVE
from gateway.outcomes import Recording

COMMENT_S_MAX = 1.0
"""How long a comment that is being written may hold up a failure."""

Headers = list[tuple[bytes, bytes]]


class ClientGoneError(Exception):
    """The client left; not an error of anybody's, and never shown to anyone."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds and the number of requests at once that a process accepts."""

    first_byte_s: float
    idle_s: float
    request_s_max: float
    keep_alive_s: float
    exchanges_max: int


class Client(Protocol):
    """Whoever waits for the answer. `blocked` is true while it does not read, `began` once a stream has begun."""

    gone: bool
    blocked: bool
    began: bool

    def always(self, headers: Headers) -> None:
        """Put these headers on whatever is sent from now on."""
        ...

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once when the client leaves, at once if it has left; None forgets it."""
        ...

    def seal(self) -> None:
        """Answer in the type of sealed answers from now on; errors before one begins are plain all the same."""
        ...

    def record(self, recording: Recording) -> None:
        """Copy into `recording` whatever is sent from now on."""
        ...

    async def body(self) -> bytes:
        """The whole request body; to be asked for once.

        Raises:
            BodyTooLargeError, BodyTimeoutError, OverloadedError: it is not taken in.
            ClientGoneError: the client left before the end of it.
        """
        ...

    async def answer(self, headers: Headers, body: bytes) -> None:
        """Send a whole unary answer."""
        ...

    async def begin_stream(self, headers: Headers) -> None:
        """Send the head of a stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Send whole events in one write."""
        ...

    async def finish(self, data: bytes) -> None:
        """Send the last events of a stream and end it."""
        ...

    async def fail(self, error: CocoonError) -> None:
        """Send the error in whatever form is still possible."""
        ...


def require_present(client: Client) -> None:
    """Raise ClientGoneError if the client has left."""
    if client.gone:
        raise ClientGoneError


class KeepAlive:
    """Comments on a stream that has nothing to say yet.

    Entered around the wait for the first token: if that is short, a timer is set and removed, no more. Once a
    comment has been sent the answer has begun, and a later failure is an event on it.
    """

    def __init__(
        self, client: Client, interval_s: float, headers: Callable[[], Headers], comment: bytes = KEEP_ALIVE
    ) -> None:
        self._client = client
        self._comment_bytes = comment
        self._interval_s = interval_s
        self._headers = headers
        self._stop = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._start)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._timer is not None, "entered before"
        self._timer.cancel()
        if self._task is None:
            return
        # A comment that is being written is finished first: two writers must not interleave. But where the wait has
        # failed, nobody watches the time any more, and a client that does not read must not hold this up.
        self._stop.set()
        try:
            await asyncio.wait([self._task], timeout=None if kind is None else COMMENT_S_MAX)
        finally:
            self._task.cancel()
        if kind is None:
            self._task.result()

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._comment())

    async def _comment(self) -> None:
        while not (self._stop.is_set() or self._client.gone):
            if not self._client.began:
                await self._client.begin_stream(self._headers())
            await self._client.write(self._comment_bytes)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._interval_s)
