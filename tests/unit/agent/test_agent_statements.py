"""Evidence on demand: who may ask an agent for a statement, and how often."""

import datetime as dt
from typing import Any

import msgspec
import pytest

from attestation.evidence import Evidence
from cocoon.clock import ManualClock
from cocoon.statement import Statement
from cocoon.statement_request import statement_request
from tests.attested import DEVELOPMENT
from workers.agent import refusals
from workers.agent.keys import KeyRing
from workers.agent.refusals import Refusal, RefusedError
from workers.agent.stating import BURST, Stater
from workers.agent.tees.beacons import ToldBeacons
from workers.agent.tees.ports import EvidenceError, NoTEE
from workers.agent.tees.simulated import SimulatedSource

KEY, NONCE = b"k" * 32, b"n" * 32


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC))


@pytest.fixture
def keys(clock: ManualClock) -> KeyRing:
    ring = KeyRing(clock, b"b" * 16)
    ring.current.ticket_key = KEY
    return ring


def stater(clock: ManualClock, keys: KeyRing) -> Stater:
    tee = SimulatedSource(bytes(32), machine="w", gpus=0, deployment=DEVELOPMENT, beacons=ToldBeacons(clock))
    return Stater(tee, keys, clock)


def request(clock: ManualClock, keys: KeyRing, key: bytes = KEY, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "keyset_digest": keys.current.digest, "nonce": NONCE, "not_after": int(clock.now().timestamp()) + 60,
    }  # fmt: skip
    return statement_request(key, **{**fields, **changes}).encode()


async def refusal(stater: Stater, body: bytes) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        await stater.state(body)
    return caught.value.refusal


async def test_a_gateways_nonce_is_stated(clock: ManualClock, keys: KeyRing) -> None:
    evidence = Evidence.decode(await stater(clock, keys).state(request(clock, keys)))
    statement = Statement.decode(evidence.statement)
    assert (evidence.keyset, statement.nonce) == (keys.current.raw, NONCE)


async def test_a_keyset_in_its_overlap_is_stated_too(clock: ManualClock, keys: KeyRing) -> None:
    asked = request(clock, keys)
    before = keys.current.raw
    keys.succeed(keys.successor())
    assert Evidence.decode(await stater(clock, keys).state(asked)).keyset == before


async def test_requests_that_are_not_a_gateways_are_refused(clock: ManualClock, keys: KeyRing) -> None:
    now = int(clock.now().timestamp())
    asked = stater(clock, keys)
    strange = [
        request(clock, keys, key=b"x" * 32),
        request(clock, keys, keyset_digest=bytes(32)),
        request(clock, keys, not_after=now - 1),
        request(clock, keys, not_after=now + 3600),
    ]
    altered = msgspec.json.decode(request(clock, keys))
    strange.append(msgspec.json.encode({**altered, "not_after": now + 59}))
    for body in strange:
        assert await refusal(asked, body) is refusals.STRANGE_STATEMENT_REQUEST
    for body in (b"", b"{}", b"\xff", b"[" * 900):
        assert await refusal(asked, body) is refusals.BAD_STATEMENT_REQUEST
    keys.current.ticket_key = None
    assert await refusal(asked, request(clock, keys)) is refusals.STRANGE_STATEMENT_REQUEST
    assert await refusal(Stater(NoTEE(), keys, clock), request(clock, keys)) is refusals.NO_TEE


async def test_a_platform_makes_no_more_statements_than_it_has_time_for(clock: ManualClock, keys: KeyRing) -> None:
    asked, body = stater(clock, keys), request(clock, keys)
    for _ in range(BURST):
        await asked.state(body)
    assert await refusal(asked, body) is refusals.STATEMENTS_BUSY
    # Strangers cost nothing.
    assert await refusal(asked, request(clock, keys, key=b"x" * 32)) is refusals.STRANGE_STATEMENT_REQUEST
    clock.advance(0.2)
    await asked.state(body)


async def test_a_tee_that_gives_nothing_is_no_crash(clock: ManualClock, keys: KeyRing) -> None:
    class Broken(NoTEE):
        tee_type = "tdx"

        async def evidence(self, keyset: bytes, nonce: bytes | None) -> bytes:
            raise EvidenceError

    assert await refusal(Stater(Broken(), keys, clock), request(clock, keys)) is refusals.NO_EVIDENCE
