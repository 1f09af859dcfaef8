"""Answers at rest: only the API key's holder opens them, for the request they belong to; recorded within bounds."""

import hashlib
import uuid
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from cocoon.errors import MalformedError
from gateway.outcomes import OUTCOME_BYTES_MAX, Outcome, OutcomeRoom, Recording, Turn

JOB = uuid.UUID("01a20381-c1bf-7829-ae95-24015011eac5")
SECRET = b"sk-cocoon-mine"
OUTCOME = Outcome(stream=True, headers=((b"x-cocoon-worker", b"w"),), body=b"data: {}\n\ndata: [DONE]\n\n")
SAME: dict[str, Any] = {"secret": SECRET, "key": b"k", "path": "/v1/chat/completions", "body": b"{}"}


def a_turn(job: uuid.UUID = JOB, **changes: Any) -> Turn:
    return Turn(
        **{**SAME, **changes}, job_id=job, customer_id=uuid.UUID(int=1), key_id=uuid.UUID(int=2), model="m",
        room=OutcomeRoom(10**7),
    )  # fmt: skip


def test_the_holders_next_call_opens_what_was_sealed() -> None:
    assert a_turn(uuid.UUID(int=9)).open(a_turn().seal(OUTCOME), JOB) == OUTCOME


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": b"sk-cocoon-theirs"}, {"secret": hashlib.sha256(SECRET).digest()}, {"key": b"other"},
        {"body": b"{ }"}, {"path": "/v1/embeddings"},
    ],
)  # fmt: skip
def test_nobody_else_and_no_other_request_opens_it(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        a_turn(**changes).open(a_turn().seal(OUTCOME), JOB)


def test_the_key_of_a_seal_is_derived_from_api_key_and_job() -> None:
    """PROTOCOL section 7: HKDF(api_key, job_id), so that each job has a key of its own."""
    turn = a_turn()
    sealed = turn.seal(OUTCOME)
    derived = HKDF(SHA256(), 32, salt=JOB.bytes, info=b"cocoon/outcome/1\x00").derive(SECRET)
    plain = AESGCM(derived).decrypt(sealed[:12], sealed[12:], JOB.bytes + turn.key_tag + turn.body_tag)
    assert msgspec.msgpack.decode(plain, type=Outcome) == OUTCOME


def test_it_does_not_open_as_another_jobs() -> None:
    with pytest.raises(MalformedError):
        a_turn().open(a_turn().seal(OUTCOME), uuid.UUID(int=JOB.int ^ 1))


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(place: int, bit: int) -> None:
    sealed = bytearray(a_turn().seal(OUTCOME))
    sealed[place % len(sealed)] ^= 1 << bit
    with pytest.raises(MalformedError):
        a_turn().open(bytes(sealed), JOB)


@pytest.mark.parametrize("sealed", [b"", b"short", b"x" * 12, b"x" * 40])
def test_what_is_no_seal_at_all_is_refused(sealed: bytes) -> None:
    with pytest.raises(MalformedError):
        a_turn().open(sealed, JOB)


def test_no_plaintext_is_stored_and_two_seals_differ() -> None:
    first, second = a_turn().seal(OUTCOME), a_turn().seal(OUTCOME)
    assert b"[DONE]" not in first
    assert first != second


def test_tags_are_equal_for_equal_requests_and_tell_apart_all_others() -> None:
    assert (a_turn().key_tag, a_turn().body_tag) == (a_turn(uuid.UUID(int=9)).key_tag, a_turn().body_tag)
    assert a_turn(secret=b"other").key_tag != a_turn().key_tag != a_turn(key=b"other").key_tag
    bodies = [
        a_turn(), a_turn(body=b"{ }"), a_turn(path="/v1/embeddings"), a_turn(secret=b"other"),
        a_turn(path="/v1/chat/completions{", body=b"}"),
    ]  # fmt: skip
    assert len({turn.body_tag for turn in bodies}) == len(bodies)


def test_no_repr_shows_the_key() -> None:
    assert "mine" not in repr(a_turn())


def test_a_recording_keeps_the_bytes_in_order_and_the_headers_that_belong_to_them() -> None:
    recording = Recording(OutcomeRoom(100))
    headers = [(b"x-cocoon-worker", b"w"), (b"x-ratelimit-limit-requests", b"3"), (b"server-timing", b"a;dur=1")]
    recording.begin(headers, stream=True)
    recording.add(b"one", last=False)
    assert recording.outcome is None, "half an answer is none"
    recording.add(b"two", last=True)
    assert recording.outcome == Outcome(stream=True, headers=((b"x-cocoon-worker", b"w"),), body=b"onetwo")


def test_what_follows_a_whole_answer_is_not_part_of_it() -> None:
    recording = Recording(OutcomeRoom(100))
    recording.begin([], stream=False)
    recording.add(b"whole", last=True)
    recording.begin([(b"x-cocoon-worker", b"late")], stream=True)
    recording.add(b"an error", last=True)
    assert recording.outcome == Outcome(stream=False, headers=(), body=b"whole")


@pytest.mark.parametrize(("length", "kept"), [(OUTCOME_BYTES_MAX, True), (OUTCOME_BYTES_MAX + 1, False)])
def test_the_longest_answer_that_is_kept(length: int, kept: bool) -> None:
    room = OutcomeRoom(10**7)
    recording = Recording(room)
    recording.begin([], stream=True)
    recording.add(b"x" * (length - 1), last=False)
    recording.add(b"x", last=True)
    assert (recording.outcome is not None) == kept
    assert room.left == 10**7 - (length if kept else 0)
    recording.close()
    assert room.left == 10**7
    assert recording.outcome is None


def test_without_room_nothing_is_kept_and_the_room_is_not_overdrawn() -> None:
    room = OutcomeRoom(5)
    first, second = Recording(room), Recording(room)
    for recording in (first, second):
        recording.begin([], stream=False)
        recording.add(b"four", last=True)
    assert first.outcome is not None
    assert second.outcome is None
    first.close()
    first.close()
    second.close()
    assert room.left == 5
