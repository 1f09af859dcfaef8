"""A real agent process over TLS, between a fake gateway and a fake engine: answers."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from cocoon import hop, receipt
from cocoon.canonical import base64url, from_base64url
from cocoon.usage import TokenUsage
from tests.integration.agent.conftest import Launch
from tests.integration.agent.fake_engine import FakeEngine, Script
from tests.integration.agent.fake_gateway import FakeGateway, Peer, check_receipt, until

SALT = bytes(range(32))
CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}


async def test_a_stream_arrives_whole_with_a_receipt_that_opens(peer: Peer, engine: FakeEngine) -> None:
    raw = msgspec.json.encode(STREAM)
    ticket = peer.ticket(raw)
    answer = await peer.post(raw, peer.sealed(ticket), x_cocoon_salt=base64url(SALT))
    assert (answer.status, answer.headers["x-cocoon-answer-type"]) == (200, "text/event-stream")
    assert answer.text == "Hello from the fake."
    assert answer.payloads[-1] == b"[DONE]"
    assert all("usage" not in chunk for chunk in answer.chunks)
    assert answer.trailer.usage == TokenUsage(prompt=11, cached=3, completion=5)
    assert (answer.trailer.finish_reason, answer.trailer.failure) == ("stop", None)
    assert answer.progress[-1].completion == 5
    assert "x-cocoon-salt" not in answer.headers
    assert _opens(check_receipt(peer, answer, ticket), SALT, raw, answer.payloads)
    assert from_base64url(check_receipt(peer, answer, ticket)["keyset_digest"]) == peer.digest


async def test_a_unary_answer_is_assembled_and_committed_to_as_sent(peer: Peer, engine: FakeEngine) -> None:
    raw = msgspec.json.encode({**CHAT, "n": 2})
    ticket = peer.ticket(raw)
    answer = await peer.post(raw, peer.sealed(ticket))
    assert answer.headers["x-cocoon-answer-type"] == "application/json"
    assert [kind for kind, _ in answer.frames].count(hop.FrameKind.DATA) == 1
    document = json.loads(answer.data)
    assert (document["object"], document["model"], document["system_fingerprint"]) == (
        "chat.completion", "fake", "fp_fake",
    )  # fmt: skip
    messages = [choice["message"] for choice in document["choices"]]
    assert messages == [{"role": "assistant", "content": "Hello from the fake."}] * 2
    assert document["usage"] == {
        "prompt_tokens": 11, "completion_tokens": 10, "total_tokens": 21, "prompt_tokens_details": {"cached_tokens": 3},
    }  # fmt: skip
    assert answer.trailer.usage == TokenUsage(prompt=11, cached=3, completion=10)
    salt = from_base64url(answer.headers["x-cocoon-salt"])
    assert len(salt) == 32
    assert _opens(check_receipt(peer, answer, ticket), salt, raw, [answer.data])
    # The engine streamed all the same: only a stream can be stopped.
    assert engine.requests[-1].body["stream"] is True


async def test_the_usage_chunk_is_shown_to_who_asks_and_no_commitment_covers_it(peer: Peer, engine: FakeEngine) -> None:
    raw = msgspec.json.encode({**STREAM, "stream_options": {"include_usage": True}})
    ticket = peer.ticket(raw)
    answer = await peer.post(raw, peer.sealed(ticket), x_cocoon_salt=base64url(SALT))
    *others, last = answer.chunks
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 16)
    assert all("usage" not in chunk for chunk in others)
    shown = [payload for payload in answer.payloads if not payload.endswith(b"}}}") or b'"usage"' not in payload]
    assert _opens(check_receipt(peer, answer, ticket), SALT, raw, shown)


async def test_events_cut_anywhere_arrive_whole(peer: Peer, engine: FakeEngine) -> None:
    engine.script = Script(fresh_bytes=7)
    answer = await peer.chat(STREAM)
    assert answer.text == "Hello from the fake."
    for kind, payload in answer.frames:
        assert kind is not hop.FrameKind.DATA or payload.endswith(b"\n\n")


@pytest.mark.parametrize("wish", [{"max_tokens": 60}, {"max_completion_tokens": 60}, {"max_new_tokens": 60}, {"n": 2}])
async def test_no_member_of_the_body_raises_the_work_above_the_ticket(
    peer: Peer, engine: FakeEngine, wish: dict[str, int]
) -> None:
    answer = await peer.chat({**STREAM, **wish, "n_predict": 60, "best_of": 9}, max_completion=3)
    sent = engine.requests[-1].body
    assert sent["max_tokens"] * sent["n"] <= 3
    assert not {"max_completion_tokens", "max_new_tokens", "n_predict", "best_of"} & sent.keys()
    assert answer.trailer.usage.completion <= 3
    assert answer.trailer.finish_reason == "length"


async def test_duplicate_members_cannot_smuggle_a_larger_maximum(peer: Peer, engine: FakeEngine) -> None:
    raw = b'{"max_tokens":900,"n":1,"model":"fake","messages":[{"role":"user","content":"hi"}],"max_tokens":2,"n":1}'
    await peer.chat(raw, max_completion=2)
    assert engine.requests[-1].raw.count(b'"max_tokens"') == 1
    assert engine.requests[-1].body["max_tokens"] == 2


async def test_an_engine_that_lies_about_counts_is_cut_down_to_the_ticket(peer: Peer, engine: FakeEngine) -> None:
    engine.script = Script(usage=(5000, 4999, 10**6))
    body = {**STREAM, "stream_options": {"include_usage": True}}
    answer = await peer.chat(body, max_prompt=40, max_completion=7)
    assert answer.trailer.usage == TokenUsage(prompt=40, cached=40, completion=7)
    assert answer.chunks[-1]["usage"]["total_tokens"] == 47


async def test_an_engine_without_usage_is_metered_by_its_chunks(peer: Peer, engine: FakeEngine) -> None:
    engine.script = Script(usage=())
    answer = await peer.chat({**STREAM, "stream_options": {"include_usage": True}})
    assert answer.trailer.usage == TokenUsage(completion=5)
    assert answer.chunks[-1]["usage"]["completion_tokens"] == 5
    assert answer.chunks[-1]["id"] == "chatcmpl-fake"


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (Script(status=400, error={"object": "error", "message": "bad n", "type": "BadRequest", "code": 400}), 400,
         "invalid_request"),
        (Script(status=400, error={"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error"}}),
         400, "context_length_exceeded"),
        (Script(status=429, error={"message": "full"}, retry_after="7"), 429, "engine_busy"),
        (Script(status=503, error="loading", retry_after="9"), 502, "engine_failed"),
        (Script(status=401, error={"error": {"message": "key sk-secret is wrong"}}), 502, "engine_failed"),
        (Script(events=('{"error":{"message":"bad grammar","code":400}}',)), 400, "invalid_request"),
        (Script(events=('{"error":{"message":"cuda","code":500}}',)), 502, "engine_failed"),
        (Script(die_after=0), 502, "engine_failed"),
    ],
)  # fmt: skip
async def test_engine_errors_become_openai_errors(
    peer: Peer, engine: FakeEngine, script: Script, status: int, code: str
) -> None:
    engine.script = msgspec.structs.replace(script, events=script.events or (() if script.die_after == 0 else None))
    answer = await peer.chat(STREAM)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.headers.get("retry-after") == script.retry_after
    assert "sk-secret" not in answer.error["message"]
    await peer.until_idle()


async def test_an_engine_that_dies_mid_stream_yields_a_failure_and_no_end_mark(peer: Peer, engine: FakeEngine) -> None:
    engine.script = Script(die_after=2, interval_s=0.25)
    raw = msgspec.json.encode(STREAM)
    ticket = peer.ticket(raw)
    answer = await peer.post(raw, peer.sealed(ticket))
    assert answer.status == 200
    assert b"[DONE]" not in answer.data
    assert answer.trailer.failure == "engine_failed"
    assert answer.trailer.usage == TokenUsage()
    assert check_receipt(peer, answer, ticket)["finish_reason"] == "engine_failed"


@pytest.mark.parametrize(
    "script",
    [
        Script(done=False),
        Script(finish="abort"),
        Script(events=('{"choices":[{"index":0,"delta":{"content":"x"}}]}', "{nope")),
    ],
)
async def test_a_stream_that_is_not_whole_is_never_passed_off_as_whole(
    peer: Peer, engine: FakeEngine, script: Script
) -> None:
    engine.script = script
    for body in (STREAM, CHAT):
        answer = await peer.chat(body)
        assert answer.status == 502 or answer.trailer.failure == "engine_failed"
        assert b"[DONE]" not in answer.data
        assert b'chat.completion"' not in answer.data


@pytest.mark.parametrize("body", [STREAM, CHAT], ids=["stream", "unary"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_the_engine_stops_when_the_gateway_leaves(
    peer: Peer, engine: FakeEngine, body: dict[str, Any], phase: str
) -> None:
    engine.script = Script(prefill_s=3600.0) if phase == "prefill" else Script(tokens=("x",) * 9000, interval_s=0.2)
    async with peer.begun(body) as job:
        await until(lambda: engine.requests)
        if phase == "decode":
            await job.until_frame(hop.FrameKind.PROGRESS)
    await until(lambda: engine.requests[0].ended == "aborted")
    await peer.until_idle()


async def test_prompts_progress_and_answers_never_reach_the_log(launch: Launch, engine: FakeEngine) -> None:
    agent = await launch(COCOON_ENGINE=engine.url, COCOON_ENGINE_API_KEY="sk-engine-secret")
    peer = await agent.peer()
    engine.script = Script(tokens=("an answer nobody logs",))
    body = {**STREAM, "messages": [{"role": "user", "content": "a prompt nobody logs"}]}
    await peer.chat(body)
    engine.script = Script(status=400, error={"message": "a prompt nobody logs"})
    await peer.chat(body)
    assert engine.requests[0].headers["authorization"] == "Bearer sk-engine-secret"
    agent.terminate()
    assert await agent.exited() == 0
    assert "job_ended" in agent.output
    for secret in ("nobody logs", "sk-engine-secret", "wk-cocoon-", "token-1"):
        assert secret not in agent.output


async def test_sglang_gets_names_exact_counts_and_an_explicit_abort(launch: Launch, engine: FakeEngine) -> None:
    peer = await (await launch(COCOON_ENGINE=f"sglang+{engine.url}")).peer()
    engine.script = Script(dialect="sglang")
    body = {**STREAM, "rid": "someone-elses", "bootstrap_host": "10.0.0.1", "priority": 9, "lora_path": "x"}
    raw = msgspec.json.encode(body)
    ticket = peer.ticket(raw)
    answer = await peer.post(raw, peer.sealed(ticket), traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    sent = engine.requests[0]
    assert sent.body["rid"] == f"chatcmpl-{ticket.job_id.hex}-0"
    assert not {"bootstrap_host", "priority", "lora_path"} & sent.body.keys()
    assert sent.body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert sent.headers["traceparent"] == "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert all("usage" not in chunk for chunk in answer.chunks)
    assert answer.progress[0].prompt == 11
    assert engine.aborted_rids == []

    engine.script = Script(dialect="sglang", tokens=("x",) * 9000, interval_s=0.2)
    async with peer.begun(STREAM) as job:
        await job.until_frame(hop.FrameKind.PROGRESS)
    await until(lambda: engine.aborted_rids == [f"chatcmpl-{job.ticket.job_id.hex}-0"])
    await until(lambda: peer.enrolment.engine == "sglang-attached")


async def test_load_in_the_engine_is_reported(launch: Launch, engine: FakeEngine, gateway: FakeGateway) -> None:
    await (await launch(COCOON_ENGINE=f"sglang+{engine.url}", COCOON_WORKER_CAPACITY=3)).peer()
    beat = await until(lambda: gateway.heartbeats and gateway.heartbeats[-1])
    assert (beat.running, beat.queued, beat.capacity, beat.draining) == (0, 2, 3, False)


async def test_jobs_run_side_by_side_without_mixing(peer: Peer, engine: FakeEngine) -> None:
    async def one(word: str) -> str:
        fake = {"tokens": [word] * 20, "interval_s": 0.005}
        return (await peer.chat({**STREAM, "fake": fake})).text

    words = ["alpha", "beta", "gamma", "delta"]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(word)) for word in words]
    assert [task.result() for task in tasks] == [word * 20 for word in words]


def _opens(body: dict[str, Any], salt: bytes, raw: bytes, payloads: list[bytes]) -> bool:
    opened = receipt.Commitment(salt)
    opened.request(raw)
    for payload in payloads:
        opened.response(payload)
    return (from_base64url(body["c_req"]), from_base64url(body["c_resp"])) == (opened.c_req, opened.c_resp)
