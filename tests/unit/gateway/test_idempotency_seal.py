"""Outcomes at rest: only the key's holder opens them."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.errors import MalformedError
from gateway.idempotency import OUTCOME_BYTES_MAX, Outcome, Recording, open_outcome, seal_outcome

JOB = uuid.UUID("01a20381-c1bf-7829-ae95-24015011eac5")
MINE, THEIRS = b"Bearer sk-cocoon-mine", b"Bearer sk-cocoon-theirs"
OUTCOME = Outcome(stream=True, headers=((b"x-request-id", b"1"),), body=b"data: {}\n\ndata: [DONE]\n\n")


def test_the_holder_opens_what_was_sealed() -> None:
    assert open_outcome(seal_outcome(OUTCOME, MINE, JOB), MINE, JOB) == OUTCOME


def test_the_scheme_of_the_header_does_not_matter() -> None:
    assert open_outcome(seal_outcome(OUTCOME, MINE, JOB), b"bearer  sk-cocoon-mine", JOB) == OUTCOME


def test_another_key_and_another_job_do_not_open_it() -> None:
    sealed = seal_outcome(OUTCOME, MINE, JOB)
    with pytest.raises(MalformedError):
        open_outcome(sealed, THEIRS, JOB)
    with pytest.raises(MalformedError):
        open_outcome(sealed, MINE, uuid.UUID(int=JOB.int ^ 1))


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(place: int, bit: int) -> None:
    sealed = bytearray(seal_outcome(OUTCOME, MINE, JOB))
    sealed[place % len(sealed)] ^= 1 << bit
    with pytest.raises(MalformedError):
        open_outcome(bytes(sealed), MINE, JOB)


def test_the_plaintext_is_not_in_what_is_stored() -> None:
    assert b"[DONE]" not in seal_outcome(OUTCOME, MINE, JOB)


def test_a_recording_keeps_bytes_in_order_and_gives_up_when_too_long() -> None:
    recording = Recording()
    assert recording.outcome is None
    recording.begin([(b"a", b"b")], stream=False)
    recording.add(b"one")
    recording.add(b"two")
    assert recording.outcome == Outcome(stream=False, headers=((b"a", b"b"),), body=b"onetwo")
    recording.add(b"x" * OUTCOME_BYTES_MAX)
    recording.add(b"more")
    assert recording.outcome is None
