"""How long an exchange may still take."""

import asyncio
from types import TracebackType
from typing import Self

from gateway.client import Limits

_COARSE = 8
"""A deadline is moved only when that makes it later by an eighth of `idle_s`: moving a timer costs more than asking."""


class Deadline:
    """So long for the first byte, so long from byte to byte, so long in all; TimeoutError when time is up.

    An async context manager, without a limit until something is expected. Whoever leaves (`end_now`) has the last
    word: nothing makes it later after that.
    """

    def __init__(self, limits: Limits) -> None:
        self._idle_s = limits.idle_s
        self._loop = asyncio.get_running_loop()
        began = self._loop.time()
        self._last = began + limits.request_s_max
        self._first = min(began + limits.first_byte_s, self._last)
        self._when: float | None = None
        self._timeout = asyncio.timeout(None)
        self._fixed = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fixed = True
        await self._timeout.__aexit__(kind, error, trace)

    def expect_first_byte(self) -> None:
        """An attempt begins; all of them together have the time of a first byte."""
        if self._when is None:
            self._move(self._first)

    def expect_silence(self) -> None:
        """An attempt begins that will not be heard of before the whole answer is there."""
        self._move(self._last)

    def alive(self) -> None:
        """A sign of life that need not be the last: the next may take `idle_s`, and never less than was left."""
        when = min(self._loop.time() + self._idle_s, self._last)
        if self._when is None or when > self._when:
            self._move(when)

    def progressed(self) -> None:
        """Bytes came or went: the next may take `idle_s`."""
        when = min(self._loop.time() + self._idle_s, self._last)
        if self._when is None or not 0 <= when - self._when < self._idle_s / _COARSE:
            self._move(when)

    def end_now(self) -> None:
        """Nobody waits any longer."""
        self._move(self._loop.time())
        self._fixed = True

    def _move(self, when: float) -> None:
        if not self._fixed and not self._timeout.expired():
            self._when = when
            self._timeout.reschedule(when)
