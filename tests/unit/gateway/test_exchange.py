"""The exchange's table decides what is charged, so every path through it is walked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.ports import Outcome
from cocoon.clock import ManualClock
from gateway.exchange import TERMINAL, TRANSITIONS, Event, Exchange, Money, State

TO_ADMITTED = [Event.AUTHENTICATE, Event.ADMIT]
TO_DISPATCHED = [*TO_ADMITTED, Event.DISPATCH]
TO_RELAYING = [*TO_DISPATCHED, Event.FIRST_BYTE]


def walked(events: list[Event]) -> Exchange:
    exchange = Exchange(ManualClock())
    for event in events:
        exchange.note(event)
    return exchange


@pytest.mark.parametrize(
    ("events", "money", "outcome"),
    [
        ([Event.REFUSE], Money.NOTHING, None),
        ([Event.LEAVE], Money.NOTHING, None),
        ([Event.AUTHENTICATE, Event.REFUSE], Money.NOTHING, None),
        ([Event.AUTHENTICATE, Event.LEAVE], Money.NOTHING, None),
        ([Event.AUTHENTICATE, Event.REPLAY], Money.NOTHING, None),
        ([*TO_ADMITTED, Event.REFUSE], Money.VOID, None),
        ([*TO_ADMITTED, Event.LEAVE], Money.VOID, None),
        ([*TO_DISPATCHED, Event.REFUSE], Money.SETTLE, Outcome.BROKEN),
        ([*TO_DISPATCHED, Event.RETRY, Event.LEAVE], Money.SETTLE, Outcome.BROKEN),
        ([*TO_DISPATCHED, Event.RETRY, Event.REFUSE], Money.SETTLE, Outcome.BROKEN),
        ([*TO_DISPATCHED, Event.RETRY, Event.DISPATCH, Event.LEAVE], Money.SETTLE, Outcome.CLIENT_GONE),
        ([*TO_DISPATCHED, Event.BREAK], Money.SETTLE, Outcome.BROKEN),
        ([*TO_DISPATCHED, Event.LEAVE], Money.SETTLE, Outcome.CLIENT_GONE),
        ([*TO_RELAYING, Event.COMPLETE], Money.SETTLE, Outcome.COMPLETED),
        ([*TO_RELAYING, Event.BREAK], Money.SETTLE, Outcome.BROKEN),
        ([*TO_RELAYING, Event.LEAVE], Money.SETTLE, Outcome.CLIENT_GONE),
        (
            [*TO_DISPATCHED, Event.RETRY, Event.DISPATCH, Event.FIRST_BYTE, Event.COMPLETE],
            Money.SETTLE,
            Outcome.COMPLETED,
        ),
    ],
)
def test_each_way_to_end_has_its_money(events: list[Event], money: Money, outcome: Outcome | None) -> None:
    exchange = walked(events)
    assert exchange.money is money
    if outcome is not None:
        assert exchange.outcome is outcome


def test_only_what_the_network_breaks_is_free() -> None:
    assert [outcome for outcome in Outcome if not outcome.chargeable] == [Outcome.BROKEN]


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_the_first_end_wins_and_no_terminal_state_is_left(events: list[Event]) -> None:
    exchange = Exchange(ManualClock())
    for event in events:
        if (exchange.state, event) in TRANSITIONS:
            exchange.end(event)
    before = exchange.state
    if exchange.ended:
        for event in Event:
            exchange.end(event)
        assert exchange.state is before
        # Whatever is held is always either settled or voided.
        assert (exchange.money is Money.NOTHING) == (not exchange.held)


def test_no_transition_leaves_a_terminal_state_and_every_live_state_can_end() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) - TERMINAL
    for state in set(State) - TERMINAL:
        assert TRANSITIONS[state, Event.LEAVE] is State.CLIENT_GONE


def test_an_event_that_cannot_happen_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="cannot happen"):
        Exchange(ManualClock()).note(Event.COMPLETE)


def test_times_are_those_of_the_first_entry() -> None:
    clock = ManualClock()
    exchange = Exchange(clock)
    for event in [*TO_DISPATCHED, Event.RETRY, Event.DISPATCH]:
        clock.advance(1)
        exchange.note(event)
    assert exchange.seconds_since_start(State.DISPATCHED) == 3
    assert exchange.seconds_since_start(State.RELAYING) is None
