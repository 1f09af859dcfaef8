"""Many deadlines on one timer of the event loop.

A timer of the loop costs a request microseconds to set, to move and to remove, and hardly any ever goes off. Here a
deadline is a number that its owner may change as it likes; somebody looks at all of them every `TICK_S`.
"""

import asyncio
from types import TracebackType
from typing import Protocol, Self

TICK_S = 0.02
"""How late an alarm may ring."""


class Alarm(Protocol):
    """Rings once, when the loop's time has reached `due_at`; `ring` must not raise."""

    due_at: float

    def ring(self) -> None:
        """Time is up. Called by the loop, never within another step of the owner's task."""
        ...


class Alarms:
    """The alarms of one process. While there are none, no timer runs."""

    def __init__(self) -> None:
        self._alarms: set[Alarm] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._alarms)

    def add(self, alarm: Alarm) -> None:
        """Have it ring in time; its `due_at` may be moved meanwhile."""
        self._alarms.add(alarm)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def discard(self, alarm: Alarm) -> None:
        """It rings no more; one that has rung or was never added is no error."""
        self._alarms.discard(alarm)

    def _tick(self) -> None:
        if not self._alarms:
            self._timer = None
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._tick)
        now = loop.time()
        for alarm in [alarm for alarm in self._alarms if alarm.due_at <= now]:
            if alarm in self._alarms:  # an alarm may silence another
                self._alarms.discard(alarm)
                alarm.ring()


class Within:
    """So many seconds for what happens inside it; then TimeoutError, by the same means as `asyncio.timeout`."""

    __slots__ = ("_alarms", "_cancelling", "_over", "_rung", "_task", "due_at", "loop")

    def __init__(self, alarms: Alarms, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.due_at = self.loop.time() + seconds
        self._alarms = alarms
        self._over = False
        self._rung = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "time limits are for tasks"
        self._task = task
        self._cancelling = task.cancelling()
        self._alarms.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._over = True
        self._alarms.discard(self)
        # A cancellation of somebody else's, even in the same moment, stays one.
        if self._rung and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    @property
    def settled(self) -> bool:
        """Whether time is up or nobody counts it any more."""
        return self._over or self._rung

    def ring(self) -> None:
        """Time is up."""
        if not self.settled:
            self._rung = True
            self._task.cancel()
