"""A real agent process between a fake gateway and a fake engine: completions and embeddings."""

import json
from typing import Any

import msgspec
import pytest

from cocoon import hop, receipt
from cocoon.canonical import base64url, from_base64url
from cocoon.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, Endpoint
from cocoon.sealed import CONTENT_TYPE
from cocoon.usage import TokenUsage
from tests.integration.agent.conftest import Launch
from tests.integration.agent.fake_engine import FakeEngine, Script
from tests.integration.agent.fake_gateway import Answer, FakeGateway, Peer, check_receipt, until
from tests.sealed_client import SealedCall

SALT = bytes(range(32))
TEXT: dict[str, Any] = {"model": "fake", "prompt": "Once upon"}
INPUT: dict[str, Any] = {"model": "fake", "input": ["one", "two"]}


BOTH = pytest.mark.parametrize("peer", ["openai", "sglang"], indirect=True)


@pytest.fixture
async def peer(request: pytest.FixtureRequest, launch: Launch, engine: FakeEngine) -> Peer:
    dialect: str = getattr(request, "param", "openai")
    engine.script = Script(dialect=dialect)
    prefix = "sglang+" if dialect == "sglang" else ""
    agent = await launch(
        COCOON_ENGINE=prefix + engine.url, COCOON_WORKER_CAPACITY=2,
        COCOON_SERVED_ENDPOINTS="embeddings,completions,chat",
    )  # fmt: skip
    return await agent.peer()


async def ask(peer: Peer, endpoint: Endpoint, body: dict[str, Any] | bytes, **changes: Any) -> Answer:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await peer.post(raw, peer.sealed(peer.ticket(raw, **changes)), path=endpoint.job_path)


def opens(body: dict[str, Any], salt: bytes, request: bytes, payloads: list[bytes]) -> bool:
    commitment = receipt.Commitment(salt)
    commitment.request(request)
    for payload in payloads:
        commitment.response(payload)
    return (body["c_req"], body["c_resp"]) == (base64url(commitment.c_req), base64url(commitment.c_resp))


async def test_a_stream_of_completions_shows_what_was_asked_for_under_a_receipt(peer: Peer) -> None:
    raw = msgspec.json.encode({**TEXT, "stream": True, "echo": True, "logprobs": 2, "suffix": "!", "max_tokens": 9})
    ticket = peer.ticket(raw)
    answer = await peer.post(raw, peer.sealed(ticket), path=COMPLETIONS.job_path, x_cocoon_salt=base64url(SALT))
    assert (answer.status, answer.headers["x-cocoon-answer-type"]) == (200, "text/event-stream")
    assert "".join(choice["text"] for chunk in answer.chunks for choice in chunk["choices"]) == "Hello from the fake."
    assert answer.payloads[-1] == b"[DONE]"
    assert all("usage" not in chunk for chunk in answer.chunks)
    assert answer.trailer.usage == TokenUsage(prompt=11, cached=3, completion=5)
    assert opens(check_receipt(peer, answer, ticket), SALT, raw, answer.payloads)


@BOTH
async def test_every_prompt_is_completed_and_counted_by_itself(peer: Peer, engine: FakeEngine) -> None:
    raw = msgspec.json.encode({**TEXT, "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 4})
    ticket = peer.ticket(raw)
    answer = await peer.post(raw, peer.sealed(ticket), path=COMPLETIONS.job_path)
    document = json.loads(answer.data)
    assert (document["object"], document["model"]) == ("text_completion", "fake")
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2, 3, 4, 5]
    assert {(choice["text"], choice["finish_reason"]) for choice in document["choices"]} == {
        ("Hello from the fake", "length")
    }
    assert set(document["choices"][0]) == {"index", "text", "logprobs", "finish_reason"}
    assert answer.trailer.usage == TokenUsage(prompt=33, cached=9, completion=24)
    assert document["usage"]["total_tokens"] == 57
    assert opens(
        check_receipt(peer, answer, ticket), from_base64url(answer.headers["x-cocoon-salt"]), raw, [answer.data]
    )
    sent = engine.requests[-1]
    assert (sent.target, sent.body["n"], sent.body["max_tokens"], sent.body["prompt"]) == (
        "/v1/completions", 2, 4, ["a", "b", "c"],
    )  # fmt: skip


async def test_the_ticket_is_shared_among_all_choices_of_all_prompts(peer: Peer, engine: FakeEngine) -> None:
    body = {**TEXT, "prompt": [[1, 2], [3]], "n": 2, "max_tokens": 50, "stream": True}
    answer = await ask(peer, COMPLETIONS, body, max_completion=11)
    assert engine.requests[-1].body["max_tokens"] == 2
    assert answer.trailer.usage.completion == 8
    assert (await ask(peer, COMPLETIONS, body, max_completion=3)).error["code"] == "ticket_exhausted"


async def test_a_prompt_given_twice_reaches_the_engine_once(peer: Peer, engine: FakeEngine) -> None:
    raw = b'{"prompt":["a","b","c","d"],"model":"fake","prompt":"a","max_tokens":3}'
    answer = await ask(peer, COMPLETIONS, raw, max_completion=3)
    assert engine.requests[-1].raw.count(b'"prompt"') == 1
    assert answer.trailer.usage.completion == 3


@BOTH
async def test_embeddings_come_whole_are_counted_by_their_prompt_and_have_a_receipt(
    peer: Peer, engine: FakeEngine
) -> None:
    raw = msgspec.json.encode({**INPUT, "dimensions": 2, "encoding_format": "float", "user": "u"})
    ticket = peer.ticket(raw, max_completion=0)
    answer = await peer.post(raw, peer.sealed(ticket), path=EMBEDDINGS.job_path)
    document = json.loads(answer.data)
    assert [one["embedding"] for one in document["data"]] == [[0.5, 0.25]] * 2
    assert document["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
    assert answer.trailer.usage == TokenUsage(prompt=11, cached=0, completion=0)
    assert (answer.trailer.finish_reason, answer.trailer.failure) == ("stop", None)
    assert [kind for kind, _ in answer.frames if kind is hop.FrameKind.DATA] == [hop.FrameKind.DATA]
    salt = from_base64url(answer.headers["x-cocoon-salt"])
    assert opens(check_receipt(peer, answer, ticket), salt, raw, [answer.data])
    sent = engine.requests[-1].body
    assert (sent["dimensions"], sent["encoding_format"], sent["input"]) == (2, "float", ["one", "two"])
    assert not {"stream", "stream_options", "max_tokens", "n"} & sent.keys()


async def test_counts_of_embeddings_stay_within_the_ticket(peer: Peer, engine: FakeEngine) -> None:
    engine.script = Script(usage=(5000,))
    answer = await ask(peer, EMBEDDINGS, INPUT, max_prompt=20, max_completion=0)
    assert answer.trailer.usage == TokenUsage(prompt=20, cached=0, completion=0)
    assert json.loads(answer.data)["usage"]["prompt_tokens"] == 20


async def test_embeddings_that_break_are_an_error_without_a_charge(peer: Peer, engine: FakeEngine) -> None:
    for script, status, code in (
        (Script(die_after=0), 502, "engine_failed"),
        (Script(status=400, error={"error": {"message": "no pooling", "type": "x"}}), 400, "invalid_request"),
        (Script(status=501, error={"error": {"message": "no", "type": "not_supported_error"}}), 502, "engine_failed"),
    ):
        engine.script = script
        answer = await ask(peer, EMBEDDINGS, INPUT, max_completion=0)
        assert (answer.status, answer.error["code"], answer.frames) == (status, code, [])


async def test_leaving_stops_an_embedding_and_a_completion(peer: Peer, engine: FakeEngine) -> None:
    engine.script = Script(prefill_s=60.0)
    for endpoint, body in ((EMBEDDINGS, INPUT), (COMPLETIONS, TEXT)):
        raw = msgspec.json.encode(body)
        async with peer.connected() as connection:
            connection.send(peer.request(raw, peer.sealed(peer.ticket(raw)), endpoint.job_path))
            await until(lambda: engine.requests and engine.requests[-1].ended is None)
        await until(lambda: engine.requests[-1].ended == "aborted")
        engine.seen.clear()


async def test_both_are_answered_sealed(peer: Peer, engine: FakeEngine) -> None:
    for endpoint, body, completion in (
        (COMPLETIONS, {**TEXT, "prompt": ["a", "b"], "n": 2, "max_tokens": 4}, 16),
        (COMPLETIONS, {**TEXT, "max_tokens": 4, "stream": True}, 4),
        (EMBEDDINGS, INPUT, 0),
    ):
        call = SealedCall(body, [peer.enrolment.keyset], "sk-cocoon-client", endpoint)
        ticket = peer.ticket(
            b"", request_digest=call.sent.digest, job_id=call.job_id, max_prompt=50, max_completion=completion
        )
        answer = await peer.post(call.sent.raw, peer.sealed(ticket), path=endpoint.job_path, content_type=CONTENT_TYPE)
        opened = call.opened(answer.data)
        assert opened.receipt().seal == "sealed"
        assert opened.trailer.usage == answer.trailer.usage
        assert opened.trailer.usage.completion == completion
        sent = engine.requests[-1]
        assert (sent.target, sent.body[endpoint.prompt]) == (endpoint.path, body[endpoint.prompt])


REFUSED: list[tuple[Endpoint, dict[str, Any], str]] = [
    (COMPLETIONS, {**TEXT, "best_of": 3}, "best_of_unsupported"),
    (COMPLETIONS, {**TEXT, "best_of": 3, "stream": True}, "invalid_value"),
    (COMPLETIONS, {**TEXT, "prompt": []}, "empty_array"),
    (COMPLETIONS, {**TEXT, "prompt": ["a"] * 65, "n": 2}, "array_too_long"),
    (COMPLETIONS, {"model": "fake", "messages": [{"role": "user", "content": "x"}]}, "invalid_request"),
    (EMBEDDINGS, {**INPUT, "stream": True}, "invalid_value"),
    (EMBEDDINGS, {**INPUT, "input": [1, "a"]}, "invalid_type"),
    (CHAT, TEXT, "invalid_request"),
]


async def test_what_an_endpoint_does_not_take_is_refused_before_the_engine_sees_it(
    peer: Peer, engine: FakeEngine
) -> None:
    for endpoint, body, code in REFUSED:
        answer = await ask(peer, endpoint, body)
        assert (answer.status, answer.error["code"]) == (400, code), body
    assert engine.requests == []


async def test_an_agent_serves_what_it_says_and_says_what_it_serves(
    launch: Launch, gateway: FakeGateway, engine: FakeEngine
) -> None:
    peer = await (await launch(COCOON_ENGINE=engine.url, COCOON_SERVED_ENDPOINTS="embeddings")).peer()
    assert peer.enrolment.models[0].endpoints == ("embeddings",)
    for endpoint, body in ((COMPLETIONS, TEXT), (CHAT, {"model": "fake", "messages": [{"role": "user"}]})):
        answer = await ask(peer, endpoint, body)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert (await ask(peer, EMBEDDINGS, INPUT)).status == 200
