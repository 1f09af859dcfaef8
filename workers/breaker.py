"""A circuit breaker: pure decisions, the caller brings the time.

Closed lets everything pass. Too many failures open it; after a pause that doubles from one opening to the next it is
half-open and lets single trials pass, of which a good one closes it and a bad one opens it again. Being told to slow
down (429) is not a failure: it pauses the target for as long as the target asked, and says nothing about its health.
"""

import enum
import math

from workers.ewma import Count

CONSECUTIVE_FAILURES_MAX = 3
"""This many failures in a row open the breaker, however good the past was."""
RECENT_FAILURES_MAX = 4.5
"""So do this many recent failures (halving every `HALF_LIFE_S`) when they are at least `FAILURE_RATIO_MAX` of all."""
FAILURE_RATIO_MAX = 0.5
HALF_LIFE_S = 10.0
PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 30.0
COOLDOWN_S_MAX = 60.0
"""Longest pause that a target can ask for with `Retry-After`."""


class BreakerState(enum.StrEnum):
    """What passes: everything, nothing, or one trial at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The breaker of one target. All times are monotonic seconds."""

    __slots__ = (
        "_consecutive",
        "_cool_until",
        "_failures",
        "_open_until",
        "_openings",
        "_state",
        "_successes",
        "_trial",
        "_trials",
    )

    def __init__(self) -> None:
        self._state = BreakerState.CLOSED
        self._consecutive = 0
        self._openings = 0
        self._open_until = -math.inf
        self._cool_until = -math.inf
        self._trial: int | None = None
        self._trials = 0
        self._failures = Count(HALF_LIFE_S)
        self._successes = Count(HALF_LIFE_S)

    def state(self, now: float) -> BreakerState:
        """The state at `now`: an open breaker is half-open once its pause is over."""
        if self._state is BreakerState.OPEN and now >= self._open_until:
            return BreakerState.HALF_OPEN
        return self._state

    def allows(self, now: float) -> bool:
        """Whether a request may be sent; asking changes nothing."""
        if now < self._cool_until:
            return False
        if self._state is BreakerState.CLOSED:
            return True
        return now >= self._open_until and self._trial is None

    def cooldown_s(self, now: float) -> float:
        """Seconds until the target's own `Retry-After` is over; 0 when there is none."""
        return max(self._cool_until - now, 0.0)

    def failure_ratio(self, now: float) -> float:
        """Recent failures of all recent outcomes, 0 to below 1; a few outcomes do not make it certain."""
        failures = self._failures.get(now)
        return failures / (failures + self._successes.get(now) + 1.0) if failures else 0.0

    def begin(self, now: float) -> int | None:
        """A request is sent. Not None when it is a half-open trial: its outcome must bring the number back."""
        assert self.allows(now), "asked before"
        if self._state is BreakerState.CLOSED:
            return None
        self._state = BreakerState.HALF_OPEN
        self._trials += 1
        self._trial = self._trials
        return self._trial

    def proved(self, trial: int) -> None:
        """A trial brought its first token: others may pass. The next pause grows all the same until one succeeds."""
        if trial == self._trial:
            self._close()

    def succeeded(self, now: float, trial: int | None = None) -> None:
        """A request went well. Outcomes of requests older than the opening do not close it."""
        self._successes.add(now)
        if trial is not None and trial == self._trial:
            self._close()
        if self._state is BreakerState.CLOSED:
            self._consecutive = 0
            self._openings = 0

    def failed(self, now: float, trial: int | None = None) -> None:
        """A request failed by the target's fault."""
        self._failures.add(now)
        if trial is not None and trial == self._trial:
            self._open(now)
            return
        if self._state is not BreakerState.CLOSED:
            return
        self._consecutive += 1
        failures = self._failures.get(now)
        often = failures >= RECENT_FAILURES_MAX and (
            failures >= FAILURE_RATIO_MAX * (failures + self._successes.get(now))
        )
        if often or self._consecutive >= CONSECUTIVE_FAILURES_MAX:
            self._open(now)

    def undecided(self, trial: int | None = None) -> None:
        """A request ended without saying anything about the target: the next one may be the trial."""
        if trial is not None and trial == self._trial:
            self._trial = None

    def throttled(self, now: float, retry_after_s: float) -> None:
        """The target asked for a pause."""
        self._cool_until = max(self._cool_until, now + min(max(retry_after_s, 0.0), COOLDOWN_S_MAX))

    def restarted(self, now: float) -> None:
        """The target is a new process: what the old one did no longer counts, but it has to show itself once."""
        self._failures.clear()
        self._consecutive = 0
        self._cool_until = -math.inf
        self._trial = None
        if self._state is not BreakerState.CLOSED:
            self._openings = 0
            self._open_until = now

    def _close(self) -> None:
        self._state = BreakerState.CLOSED
        self._trial = None
        self._consecutive = 0
        self._failures.clear()

    def _open(self, now: float) -> None:
        self._state = BreakerState.OPEN
        self._trial = None
        self._consecutive = 0
        pause_s = min(PAUSE_S_MIN * 2.0 ** min(self._openings, 16), PAUSE_S_MAX)
        self._openings += 1
        self._open_until = now + pause_s
