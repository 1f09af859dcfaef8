"""Time and randomness, injected.

This module owns every read of the system clock and of the system's entropy. Everything else takes a `Clock` or a
`random.Random` as an argument, so that tests decide what time it is and what the dice show.
"""

import datetime as dt
import functools
import random
import time
from typing import Protocol

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS = dt.timedelta(milliseconds=1)


class Clock(Protocol):
    """Wall time for records, monotonic time for durations; never one for the other."""

    def now(self) -> dt.datetime:
        """Aware UTC wall time."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's own clocks. Read a dozen times in a request, hence without a function of ours in between."""

    now = staticmethod(functools.partial(dt.datetime.now, dt.UTC))
    monotonic = staticmethod(time.monotonic)


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start: dt.datetime | None = None) -> None:
        self._now = start or dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        self._monotonic = 1000.0

    def now(self) -> dt.datetime:
        """The wall time set so far."""
        return self._now

    def monotonic(self) -> float:
        """The monotonic seconds set so far."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds` (>= 0)."""
        assert seconds >= 0, "time does not go back"
        self._now += dt.timedelta(seconds=seconds)
        self._monotonic += seconds


def unix_ms(moment: dt.datetime) -> int:
    """Whole milliseconds since 1970 of an aware moment, rounded down; exact, where a float would lose one."""
    return (moment - _EPOCH) // _MS


def system_random() -> random.Random:
    """A generator fed by the operating system's entropy; safe for identifiers, slow for bulk use."""
    return random.SystemRandom()
