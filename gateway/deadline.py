"""How long an exchange may still take."""

import asyncio
from types import TracebackType
from typing import Self

from gateway.client import Limits

_COARSE = 8
"""A deadline is moved only when that makes it later by an eighth of `idle_s`: moving a timer costs more than asking."""


class Deadline:
    """So long for the first byte, so long from byte to byte, so long in all; TimeoutError when time is up.

    An async context manager. Whoever leaves (`end_now`) has the last word: nothing makes it later after that.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        began = self._loop.time()
        self._last = began + limits.request_s_max
        self._when = min(began + limits.first_byte_s, self._last)
        self._timeout = asyncio.timeout_at(self._when)
        self._fixed = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fixed = True
        await self._timeout.__aexit__(kind, error, trace)

    def alive(self) -> None:
        """A sign of life before the first byte: the next may take `idle_s`, and never less than was left."""
        when = min(self._loop.time() + self._limits.idle_s, self._last)
        if when > self._when:
            self._move(when)

    def progressed(self) -> None:
        """Bytes came or went: the next may take `idle_s`."""
        when = min(self._loop.time() + self._limits.idle_s, self._last)
        if not 0 <= when - self._when < self._limits.idle_s / _COARSE:
            self._move(when)

    def expect_silence(self) -> None:
        """Nothing will be heard before the whole answer is there."""
        self._move(self._last)

    def end_now(self) -> None:
        """Nobody waits any longer."""
        self._move(self._loop.time())
        self._fixed = True

    def _move(self, when: float) -> None:
        if not self._fixed and not self._timeout.expired():
            self._when = when
            self._timeout.reschedule(when)
