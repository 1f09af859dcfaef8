"""How long an exchange may still take."""

import math

from gateway.alarms import Alarms, Within
from gateway.client import Limits


class Deadline(Within):
    """So long for the first byte, so long from byte to byte, so long in all; TimeoutError when time is up.

    Without a limit until something is expected. Whoever leaves (`end_now`) has the last word: nothing makes it later
    after that.
    """

    __slots__ = ("_first", "_fixed", "_idle_s", "_last")

    def __init__(self, limits: Limits, alarms: Alarms) -> None:
        super().__init__(alarms, 0.0)
        began, self.due_at = self.due_at, math.inf
        self._idle_s = limits.idle_s
        self._last = began + limits.request_s_max
        self._first = min(began + limits.first_byte_s, self._last)
        self._fixed = False

    def expect_first_byte(self) -> None:
        """An attempt begins; all of them together have the time of a first byte."""
        if self.due_at == math.inf:
            self._move(self._first)

    def expect_silence(self) -> None:
        """An attempt begins that will not be heard of before the whole answer is there."""
        self._move(self._last)

    def alive(self) -> None:
        """A sign of life that need not be the last: the next may take `idle_s`, and never less than was left."""
        when = min(self.loop.time() + self._idle_s, self._last)
        if self.due_at == math.inf or when > self.due_at:
            self._move(when)

    def progressed(self) -> None:
        """Bytes came or went: the next may take `idle_s`."""
        self._move(min(self.loop.time() + self._idle_s, self._last))

    def end_now(self) -> None:
        """Nobody waits any longer. It strikes in the loop's next turn, because this may be the waiting task itself."""
        if not self._fixed and not self.settled:
            self._fixed = True
            self.due_at = self.loop.time()
            self.loop.call_soon(self.ring)

    def _move(self, when: float) -> None:
        if not self._fixed:
            self.due_at = when
