"""The state of one request: a table-driven machine without I/O.

Everything that decides how a request ends, and therefore what is charged, must live here. The pipeline reports
events; the table says what they mean; the terminal state says what happens to the money.
"""

import enum

from billing.ports import Outcome
from cocoon.clock import Clock


class State(enum.StrEnum):
    """Where an exchange stands."""

    RECEIVED = "received"
    AUTHENTICATED = "authenticated"
    ADMITTED = "admitted"
    DISPATCHED = "dispatched"
    RELAYING = "relaying"
    COMPLETED = "completed"
    REFUSED = "refused"
    BROKEN = "broken"
    CLIENT_GONE = "client_gone"
    REPLAYED = "replayed"


class Event(enum.StrEnum):
    """What can happen to it."""

    AUTHENTICATE = "authenticate"
    ADMIT = "admit"
    DISPATCH = "dispatch"
    RETRY = "retry"
    FIRST_BYTE = "first_byte"
    COMPLETE = "complete"
    REFUSE = "refuse"
    BREAK = "break"
    LEAVE = "leave"
    REPLAY = "replay"


class Money(enum.StrEnum):
    """What becomes of the hold at the end."""

    NOTHING = "nothing"
    VOID = "void"
    SETTLE = "settle"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.RECEIVED, Event.AUTHENTICATE): State.AUTHENTICATED,
    (State.RECEIVED, Event.REFUSE): State.REFUSED,
    (State.RECEIVED, Event.LEAVE): State.CLIENT_GONE,
    (State.AUTHENTICATED, Event.ADMIT): State.ADMITTED,
    (State.AUTHENTICATED, Event.REFUSE): State.REFUSED,
    (State.AUTHENTICATED, Event.LEAVE): State.CLIENT_GONE,
    (State.AUTHENTICATED, Event.REPLAY): State.REPLAYED,
    (State.ADMITTED, Event.DISPATCH): State.DISPATCHED,
    (State.ADMITTED, Event.REFUSE): State.REFUSED,
    (State.ADMITTED, Event.LEAVE): State.CLIENT_GONE,
    (State.DISPATCHED, Event.RETRY): State.ADMITTED,
    (State.DISPATCHED, Event.FIRST_BYTE): State.RELAYING,
    (State.DISPATCHED, Event.REFUSE): State.REFUSED,
    (State.DISPATCHED, Event.BREAK): State.BROKEN,
    (State.DISPATCHED, Event.LEAVE): State.CLIENT_GONE,
    (State.RELAYING, Event.COMPLETE): State.COMPLETED,
    (State.RELAYING, Event.BREAK): State.BROKEN,
    (State.RELAYING, Event.LEAVE): State.CLIENT_GONE,
}
_ADMITTED, _DISPATCHED = State.ADMITTED, State.DISPATCHED  # an enum's members are slow to look up
TERMINAL = frozenset({State.COMPLETED, State.REFUSED, State.BROKEN, State.CLIENT_GONE, State.REPLAYED})


class Exchange:
    """One request's state and the times of its transitions (monotonic seconds, first entry into each state)."""

    __slots__ = ("_at_work", "_clock", "_tried", "entered", "held", "started_at", "state")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.state = State.RECEIVED
        self.started_at = clock.now()
        self.entered: dict[State, float] = {State.RECEIVED: clock.monotonic()}
        self.held = False
        self._tried = False
        self._at_work = False

    @property
    def ended(self) -> bool:
        """Whether nothing can happen any more."""
        return self.state in TERMINAL

    def note(self, event: Event) -> None:
        """Move on. An event that the table does not know in this state is a programmer's error."""
        following = TRANSITIONS.get((self.state, event))
        assert following is not None, f"{event} cannot happen in state {self.state}"
        self.state = following
        self.entered.setdefault(following, self._clock.monotonic())
        if following is _ADMITTED:
            self.held = True
            self._at_work = False
        elif following is _DISPATCHED:
            self._at_work = self._tried = True

    def end(self, event: Event) -> None:
        """Like `note`, but the first end wins: after it, nothing changes."""
        if not self.ended:
            self.note(event)

    @property
    def money(self) -> Money:
        """What the end means for the hold; to be asked only after the end.

        Whatever a worker has had a ticket for is settled, if only as broken: without a usage row, the worker's receipt
        would pass for an answer whose gateway died.
        """
        assert self.ended, "the exchange goes on"
        if not self.held:
            return Money.NOTHING
        return Money.SETTLE if self._tried else Money.VOID

    @property
    def outcome(self) -> Outcome:
        """The outcome to record; only where `money` is SETTLE."""
        assert self.money is Money.SETTLE, "nothing is recorded of what no worker had"
        if self.state is State.COMPLETED:
            return Outcome.COMPLETED
        if self.state is State.CLIENT_GONE and self._at_work:
            return Outcome.CLIENT_GONE
        return Outcome.BROKEN

    def seconds_since_start(self, state: State) -> float | None:
        """When a state was first entered, in seconds after the start."""
        at = self.entered.get(state)
        return None if at is None else at - self.entered[State.RECEIVED]
