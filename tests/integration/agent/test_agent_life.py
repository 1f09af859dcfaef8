"""Enrolment, renewal, drains and ends of a real agent process."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cocoon import hop
from cocoon.usage import TokenUsage
from tests.integration.agent.conftest import Launch
from tests.integration.agent.fake_engine import FakeEngine, Script
from tests.integration.agent.fake_gateway import WORKER_KEY, FakeGateway, Peer, read_answer, until

BODY = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}
SLOW = Script(tokens=("x",) * 40, interval_s=0.05)
VECTORS = Path(__file__).parents[2] / "vectors"
ENDLESS = Script(tokens=("x",) * 60, interval_s=1.0)


async def test_the_worker_key_enrols_and_only_the_token_reports(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    peer = await (await launch(COCOON_ENGINE=engine.url, COCOON_WORKER_NAME="left-hand")).peer()
    await until(lambda: gateway.heartbeats)
    assert gateway.bearers[:2] == [f"Bearer {WORKER_KEY}", "Bearer token-1"]
    assert (peer.enrolment.name, peer.enrolment.tee_type, peer.enrolment.capacity) == ("left-hand", "none", 4)
    assert [(model.id, model.context_tokens) for model in peer.enrolment.models] == [("fake", 4096)]
    assert 0 < peer.keyset.not_after - peer.keyset.not_before <= 6 * 3600


async def test_a_refused_token_makes_the_agent_enrol_again_with_the_same_keys(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    await (await launch(COCOON_ENGINE=engine.url)).peer()
    gateway.refuse_tokens = True
    await until(lambda: len(gateway.enrolments) == 2)
    first, second = gateway.enrolments
    assert first.keyset == second.keyset
    seen = len(gateway.heartbeats)
    await until(lambda: len(gateway.heartbeats) > seen)


async def test_a_token_is_renewed_by_itself_and_by_a_new_enrolment_where_that_is_refused(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    gateway.token_s = 1
    await (await launch(COCOON_ENGINE=engine.url)).peer()
    await until(lambda: len(gateway.renewals) >= 2)
    assert set(gateway.renewals) == {"Bearer token-1"}
    assert len(gateway.enrolments) == 1
    gateway.renew_status = 503
    seen = len(gateway.renewals)
    await until(lambda: len(gateway.renewals) >= seen + 2)
    assert len(gateway.enrolments) == 1
    gateway.renew_status = 401
    await until(lambda: len(gateway.enrolments) == 2)


async def test_jobs_go_on_while_the_gateway_restarts_and_the_agent_comes_back_to_it(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    peer = await (await launch(COCOON_ENGINE=engine.url)).peer()
    await gateway.__aexit__()
    assert (await peer.chat(BODY)).status == 200
    async with FakeGateway(port=gateway.port) as again:
        again.refuse_tokens = True
        await until(lambda: again.enrolments and again.heartbeats)
        assert (await again.peer()).digest == peer.digest


async def test_a_gateway_that_refuses_at_first_is_asked_again(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    gateway.enrol_status = 503
    agent = await launch(COCOON_ENGINE=engine.url)
    await until(lambda: len(gateway.bearers) >= 2)
    assert agent.process.returncode is None
    gateway.enrol_status = 200
    await agent.peer()


async def test_a_gateway_of_another_network_is_refused(launch: Launch, engine: FakeEngine) -> None:
    agent = await launch(COCOON_ENGINE=engine.url, COCOON_GLOBAL_ID=-239)
    assert await agent.exited() == 1
    assert "foreign_network" in agent.output


async def test_a_keyset_is_succeeded_before_its_end_and_both_are_served_meanwhile(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    agent = await launch(COCOON_ENGINE=engine.url, COCOON_KEYSET_S=12)
    old = await agent.peer()
    async with old.connected() as connection:
        await until(lambda: len(gateway.enrolments) == 2)
        new = Peer(gateway.enrolments[1])
        assert new.keyset.boot_id == old.keyset.boot_id
        assert {new.keyset.receipt_pk, new.keyset.tls_spki_sha256} & {
            old.keyset.receipt_pk, old.keyset.tls_spki_sha256,
        } == set()  # fmt: skip
        await until(lambda: "keyset_succeeded" in agent.output)
        # `connected` checks that the certificate is the new keyset's.
        assert (await new.chat(BODY)).status == 200
        raw = msgspec.json.encode(BODY)
        connection.send(old.request(raw, old.sealed(old.ticket(raw))))
        assert (await read_answer(connection)).trailer.failure is None

    async def old_ticket_status() -> int:
        return (await new.post(raw, old.sealed(old.ticket(raw)))).status

    end = time.monotonic() + 60
    while await old_ticket_status() != 401:
        assert time.monotonic() < end, "the old keyset outlived its end"
        await asyncio.sleep(0.1)


async def test_sigterm_lets_running_jobs_finish_and_refuses_new_ones(
    launch: Launch, engine: FakeEngine, gateway: FakeGateway
) -> None:
    agent = await launch(COCOON_ENGINE=engine.url)
    peer = await agent.peer()
    engine.script = SLOW
    async with peer.begun(BODY) as job:
        await job.until_frame(hop.FrameKind.DATA)
        agent.terminate()
        await until(lambda: gateway.heartbeats[-1].draining)
        refused = await peer.chat(BODY)
        assert (refused.status, refused.error["code"]) == (503, "worker_draining")
        answer = await job.rest()
    assert answer.trailer.failure is None
    assert answer.text == "x" * 40
    assert await agent.exited() == 0


async def test_a_job_that_outlasts_the_drain_is_broken_off_and_costs_nothing(
    launch: Launch, engine: FakeEngine
) -> None:
    agent = await launch(COCOON_ENGINE=engine.url, COCOON_DRAIN_S=0.3)
    peer = await agent.peer()
    engine.script = ENDLESS
    async with peer.begun(BODY) as job:
        await job.until_frame(hop.FrameKind.DATA)
        agent.terminate()
        answer = await job.rest()
    assert (answer.trailer.failure, answer.trailer.usage) == ("worker_draining", TokenUsage())
    assert b"[DONE]" not in answer.data
    assert await agent.exited() == 0
    assert [seen.ended for seen in engine.requests] == ["aborted"]


async def test_a_second_signal_cuts_the_drain_short(launch: Launch, engine: FakeEngine) -> None:
    agent = await launch(COCOON_ENGINE=engine.url, COCOON_DRAIN_S=60)
    peer = await agent.peer()
    engine.script = ENDLESS
    async with peer.begun(BODY) as job:
        await job.until_frame(hop.FrameKind.DATA)
        agent.terminate()
        await until(lambda: agent.gateway.heartbeats[-1].draining)
        agent.terminate()
        assert (await job.rest()).trailer.failure == "worker_draining"
    assert await agent.exited() == 0


async def test_a_job_may_not_run_for_ever(launch: Launch, engine: FakeEngine) -> None:
    peer = await (await launch(COCOON_ENGINE=engine.url, COCOON_JOB_S_MAX=1)).peer()
    engine.script = Script(prefill_s=30)
    answer = await peer.chat(BODY)
    assert (answer.status, answer.error["code"]) == (504, "job_timeout")
    engine.script = ENDLESS
    assert (await peer.chat(BODY)).trailer.failure == "job_timeout"
    await until(lambda: [seen.ended for seen in engine.requests] == ["aborted"] * 2)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"COCOON_WORKER_CAPACITY": "many"}, "COCOON_WORKER_CAPACITY"),
        ({"COCOON_WORKER_KEY": "sk-wrong-kind"}, "COCOON_WORKER_KEY"),
        ({"COCOON_GATEWAY_URL": "ftp://x"}, "COCOON_GATEWAY_URL"),
        ({"COCOON_WORKER_KEY": "", "COCOON_WORKER_KEY_FILE": "/nowhere"}, "COCOON_WORKER_KEY_FILE"),
        ({"COCOON_WORKER_MANIFEST": "/nowhere"}, "COCOON_WORKER_MANIFEST"),
        ({"COCOON_WORKER_MANIFEST": str(VECTORS / "ticket.json")}, "COCOON_WORKER_MANIFEST"),
        ({"COCOON_ENGINE": "vllm"}, "COCOON_ENGINE"),
        ({"COCOON_ENGINE": "xllamacpp", "COCOON_ENGINE_MODEL_PATH": "/nowhere.gguf"}, "/nowhere.gguf"),
        ({"COCOON_WORKER_LISTEN": "127.0.0.1:1", "COCOON_ENGINE": "http://127.0.0.1:9"}, "127.0.0.1:1"),
    ],
)
async def test_a_malformed_setting_stops_start_up_with_its_name(
    launch: Launch, variables: dict[str, str], message: str
) -> None:
    if message == "127.0.0.1:1" and os.geteuid() == 0:
        variables = {**variables, "COCOON_WORKER_LISTEN": "192.0.2.1:1"}
        message = "192.0.2.1:1"
    agent = await launch(**variables)
    assert await agent.exited() == 1
    assert message in agent.output
    assert "Traceback" not in agent.output
    assert "sk-wrong-kind" not in agent.output


async def test_one_trace_runs_from_the_gateway_through_the_agent_to_the_engine(
    launch: Launch, engine: FakeEngine
) -> None:
    exported: list[bytes] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.split("content-length: ")[1].split("\r\n")[0])
        assert head.startswith("post /v1/traces ")
        exported.append(await reader.readexactly(size))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(collect, "127.0.0.1", 0) as collector:
        port = collector.sockets[0].getsockname()[1]
        endpoint = f"http://127.0.0.1:{port}"
        peer = await (await launch(COCOON_ENGINE=engine.url, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)).peer()
        await peer.chat(BODY, {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"})
        await until(lambda: exported)
    spans = {span.name: span for span in _spans(exported)}
    agent, call = spans["agent job"], spans["engine"]
    assert (agent.trace_id.hex(), agent.parent_span_id.hex()) == ("a" * 32, "b" * 16)
    assert call.parent_span_id == agent.span_id
    assert engine.requests[0].headers["traceparent"] == f"00-{'a' * 32}-{call.span_id.hex()}-01"
    attributes = {pair.key: pair.value for pair in agent.attributes}
    assert attributes["gen_ai.usage.output_tokens"].int_value == 5
    assert not any(b"Hello from" in raw for raw in exported)


def _spans(exported: list[bytes]) -> list[Any]:
    requests = [ExportTraceServiceRequest.FromString(raw) for raw in exported]
    return [s for request in requests for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
