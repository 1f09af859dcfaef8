"""One request is one trace, from the caller through gateway and agent to the engine, and it tells no secrets."""

import contextlib
import json
import signal
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fixtures_gateway import MODEL, Stack, chat
from tests.integration.traces.collector import Collector, Span
from tests.scripted_engine import ScriptedEngine, until

PATH = "/v1/chat/completions"
CALLER_SPAN = "b7ad6b7169203331"
GATEWAY, AGENT = "cocoon-gateway", "cocoon-agent"
STEPS = {"authenticate", "admit", "route", "relay", "settle"}
PROMPT, COMPLETION, SALT = "the-prompt-is-secret", "the-answer-is-secret", "Y2xpZW50LXNhbHQtaXMtc2VjcmV0LTAxMjM0NTY3ODk"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


async def start(stack: Stack, endpoint: str, *, agent: bool, **environment: Any) -> None:
    environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    await stack.start_gateway(upstream=not agent, **environment)
    if agent:
        await stack.start_worker("worker-1", stack.engine, **environment)


def new_trace() -> str:
    return uuid.uuid4().hex


def caller(trace_id: str, *, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{CALLER_SPAN}-{int(sampled):02x}"}


async def ask(stack: Stack, trace_id: str, body: dict[str, Any], status: int = 200, **headers: str) -> httpx.Response:
    async with stack.client() as client:
        answer = await client.post(PATH, json=body, headers={**caller(trace_id), **headers})
    assert answer.status_code == status, answer.text
    return answer


async def test_every_endpoint_has_its_own_name_in_traces(stack: Stack, collector: Collector) -> None:
    stack.endpoints = ["completions", "embeddings"]
    await start(stack, collector.endpoint, agent=True)
    for path, operation, body in (
        ("/v1/completions", "text_completion", {"prompt": PROMPT}), ("/v1/embeddings", "embeddings", {"input": PROMPT}),
    ):  # fmt: skip
        trace_id = new_trace()
        async with stack.client() as client:
            answer = await client.post(path, json={"model": MODEL, **body}, headers=caller(trace_id))
        assert answer.status_code == 200, answer.text
        spans = await trace_of(collector, trace_id, f"{operation} {MODEL}", "agent job", "engine", *STEPS)
        for name in (f"{operation} {MODEL}", "agent job"):
            assert spans[name].attributes["gen_ai.operation.name"] == operation
            assert spans[name].attributes["gen_ai.usage.input_tokens"] == 10
        assert PROMPT not in repr(spans)


async def trace_of(collector: Collector, trace_id: str, *names: str) -> dict[str, Span]:
    """The trace by span names, once it has these and nothing is left out."""
    wanted = set(names)
    await until(lambda: wanted <= {span.name for span in collector.trace(trace_id)})
    spans = collector.trace(trace_id)
    found = {span.name: span for span in spans}
    assert len(found) == len(spans), "a span was exported twice"
    assert set(found) == wanted
    return found


@pytest.mark.parametrize("stream", [True, False])
async def test_one_request_through_an_agent_is_one_trace(stack: Stack, collector: Collector, stream: bool) -> None:
    await start(stack, collector.endpoint, agent=True)
    trace_id = new_trace()
    answer = await ask(stack, trace_id, chat(stream=stream, max_tokens=7))
    spans = await trace_of(collector, trace_id, f"chat {MODEL}", *STEPS, "agent job", "engine")
    root, relay, job, engine = (spans[name] for name in (f"chat {MODEL}", "relay", "agent job", "engine"))

    assert {spans[name].service for name in STEPS} | {root.service} == {GATEWAY}
    assert (job.service, engine.service) == (AGENT, AGENT)
    assert root.parent_id == CALLER_SPAN
    assert {spans[name].parent_id for name in STEPS} == {root.span_id}
    assert job.parent_id == relay.span_id
    assert engine.parent_id == job.span_id
    assert stack.engine.requests[-1].headers["traceparent"] == f"00-{trace_id}-{engine.span_id}-01"
    assert (root.kind, relay.kind, job.kind, engine.kind) == ("server", "client", "server", "client")
    assert {span.error for span in spans.values()} == {None}

    assert all(span.start_ns <= span.end_ns for span in spans.values())
    walk = [spans[name].start_ns for name in ("authenticate", "admit", "route", "relay", "settle")]
    assert walk == sorted(walk)
    assert root.start_ns == walk[0]
    assert root.end_ns == relay.end_ns <= spans["settle"].end_ns

    [row] = await stack.usage()
    counts = {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5, "cocoon.usage.cached_tokens": 4}
    for span in (root, job):
        assert span.attributes.items() >= {
            "gen_ai.operation.name": "chat", "gen_ai.request.model": MODEL, "gen_ai.response.finish_reasons": ["stop"],
            "cocoon.job_id": answer.headers["x-request-id"], "cocoon.stream": stream, **counts,
        }.items()  # fmt: skip
    assert root.attributes["gen_ai.provider.name"] == "cocoon"
    assert root.attributes["gen_ai.request.max_tokens"] == 7
    assert root.attributes["cocoon.outcome"] == "completed"
    assert root.attributes["cocoon.worker_id"] == str(row["worker_id"])
    assert root.attributes["cocoon.charge_nano"] == row["charge_nano"]
    assert root.attributes["cocoon.time_to_first_token_ms"] > 0


async def test_an_upstream_without_an_agent_is_named_by_the_relay(stack: Stack, collector: Collector) -> None:
    await start(stack, collector.endpoint, agent=False)
    trace_id = new_trace()
    await ask(stack, trace_id, chat(stream=True))
    spans = await trace_of(collector, trace_id, f"chat {MODEL}", *STEPS)
    seen = stack.engine.requests[-1].headers["traceparent"]
    assert seen == f"00-{trace_id}-{spans['relay'].span_id}-01"


async def test_a_request_without_a_trace_begins_one(stack: Stack, collector: Collector) -> None:
    await start(stack, collector.endpoint, agent=False)
    async with stack.client() as client:
        for header in ({}, {"traceparent": "00-nonsense"}):
            assert (await client.post(PATH, json=chat(), headers=header)).status_code == 200
    await until(lambda: len(collector.spans()) == 12)
    roots = [span for span in collector.spans() if span.name == f"chat {MODEL}"]
    assert [root.parent_id for root in roots] == ["", ""]
    assert len({root.trace_id for root in roots}) == 2
    engine_saw = {seen.headers["traceparent"].split("-")[1] for seen in stack.engine.requests}
    assert engine_saw == {root.trace_id for root in roots}


async def test_refusals_end_where_they_were_decided(stack: Stack, collector: Collector) -> None:
    await start(stack, collector.endpoint, agent=False)
    unknown_key, unknown_model, refused = new_trace(), new_trace(), new_trace()
    await ask(stack, unknown_key, chat(), 401, authorization=f"Bearer sk-cocoon-{'A' * 43}")
    await ask(stack, unknown_model, {**chat(), "model": "no-such-model"}, 404)
    await ask(stack, refused, chat(script={"status": 400}), 400)

    spans = await trace_of(collector, unknown_key, "chat", "authenticate")
    assert spans["chat"].error == spans["chat"].attributes["error.type"] == "invalid_api_key"
    assert "gen_ai.request.model" not in spans["chat"].attributes
    spans = await trace_of(collector, unknown_model, "chat no-such-model", "authenticate", "admit")
    assert spans["chat no-such-model"].error == "model_not_found"
    # What reached an engine leaves a row, which costs nothing here.
    spans = await trace_of(collector, refused, f"chat {MODEL}", *STEPS)
    assert spans[f"chat {MODEL}"].error is not None
    assert spans[f"chat {MODEL}"].attributes["cocoon.charge_nano"] == 0
    await stack.check_books()


async def test_an_answer_that_breaks_is_an_error_on_both_sides(stack: Stack, collector: Collector) -> None:
    await start(stack, collector.endpoint, agent=True)
    trace_id = new_trace()
    answer = await ask(stack, trace_id, chat(stream=True, script={"tokens": 9, "interval_s": 0.25, "die_after": 4}))
    assert "[DONE]" not in answer.text
    spans = await trace_of(collector, trace_id, f"chat {MODEL}", *STEPS, "agent job", "engine")
    root = spans[f"chat {MODEL}"]
    assert root.error == root.attributes["error.type"] == json.loads(answer.text.split("data: ")[-1])["error"]["code"]
    assert root.attributes["cocoon.outcome"] == "broken"
    assert root.attributes["cocoon.charge_nano"] == 0
    assert spans["agent job"].error == spans["engine"].error == spans["agent job"].attributes["cocoon.outcome"]


async def test_a_client_that_leaves_is_no_error(stack: Stack, collector: Collector) -> None:
    await start(stack, collector.endpoint, agent=True)
    trace_id = new_trace()
    body = chat(stream=True, script={"tokens": 500, "interval_s": 0.02})
    async with (
        stack.client() as client,
        client.stream("POST", PATH, json=body, headers=caller(trace_id)) as answer,
    ):
        async for line in answer.aiter_lines():
            if "t3 " in line:
                break
    spans = await trace_of(collector, trace_id, f"chat {MODEL}", *STEPS, "agent job", "engine")
    assert {span.error for span in spans.values()} == {None}
    assert spans[f"chat {MODEL}"].attributes["cocoon.outcome"] == "client_gone"
    assert spans[f"chat {MODEL}"].attributes["cocoon.charge_nano"] > 0
    assert spans["agent job"].attributes["cocoon.outcome"] == "abandoned"


async def test_a_retried_request_names_the_attempt_that_answered(stack: Stack, collector: Collector) -> None:
    async with ScriptedEngine() as broken:
        broken.refuse_with = 500
        await start(stack, collector.endpoint, agent=True)
        await stack.start_worker("worker-2", broken)
        while not broken.requests:
            trace_id = new_trace()
            answer = await ask(stack, trace_id, chat())
            assert answer.headers["x-cocoon-worker"] == "worker-1"
        spans = await trace_of(collector, trace_id, f"chat {MODEL}", *STEPS, "agent job", "engine")
    assert spans[f"chat {MODEL}"].attributes["cocoon.attempt"] == spans["agent job"].attributes["cocoon.attempt"] == 1
    assert spans[f"chat {MODEL}"].error is None


async def test_no_prompt_no_answer_and_no_key_is_exported(stack: Stack, collector: Collector) -> None:
    await start(stack, collector.endpoint, agent=True)
    traces = [new_trace() for _ in range(6)]
    scripts: list[tuple[bool, int, dict[str, Any]]] = [
        (True, 200, {"text": COMPLETION}),
        (False, 200, {"text": COMPLETION}),
        (True, 200, {"text": COMPLETION, "die_after": 2, "interval_s": 0.25}),
        (False, 502, {"text": COMPLETION, "die_after": 0}),
        (False, 400, {"status": 400, "body": {"error": {"message": f"bad {PROMPT}", "type": "x"}}}),
        (True, 400, {"status": 400, "body": {"error": {"message": f"bad {PROMPT}", "type": "x", "code": PROMPT}}}),
    ]
    for trace_id, (stream, status, script) in zip(traces, scripts, strict=True):
        body = chat(stream=stream, script={**script, "prompt": PROMPT}, user=PROMPT)
        answer = await ask(stack, trace_id, body, status, **{"x-cocoon-salt": SALT})
        assert (COMPLETION in answer.text) == (status == 200)
    for trace_id in traces:
        await until(lambda t=trace_id: {GATEWAY, AGENT} <= {span.service for span in collector.trace(t)})
    received = collector.received
    assert MODEL.encode() in received
    for secret in (PROMPT, COMPLETION, SALT, stack.api_key, stack.worker_key, stack.api_key[:20], "sk-cocoon"):
        assert secret.encode() not in received, secret


async def test_what_the_caller_does_not_sample_is_not_exported_but_passed_on(
    stack: Stack, collector: Collector
) -> None:
    await start(stack, collector.endpoint, agent=True)
    unsampled, sampled = new_trace(), new_trace()
    async with stack.client() as client:
        answer = await client.post(PATH, json=chat(), headers=caller(unsampled, sampled=False))
    assert answer.status_code == 200
    version, trace_id, _, flags = stack.engine.requests[-1].headers["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", unsampled, "00")
    await stack.usage()
    await ask(stack, sampled, chat())
    # Each process exports in order: once the later request has arrived whole, the earlier would be there too.
    await trace_of(collector, sampled, f"chat {MODEL}", *STEPS, "agent job", "engine")
    assert collector.trace(unsampled) == []


async def test_without_an_exporter_the_callers_trace_is_handed_on_untouched(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    trace_id = new_trace()
    await ask(stack, trace_id, chat())
    assert stack.engine.requests[-1].headers["traceparent"] == caller(trace_id)["traceparent"]


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections into its backlog and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """A port that refuses: bound by us so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("collector_away", [silent_server, nobody])
async def test_a_collector_that_is_away_changes_nothing(stack: Stack, collector_away: Any) -> None:
    with collector_away() as endpoint:
        # Whoever waited for the collector, or for the drain, would still be waiting when this test is out of time.
        await start(stack, endpoint, agent=True, OTEL_EXPORTER_OTLP_TIMEOUT="3600", COCOON_DRAIN_S="600")
        for number in range(10):
            await ask(stack, new_trace(), chat(stream=number % 2 == 0))
        assert len(await stack.usage(10)) == 10
        await stack.check_books()
        gateway = stack.gateway
        assert gateway is not None
        gateway.send_signal(signal.SIGTERM)
        await until(lambda: gateway.poll() is not None)
        assert gateway.returncode == 0
