"""Every way in which a request can be struck, at every await: the books close, and everything is given back once."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from billing.ports import Outcome
from gateway.errors import AnswerBrokenError, AnswerTimeoutError
from gateway.idempotency import ROOM_BYTES_MAX, Standing
from tests.unit.gateway.walk_parts import PRICE, Blow, Walked, no_task_left, walked
from workers.errors import CoverMissedError

SHAPES: dict[str, dict[str, Any]] = {
    "unary": {"stream": False},
    "stream": {"stream": True},
    "unary after a failed attempt": {"stream": False, "broken": 1},
    "stream after a failed attempt": {"stream": True, "broken": 1},
    "stream kept alive": {"stream": True, "late": True},
    "unary with a key": {"stream": False, "key": b"k"},
    "stream with a key after a failed attempt": {"stream": True, "broken": 1, "key": b"k"},
    "unary that needs more of a stake": {"stream": False, "uncovered": True},
    "stream that needs more of a stake after a failed attempt": {"stream": True, "broken": 1, "uncovered": True},
    "nobody answers": {"stream": True, "broken": 2},
    "nobody answers a stream kept alive": {"stream": True, "broken": 2, "late": True},
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of tracebacks are nobody's reading."""
    with structlog.testing.capture_logs():
        yield


def check(walk: Walked) -> None:
    """What must be true however a request ended."""
    assert walk.settled
    assert walk.held == 0, "a hold was left open"
    assert len(walk.ledger.settlements) <= 1, "settled twice"
    outcome = walk.ledger.settlements[0].outcome if walk.ledger.settlements else None
    owed = 0
    if outcome in {Outcome.COMPLETED, Outcome.CLIENT_GONE}:
        owed = PRICE.numerator(walk.ledger.settlements[0].usage) // 10**6
    assert walk.spent == owed
    assert len(walk.limiter.released) == walk.limiter.given
    assert walk.limiter.settled == min(len(walk.ledger.settlements), 1), "a limit on spend would never come back"
    assert sum(walk.limiter.charged) >= walk.spent
    assert [member.load.in_flight for member in walk.registry.members()] == [0, 0]
    assert [member.cover.used_nano for member in walk.registry.members() if member.cover is not None] == [0, 0]
    assert all(answer.closed for answer in walk.transport.opened)
    # Only what could not be told to the client comes out of the walk.
    assert walk.raised is None or walk.steps.names[-1] == "fail"
    check_claim(walk, outcome)
    client = walk.client
    assert client.callback is None
    got_whole = client.finished or client.answered is not None
    if got_whole:
        assert outcome is Outcome.COMPLETED
        assert not client.errors
    if client.errors and not walk.cancelled:
        assert walk.spent == 0 or outcome is Outcome.COMPLETED
    text = b"".join(client.events)
    assert text.count(b"[DONE]") == client.finished
    if client.gone:
        # Broken is what no worker was at when the client left: one had failed, and the next was not asked yet.
        assert outcome is not Outcome.BROKEN or walk.cancelled or client.errors or not walk.transport.opened


def check_claim(walk: Walked, outcome: Outcome | None) -> None:
    """A key stands for what was charged, and for nothing else; nothing is recorded any more."""
    standings = [row.standing for row in walk.claims.rows.values()]
    assert walk.idempotency.running == 0
    assert walk.idempotency.room.left == ROOM_BYTES_MAX
    if "claim" not in walk.steps.names or not (walk.spent or outcome is Outcome.COMPLETED):
        assert standings == []
    else:
        # Whatever the client took of it: an answer that was whole is kept as a whole.
        assert standings == [Standing.KEPT if outcome is Outcome.COMPLETED else Standing.CHARGED]


async def steps_of(shape: dict[str, Any], blows: dict[int, Blow]) -> int:
    async with no_task_left():
        walk = await walked(blows, **shape)
    try:
        check(walk)
    except AssertionError as error:
        told = {walk.steps.names[index]: blow.name for index, blow in blows.items() if index < len(walk.steps.names)}
        raise AssertionError(f"{told} after {walk.steps.names}: {error}") from error
    return len(walk.steps.names)


@pytest.mark.parametrize("shape", SHAPES)
async def test_one_blow_at_any_await(shape: str) -> None:
    steps = await steps_of(SHAPES[shape], {})
    assert steps >= 7
    for index, blow in itertools.product(range(steps), (Blow.CANCEL, Blow.LEAVE, Blow.VANISH, Blow.CRASH, Blow.FAIL)):
        await steps_of(SHAPES[shape], {index: blow})


async def test_a_request_waits_a_moment_and_no_longer_for_more_of_a_stake(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await walked({}, stream=False, uncovered=True)
    assert whole.client.answered is not None
    assert whole.steps.names.count("cover") == 1
    monkeypatch.setattr("gateway.attempts.CLAIM_S_MAX", 0.03)
    async with no_task_left():
        walk = await walked({whole.steps.names.index("cover"): Blow.STALL}, stream=False, uncovered=True)

    check(walk)
    assert [type(error) for error in walk.client.errors] == [CoverMissedError]


@pytest.mark.parametrize("shape", SHAPES)
async def test_silence_at_any_await_of_the_relay_ends_by_itself(shape: str) -> None:
    times: dict[str, Any] = {"first_byte_s": 0.03, "idle_s": 0.03, "request_s_max": 0.06}
    whole = await walked({}, **SHAPES[shape])
    # Before the relay others watch the time: the body's reader, the limiter, the ledger.
    for index in range(whole.steps.names.index("open"), len(whole.steps.names)):
        if whole.steps.names[index] != "fail":
            async with no_task_left():
                walk = await walked({index: Blow.STALL}, **SHAPES[shape], **times)
            check(walk)
            # A slow machine may be out of time before it gets there.
            at = walk.steps.names[index] if index < len(walk.steps.names) else "open"
            if at in {"open", "next"}:
                assert [type(error) for error in walk.client.errors] == [AnswerTimeoutError], at
                assert walk.spent == 0
            else:
                assert walk.client.errors == [], at


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_process_ends_while_a_request_is_already_failing(shape: str) -> None:
    steps = await steps_of(SHAPES[shape], {})
    for index, blow in itertools.product(range(steps), (Blow.LEAVE, Blow.CRASH, Blow.FAIL)):
        struck = await steps_of(SHAPES[shape], {index: blow})
        for later in range(index + 1, struck):
            await steps_of(SHAPES[shape], {index: blow, later: Blow.CANCEL})


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_client_leaves_while_a_request_is_already_failing(shape: str) -> None:
    steps = await steps_of(SHAPES[shape], {})
    for index in range(steps):
        struck = await steps_of(SHAPES[shape], {index: Blow.FAIL})
        for later in range(index + 1, struck):
            await steps_of(SHAPES[shape], {index: Blow.FAIL, later: Blow.LEAVE})


async def test_what_was_generated_before_the_client_left_is_charged() -> None:
    whole = await walked({}, stream=True)
    reads = [index for index, name in enumerate(whole.steps.names) if name == "next"]
    charged = [(await walked({index: Blow.LEAVE}, stream=True)).spent for index in reads]
    assert charged == [0, 11, 12, 13]
    assert whole.spent == 15


async def test_a_sign_of_life_does_not_undo_that_the_client_has_left() -> None:
    whole = await walked({}, stream=True)
    # The second batch has counts and nothing to send, so that only the deadline can end the wait for the third.
    second = [index for index, name in enumerate(whole.steps.names) if name == "next"][1]
    walk = await walked({second: Blow.VANISH}, stream=True)
    assert len(walk.client.events) == 1
    assert walk.spent == 12


async def test_an_answer_that_breaks_is_free_and_says_so() -> None:
    whole = await walked({}, stream=True)
    last = [index for index, name in enumerate(whole.steps.names) if name == "next"][-1]
    walk = await walked({last: Blow.FAIL}, stream=True)
    assert [type(error) for error in walk.client.errors] == [AnswerBrokenError]
    assert (walk.spent, walk.ledger.settlements[0].outcome) == (0, Outcome.BROKEN)


async def test_a_mistake_of_ours_is_500_and_free() -> None:
    whole = await walked({}, stream=False)
    for name in ("limit", "hold", "held", "open", "next"):
        walk = await walked({whole.steps.names.index(name): Blow.CRASH}, stream=False)
        assert [error.code for error in walk.client.errors] == ["internal_error"]
        assert walk.spent == 0
