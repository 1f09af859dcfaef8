"""The agent with its embedded engine and a real model, as `make dev` runs it. Never asserts what the model says."""

import asyncio
import base64
import json
import os
import shutil
import signal
import time
from array import array
from pathlib import Path
from typing import Any

import pytest

from cocoon import canonical, hop
from cocoon.endpoints import COMPLETIONS, EMBEDDINGS, Endpoint
from cocoon.manifest import manifest_digest
from cocoon.receipt import ReceiptBody
from tests.integration.agent.conftest import AgentProcess, Launch
from tests.integration.agent.fake_gateway import Answer, Peer, until
from workers.agent.engines.xllamacpp import bundled_model
from workers.agent.weights import describe

pytest.importorskip("xllamacpp")

MODEL = "smollm2"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Count to fifty."}], "seed": 1}
LONG = {**CHAT, "messages": [{"role": "user", "content": "word " * 3000}]}
FREED_S = 15.0
"""A prompt that ran on would keep the engine for twenty seconds on an idle machine; a busy one slows both alike."""
ENGINE = {
    "COCOON_ENGINE": "xllamacpp", "COCOON_SERVED_MODEL": MODEL, "COCOON_ENGINE_THREADS": "1",
    "COCOON_WORKER_CAPACITY": "2",
}  # fmt: skip


def _engine_pids(agent_pid: int) -> list[int]:
    """Processes whose parent is the agent."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == agent_pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def _start(launch: Launch, **variables: str) -> tuple[AgentProcess, Peer]:
    agent = await launch(**{**ENGINE, **variables})
    return agent, await agent.peer()


async def test_a_real_model_answers_both_ways_and_hides_what_was_injected(launch: Launch) -> None:
    agent, peer = await _start(launch)
    # llama.cpp lets n_predict win over max_tokens: the ticket must win over both.
    body = {**CHAT, "stream": True, "max_tokens": 8, "n_predict": 40, "stream_options": {"include_usage": True}}
    answer = await peer.chat(body, max_completion=8)
    assert answer.payloads[-1] == b"[DONE]"
    assert 1 <= answer.trailer.usage.completion <= 8
    assert all("timings" not in chunk and "prompt_progress" not in chunk for chunk in answer.chunks)
    assert answer.chunks[-1]["usage"]["completion_tokens"] == answer.trailer.usage.completion
    assert len([chunk for chunk in answer.chunks if chunk["choices"] == []]) == 1
    assert answer.text

    unary = await peer.chat({**CHAT, "n": 2, "max_tokens": 4, "logprobs": True, "top_logprobs": 1})
    document = unary.data
    parsed = json.loads(document)
    assert [choice["index"] for choice in parsed["choices"]] == [0, 1]
    assert all(len(choice["logprobs"]["content"]) == 4 for choice in parsed["choices"])
    # llama.cpp itself reports one choice of two here.
    assert parsed["usage"]["completion_tokens"] == unary.trailer.usage.completion == 8
    assert "timings" not in parsed

    too_long = await peer.chat({**CHAT, "messages": [{"role": "user", "content": "word " * 9000}]})
    assert (too_long.status, too_long.error["code"]) == (400, "context_length_exceeded")
    children = _engine_pids(agent.pid)
    agent.terminate()
    assert await agent.exited() == 0
    await until(lambda: not any(_alive(pid) for pid in children))


async def test_only_the_manifests_weights_are_served_and_receipts_name_it(launch: Launch, tmp_path: Path) -> None:
    bundled = Path(bundled_model())
    model = tmp_path / bundled.name
    shutil.copy(bundled, model)
    raw = describe(model, source=None, engine_image=None, arguments=()).encode()
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(raw)
    told = {"COCOON_WORKER_MANIFEST": str(manifest), "COCOON_ENGINE_MODEL_PATH": str(model)}
    agent, peer = await _start(launch, **told)
    assert peer.enrolment.manifest == raw
    assert peer.keyset.model_manifest_sha256 == manifest_digest(raw)
    answer = await peer.chat({**CHAT, "max_tokens": 1})
    assert answer.status == 200
    body = canonical.decode(answer.trailer.receipt_body, ReceiptBody)
    assert body.model_manifest_sha256 == manifest_digest(raw)
    # One bit of the weights changes while it runs. An engine that has to start again does not.
    with model.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    (engine,) = _engine_pids(agent.pid)
    os.kill(engine, signal.SIGKILL)
    assert await agent.exited() != 0
    assert "has another content than the manifest says" in agent.output
    # Nor does a new agent start one, let alone enrol.
    again = await launch(**{**ENGINE, **told})
    assert await again.exited() != 0
    assert "weights_mismatch" in again.output
    assert len(agent.gateway.enrolments) == 1


async def test_a_real_model_completes_texts_and_embeds_them_beside_chat(launch: Launch) -> None:
    _, peer = await _start(launch, COCOON_SERVED_ENDPOINTS="chat,completions,embeddings")

    async def ask(endpoint: Endpoint, **body: Any) -> Answer:
        raw = json.dumps({"model": MODEL, **body}).encode()
        return await peer.post(raw, peer.sealed(peer.ticket(raw)), path=endpoint.job_path)

    alone = [(await ask(COMPLETIONS, prompt=text, max_tokens=1)).trailer.usage.prompt for text in ("The sky is", "One")]
    body: dict[str, Any] = {"prompt": ["The sky is", "One"], "n": 2, "max_tokens": 3, "logprobs": 1, "seed": 1}
    stream = await ask(COMPLETIONS, **body, stream=True)
    assert stream.payloads[-1] == b"[DONE]"
    assert {choice["index"] for chunk in stream.chunks for choice in chunk["choices"]} == {0, 1, 2, 3}
    assert not {"usage", "timings", "prompt_progress"} & {name for chunk in stream.chunks for name in chunk}
    unary = json.loads((await ask(COMPLETIONS, **body)).data)
    assert [len(choice["logprobs"]["content"]) for choice in unary["choices"]] == [3, 3, 3, 3]
    assert "timings" not in unary
    # Each prompt counts once, each of the completions by itself.
    for usage in (stream.trailer.usage, (await ask(COMPLETIONS, **body)).trailer.usage):
        assert (usage.prompt, usage.completion) == (sum(alone), 12)

    long = "word " * 100
    floats = json.loads((await ask(EMBEDDINGS, input=["The sky is", long], encoding_format="float")).data)
    assert [one["index"] for one in floats["data"]] == [0, 1]
    assert len(floats["data"][0]["embedding"]) == 576
    assert floats["usage"]["prompt_tokens"] > 100
    packed = await ask(EMBEDDINGS, input="The sky is", encoding_format="base64")
    vector = array("f", base64.b64decode(json.loads(packed.data)["data"][0]["embedding"]))
    assert list(vector) == pytest.approx(floats["data"][0]["embedding"], abs=1e-3)
    assert packed.trailer.usage.prompt == alone[0]
    assert (await peer.chat({**CHAT, "max_tokens": 2})).trailer.usage.completion == 2


async def test_leaving_frees_the_engine_in_decode_and_prefill(launch: Launch) -> None:
    # One slot: whatever still ran would keep the next job waiting, for twenty seconds in the case of the prefill.
    _, peer = await _start(launch, COCOON_WORKER_CAPACITY="1")
    for body, frame in ((CHAT, hop.FrameKind.DATA), (LONG, hop.FrameKind.PROGRESS)):
        async with peer.begun(
            {**body, "stream": True, "max_tokens": 900, "ignore_eos": True}, max_completion=900
        ) as job:
            await job.until_frame(frame)
        await peer.until_idle(FREED_S)
        began = time.monotonic()
        quick = await peer.chat({**CHAT, "stream": True, "max_tokens": 1})
        assert quick.status == 200
        assert time.monotonic() - began < FREED_S, frame
    # Another prompt than the stream's: that one may be in the prefix cache.
    other = {**CHAT, "messages": [{"role": "user", "content": "other " * 3000}], "max_tokens": 900}
    async with peer.begun(other, max_completion=900):
        # Before anything has come back: an engine that looks at its client only then would prefill to the end.
        async with asyncio.timeout(60):
            while not (await peer.health())["running"]:
                pass
    await peer.until_idle(FREED_S)
    began = time.monotonic()
    assert (await peer.chat({**CHAT, "stream": True, "max_tokens": 1})).status == 200
    assert time.monotonic() - began < FREED_S


async def test_the_engine_comes_back_after_a_crash_and_dies_with_the_agent(launch: Launch) -> None:
    agent, peer = await _start(launch)
    (engine,) = _engine_pids(agent.pid)
    os.kill(engine, signal.SIGKILL)
    await until(lambda: not _alive(engine))

    async def status() -> int:
        return (await peer.chat({**CHAT, "max_tokens": 1})).status

    end = time.monotonic() + 60
    while await status() != 200:
        assert time.monotonic() < end, agent.output
        await asyncio.sleep(0.1)
    (engine,) = _engine_pids(agent.pid)
    agent.process.kill()
    await agent.exited()
    await until(lambda: not _alive(engine))
