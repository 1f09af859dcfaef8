import datetime as dt
import uuid

import pytest

from cocoon.clock import ManualClock
from cocoon.ticket import seal_ticket
from tests.unit.agent.agent_values import ticket
from workers.agent.admission import Admission, ReplaySet
from workers.agent.keys import KeyRing
from workers.agent.refusals import RefusedError

KEY = b"k" * 32


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))


@pytest.fixture
def keys(clock: ManualClock) -> KeyRing:
    ring = KeyRing(clock, b"b" * 16, 3600)
    ring.current.ticket_key, ring.current.global_id = KEY, -217
    return ring


def _code(refused: pytest.ExceptionInfo[RefusedError]) -> str:
    return refused.value.refusal.code


def test_capacity_is_never_exceeded_and_given_back(clock: ManualClock, keys: KeyRing) -> None:
    admission = Admission(clock, keys, 2)
    with admission.slot(ticket(1), keys.current), admission.slot(ticket(2), keys.current):
        with pytest.raises(RefusedError) as refused, admission.slot(ticket(3), keys.current):
            pass
        assert (_code(refused), admission.running) == ("worker_busy", 2)
    assert admission.running == 0
    # The refused ticket was not used up.
    with admission.slot(ticket(3), keys.current):
        assert admission.running == 1


def test_a_slot_is_given_back_when_the_job_fails(clock: ManualClock, keys: KeyRing) -> None:
    admission = Admission(clock, keys, 1)
    with pytest.raises(ZeroDivisionError), admission.slot(ticket(1), keys.current):
        raise ZeroDivisionError
    assert admission.running == 0


def test_two_uploads_of_one_ticket_cannot_both_run(clock: ManualClock, keys: KeyRing) -> None:
    admission = Admission(clock, keys, 4)
    sealed = seal_ticket(KEY, ticket(1))
    # Both pass the check before the body; the second is caught when its body has arrived.
    first, second = admission.authenticate(sealed), admission.authenticate(sealed)
    with admission.slot(first[0], first[2]):
        with pytest.raises(RefusedError) as refused, admission.slot(second[0], second[2]):
            pass
        assert _code(refused) == "ticket_replayed"


def test_a_ticket_that_expires_during_the_upload_is_refused(clock: ManualClock, keys: KeyRing) -> None:
    admission = Admission(clock, keys, 4)
    short = ticket(1, not_after=int(clock.now().timestamp()) + 5)
    admission.authenticate(seal_ticket(KEY, short))
    clock.advance(6)
    with pytest.raises(RefusedError) as refused, admission.slot(short, keys.current):
        pass
    assert _code(refused) == "ticket_expired"


def test_a_full_replay_set_admits_nothing_until_tickets_expire(clock: ManualClock, keys: KeyRing) -> None:
    admission = Admission(clock, keys, 4, replay=ReplaySet(2))
    end = int(clock.now().timestamp()) + 5
    for number in (1, 2):
        with admission.slot(ticket(number, not_after=end), keys.current):
            pass
    with pytest.raises(RefusedError) as refused, admission.slot(ticket(3), keys.current):
        pass
    assert _code(refused) == "replay_set_full"
    clock.advance(200)
    with admission.slot(ticket(3), keys.current):
        assert (uuid.UUID(int=1), 0) not in admission._replay


def test_tickets_of_the_previous_keyset_are_good_until_it_expires(clock: ManualClock, keys: KeyRing) -> None:
    admission = Admission(clock, keys, 4)
    old = seal_ticket(KEY, ticket(1))
    successor = keys.successor()
    successor.ticket_key, successor.global_id = b"n" * 32, -217
    keys.succeed(successor)
    previous = admission.authenticate(old)[2]
    assert previous is not keys.current
    assert admission.authenticate(seal_ticket(b"n" * 32, ticket(1)))[2] is successor
    clock.advance(3601)
    with pytest.raises(RefusedError):
        admission.authenticate(old)


def test_nothing_is_admitted_before_the_enrolment(clock: ManualClock) -> None:
    admission = Admission(clock, KeyRing(clock, b"b" * 16), 4)
    with pytest.raises(RefusedError) as refused:
        admission.authenticate(seal_ticket(KEY, ticket(1)))
    assert _code(refused) == "worker_not_enrolled"
