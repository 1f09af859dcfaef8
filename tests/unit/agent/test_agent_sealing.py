"""Sealed jobs inside the agent: what is remembered, what waits for its time, and whose caches are whose."""

import datetime as dt
import os
import random

import msgspec
import pytest

from cocoon.clock import ManualClock
from cocoon.sealed import OpenedRequest, Recipient, ReplayGuard, open_request, parse_request, seal_request
from cocoon.sealed_answer import AnswerOpener
from cocoon.sealed_trailer import AnswerTrailer
from cocoon.usage import TokenUsage
from tests.sealing import JOB, TERMS
from workers.agent import refusals
from workers.agent.admission import Admission
from workers.agent.cache_salts import CacheSalts
from workers.agent.keys import Identity, KeyRing
from workers.agent.refusals import RefusedError
from workers.agent.sealing import COALESCE_S, SealedAnswer

TRAILER = AnswerTrailer(v=1, usage=TokenUsage(prompt=1), finish_reason="stop")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))


def _opened(identity: Identity, body: bytes = b"{}") -> tuple[OpenedRequest, AnswerOpener]:
    sent = seal_request(TERMS, body, [Recipient(identity.digest, identity.sealed_key.public_key)], os.urandom)
    opened = open_request(parse_request(sent.raw), identity.digest, identity.sealed_key)
    return opened, AnswerOpener(digest=sent.digest, secrets=sent.secrets)


def test_frames_are_apart_and_nothing_is_lost_between_them(clock: ManualClock) -> None:
    identity = Identity(clock, b"b" * 16)
    opened, opener = _opened(identity)
    answer = SealedAnswer(opened, identity, bytes(32), clock)
    assert opener.feed(answer.add(b"a")) == [b"a"]
    assert (answer.add(b"b"), answer.add(b"c"), answer.waits) == (b"", b"", True)
    assert answer.wait_s == pytest.approx(COALESCE_S)
    clock.advance(COALESCE_S)
    assert answer.wait_s == 0
    assert opener.feed(answer.add(b"")) == [b"bc"]
    assert not answer.waits
    assert answer.add(b"") == b""
    assert answer.add(b"d") == b""
    assert b"".join(opener.feed(answer.rest(b"e" * 3_000_000) + answer.end(TRAILER))) == b"d" + b"e" * 3_000_000
    opener.finish()
    assert opener.rolling == answer.rolling
    assert AnswerTrailer.decode(opener.trailer) == TRAILER


def test_two_answers_to_one_request_share_no_key(clock: ManualClock) -> None:
    identity = Identity(clock, b"b" * 16)
    opened, _ = _opened(identity)
    one, two = (SealedAnswer(opened, identity, os.urandom(32), clock).rest(b"x") for _ in range(2))
    assert one[65:] != two[65:]


def test_a_job_that_ran_under_one_keyset_does_not_run_under_the_next(clock: ManualClock) -> None:
    keys = KeyRing(clock, b"b" * 16, 600)
    admission = Admission(clock, keys, 1)
    first, second = keys.current, keys.successor()
    admission.admit_sealed(first, JOB)
    keys.succeed(second)
    clock.advance(601)
    for identity in (second, first):
        with pytest.raises(RefusedError) as refused:
            admission.admit_sealed(identity, JOB)
        assert refused.value.refusal is refusals.SEALED_REPLAYED


def test_what_cannot_be_remembered_does_not_run_and_wants_a_new_keyset(clock: ManualClock) -> None:
    keys = KeyRing(clock, b"b" * 16)
    keys.current.sealed_jobs = ReplayGuard(jobs_max=1)
    admission = Admission(clock, keys, 1)
    assert keys.current.renewal_due_s > 0
    admission.admit_sealed(keys.current, JOB)
    assert keys.current.renewal_due_s == 0
    with pytest.raises(RefusedError) as refused:
        admission.admit_sealed(keys.current, bytes(16))
    assert refused.value.refusal is refusals.REPLAY_FULL


def test_caches_are_shared_by_nobody_but_who_asked_before(clock: ManualClock) -> None:
    salts, identity = CacheSalts(random.Random(1)), Identity(clock, b"b" * 16)
    assert salts.plain("one") == salts.plain("one")
    named = [
        salts.sealed(_opened(identity, msgspec.json.encode({"cache_salt": salt}))[0]) for salt in ("a", "a", "b", None)
    ]
    assert named[0] == named[1]
    others = [
        named[0], named[2], named[3], salts.sealed(_opened(identity)[0]), salts.sealed(_opened(identity)[0]),
        salts.plain("one"), salts.plain("two"), salts.plain(None), salts.plain(None), salts.plain('"a"'),
        CacheSalts(random.Random(2)).plain("one"),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
