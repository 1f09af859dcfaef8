"""A real agent process and sealed jobs: what it opens, what it refuses, and what it answers."""

import asyncio
import uuid
from typing import Any

import msgspec
import pytest

from cocoon import hop
from cocoon.errors import MalformedError
from cocoon.receipt import Commitment
from cocoon.sealed import CONTENT_TYPE, UnopenableError, parse_request
from cocoon.sealed_answer import AnswerOpener
from cocoon.ticket import Ticket
from cocoon.usage import TokenUsage
from tests.integration.agent.fake_engine import FakeEngine, Script
from tests.integration.agent.fake_gateway import Answer, Peer, check_receipt, until
from tests.sealed_client import SealedCall

CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64}
STREAM = {**CHAT, "stream": True}
KEY = "sk-cocoon-client"


async def _post(peer: Peer, call: SealedCall, raw: bytes | None = None, **changes: Any) -> tuple[Answer, Ticket]:
    """Through a gateway that keeps to the protocol, but for what `changes` alter in its ticket."""
    ticket = peer.ticket(
        b"", **{"request_digest": call.sent.digest, "job_id": call.job_id, "max_prompt": 100, **changes}
    )
    answer = await peer.post(raw or call.sent.raw, peer.sealed(ticket), content_type=CONTENT_TYPE)
    return answer, ticket


def _call(peer: Peer, body: dict[str, Any] = STREAM, **changes: Any) -> SealedCall:
    return SealedCall(body, [peer.enrolment.keyset], KEY, **changes)


async def _refused(peer: Peer, call: SealedCall, raw: bytes | None = None, **changes: Any) -> str:
    answer, _ = await _post(peer, call, raw, **changes)
    assert answer.frames == []
    return str(answer.error["code"])


@pytest.mark.parametrize("body", [STREAM, CHAT], ids=["stream", "unary"])
async def test_a_sealed_answer_opens_with_its_receipt(peer: Peer, engine: FakeEngine, body: dict[str, Any]) -> None:
    call = _call(peer, body)
    answer, ticket = await _post(peer, call)
    assert (answer.status, answer.headers["x-cocoon-answer-type"]) == (200, CONTENT_TYPE)
    assert b"Hello" not in answer.data
    opened = call.opened(answer.data)
    assert opened.text == "Hello from the fake."
    receipt = opened.receipt()
    assert (receipt.seal, receipt.sealed_digest, receipt.receipt_id) == (
        "sealed", call.sent.digest, str(call.job_id),
    )  # fmt: skip
    assert opened.trailer.usage == answer.trailer.usage == TokenUsage(prompt=11, cached=3, completion=5)
    assert check_receipt(peer, answer, ticket)["seal"] == "sealed"
    assert engine.requests[-1].body["messages"] == body["messages"]
    assert "x-cocoon-salt" not in answer.headers


async def test_a_pause_of_the_engine_holds_nothing_back(peer: Peer, engine: FakeEngine) -> None:
    """A token right behind the first frame waits for its time, and is sent then, though the engine says no more."""
    engine.script = Script(interval_s=60)
    call = _call(peer)
    ticket = peer.ticket(b"", request_digest=call.sent.digest, job_id=call.job_id, max_prompt=100)
    opener = AnswerOpener(digest=call.sent.digest, secrets=call.sent.secrets)
    reader, seen = hop.FrameReader(), b""
    async with asyncio.timeout(60), peer.connected() as connection:
        connection.send(peer.request(call.sent.raw, peer.sealed(ticket), content_type=CONTENT_TYPE))
        await connection.head()
        while b"Hello" not in seen:
            for kind, payload in reader.feed(await connection.read()):
                if kind is hop.FrameKind.DATA:
                    seen += b"".join(opener.feed(payload))
    await until(lambda: engine.requests[-1].ended == "aborted")


async def test_a_job_runs_once_at_a_worker_whatever_tickets_there_are(peer: Peer) -> None:
    call = _call(peer)
    await _post(peer, call)
    assert await _refused(peer, call, attempt=1) == "sealed_replayed"
    assert await _refused(peer, call) == "ticket_replayed"


@pytest.mark.parametrize(
    ("body", "terms"),
    [
        (STREAM, {"model": "other"}),
        (STREAM, {"n": 2}),
        (STREAM, {"stream": False}),
        (STREAM, {"max_completion": 63}),
        ({**STREAM, "prompt": "and another one"}, {}),
        (STREAM, {"manifest": bytes(32)}),
    ],
    ids=["model", "n", "stream", "maximum", "two prompts", "manifest"],
)
async def test_a_body_that_differs_from_its_header_reaches_no_engine(
    peer: Peer, engine: FakeEngine, body: dict[str, Any], terms: dict[str, Any]
) -> None:
    assert await _refused(peer, _call(peer, body, **terms), max_completion=8) == "sealed_mismatch"
    assert engine.requests == []


async def test_a_prompt_that_its_header_does_not_cover_reaches_no_engine(peer: Peer, engine: FakeEngine) -> None:
    call = _call(peer, max_prompt=10)
    assert await _refused(peer, call, max_prompt=10) == "context_length_exceeded"
    assert engine.requests == []


async def test_the_ticket_must_be_for_exactly_this_request(peer: Peer, engine: FakeEngine) -> None:
    call, other = _call(peer), _call(peer)
    assert await _refused(peer, call, request_digest=other.sent.digest) == "ticket_mismatch"
    assert await _refused(peer, call, job_id=uuid.UUID(int=1)) == "ticket_mismatch"
    # A gateway that would charge for more than the client agreed to.
    assert await _refused(peer, call, max_completion=65) == "ticket_mismatch"
    assert await _refused(peer, call, max_prompt=10_000) == "ticket_mismatch"
    # The same bytes, passed off as a plain request.
    ticket = peer.ticket(call.sent.raw)
    assert (await peer.post(call.sent.raw, peer.sealed(ticket))).error["code"] == "invalid_request"
    assert engine.requests == []


async def test_what_was_altered_or_is_too_old_or_for_others_is_refused(peer: Peer, engine: FakeEngine) -> None:
    call = _call(peer)
    raw = bytearray(call.sent.raw)
    raw[-1] ^= 1
    assert await _refused(peer, call, bytes(raw)) == "sealed_unopenable"
    old = _call(peer, not_after=1)
    assert await _refused(peer, old) == "sealed_expired"
    assert await _refused(peer, call, b"CSR1") == "sealed_malformed"
    swapped = _swapped_wraps(peer)
    assert await _refused(peer, swapped[0], swapped[1]) == "sealed_unopenable"
    assert engine.requests == []


def _swapped_wraps(peer: Peer) -> tuple[SealedCall, bytes]:
    """A request for this worker and another one, their wraps exchanged on the way."""
    call = SealedCall(STREAM, [peer.enrolment.keyset, another_keyset(peer)], KEY)
    parsed = parse_request(call.sent.raw)
    one, two = parsed.wraps
    return call, call.sent.raw.replace(one + two, two + one)


def another_keyset(peer: Peer) -> bytes:
    """The keyset of a worker that is not there."""
    return msgspec.structs.replace(peer.keyset, boot_id=b"another boot 16b").encode()


async def test_the_engines_own_words_are_sealed_and_the_agents_are_not(peer: Peer, engine: FakeEngine) -> None:
    engine.script = Script(status=400, error={"error": {"message": "cannot parse: hi, secret"}})
    call = _call(peer)
    answer, _ = await _post(peer, call)
    assert (answer.status, answer.headers["content-type"]) == (400, CONTENT_TYPE)
    assert b"secret" not in answer.body
    opened = call.opened(answer.body)
    assert msgspec.json.decode(opened.data)["error"]["message"] == "cannot parse: hi, secret"
    assert opened.trailer.receipt is None
    with pytest.raises(MalformedError, match="without a receipt"):
        opened.receipt()


async def test_an_answer_that_breaks_has_no_last_frame(peer: Peer, engine: FakeEngine) -> None:
    engine.script = Script(die_after=2, interval_s=0.25)
    call = _call(peer)
    answer, _ = await _post(peer, call)
    assert answer.trailer.failure == "engine_failed"
    with pytest.raises(UnopenableError, match="cut off"):
        call.opened(answer.data)


async def test_a_receipt_is_for_one_request_and_one_answer(peer: Peer) -> None:
    one, two = _call(peer), _call(peer)
    opened = one.opened((await _post(peer, one))[0].data)
    other = two.opened((await _post(peer, two))[0].data)
    with pytest.raises(MalformedError, match="another request"):
        opened.receipt(digest=two.sent.digest)
    with pytest.raises(MalformedError, match="another sealed request or answer"):
        opened.receipt(rolling=bytes(32))
    with pytest.raises(MalformedError, match="commits to another"):
        opened.receipt(commitment=Commitment(one.sent.secrets[peer.digest]))
    with pytest.raises(MalformedError, match="signature"):
        opened.receipt(keyset=msgspec.structs.replace(peer.keyset, receipt_pk=b"\x01" * 32).encode())
    opened.trailer = other.trailer
    with pytest.raises(MalformedError, match="another request"):
        opened.receipt()


async def test_no_client_chooses_whose_prompts_its_own_are_compared_with(peer: Peer, engine: FakeEngine) -> None:
    for body in ({**STREAM, "cache_salt": "mine"}, {**STREAM, "cache_salt": "mine"}, STREAM, STREAM):
        await _post(peer, _call(peer, body))
    for tenant in ("one", "one", "two"):
        await peer.chat({**STREAM, "cache_salt": "mine"}, {"x_cocoon_tenant": tenant})
    salts = [seen.body["cache_salt"] for seen in engine.requests]
    assert salts[0] == salts[1]
    assert salts[4] == salts[5]
    assert len({salts[0], *salts[2:5], salts[6]}) == 5
    assert "mine" not in salts
