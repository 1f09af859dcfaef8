"""Workers that fail: before the first byte another one answers, after it the answer ends as broken and is free."""

import asyncio
import hashlib
import json
import signal

import httpx
import msgspec
import pytest

from cocoon.enrolment import Keyset, keyset_digest
from tests.fixtures_gateway import Stack, chat, content_of, events_of
from tests.scripted_engine import ScriptedEngine, until

PATH = "/v1/chat/completions"


@pytest.fixture
async def pair(stack: Stack) -> tuple[Stack, ScriptedEngine]:
    """Two agents, each before an engine of its own."""
    second = await stack._stack.enter_async_context(ScriptedEngine())
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    await stack.start_worker("worker-2", second)
    return stack, second


@pytest.mark.parametrize("stream", [True, False])
async def test_a_worker_that_dies_before_the_first_byte_is_replaced_and_charged_once(
    pair: tuple[Stack, ScriptedEngine], stream: bool
) -> None:
    stack, _ = pair
    stack.engine.refuse_with = 500
    async with stack.client() as client:
        for _ in range(6):
            answer = await client.post(PATH, json=chat(stream=stream))
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-cocoon-worker"] == "worker-2"
    assert len(await stack.usage(6)) == 6
    assert {row["charge_nano"] for row in await stack.usage(6)} == {18}
    await stack.check_books()


async def test_a_unary_answer_broken_half_way_is_given_by_another_worker(pair: tuple[Stack, ScriptedEngine]) -> None:
    stack, second = pair
    async with stack.client() as client:
        request = asyncio.create_task(client.post(PATH, json=chat(script={"tokens": 40, "interval_s": 0.05})))
        await until(lambda: any(s.sent_tokens > 2 for s in [*stack.engine.requests, *second.requests]))
        victim, other = (stack.engine, second) if stack.engine.requests else (second, stack.engine)
        await victim.die()
        answer = await request
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"].startswith("t0 t1 ")
    assert len(other.requests) == 1
    rows = await stack.usage()
    assert [(row["outcome"], row["attempt"]) for row in rows] == [("completed", 1)]
    await stack.check_books()


async def test_a_worker_killed_mid_stream_yields_an_error_event_no_done_and_no_charge(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    worker = await stack.start_worker("worker-1", stack.engine)
    async with stack.client() as client:
        body = json.dumps(chat(stream=True, script={"tokens": 400, "interval_s": 0.02})).encode()
        text = ""
        async with client.stream("POST", PATH, content=body) as answer:
            async for part in answer.aiter_text():
                text += part
                if "t3 " in text and worker.poll() is None:
                    worker.send_signal(signal.SIGKILL)
                    worker.wait()
    events = events_of(text)
    assert "[DONE]" not in events
    assert events[-1]["error"]["code"] == "worker_failed"
    assert content_of(events[:-1]).startswith("t0 t1 t2 t3 ")
    [row] = await stack.usage()
    assert (row["outcome"], row["charge_nano"], row["share_nano"]) == ("broken", 0, 0)
    await stack.check_books()
    async with stack.client() as client:
        balance = (await client.get("/v1/account/balance")).json()
    assert balance["spent_nano"] == 0


async def test_an_engine_dying_mid_stream_behind_a_living_agent_is_the_same(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    async with stack.client() as client:
        answer = await client.post(
            PATH, json=chat(stream=True, script={"tokens": 10, "die_after": 4, "interval_s": 0.25})
        )
    events = events_of(answer.text)
    assert "[DONE]" not in events
    assert events[-1]["error"]["code"] == "worker_failed"
    [row] = await stack.usage()
    assert (row["outcome"], row["charge_nano"]) == ("broken", 0)
    await stack.check_books()


async def test_when_all_fail_the_client_hears_502_once_and_pays_nothing(pair: tuple[Stack, ScriptedEngine]) -> None:
    stack, second = pair
    stack.engine.refuse_with = second.refuse_with = 500
    async with stack.client() as client:
        answer = await client.post(PATH, json=chat())
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "worker_failed"
    # One attempt at each, never two at the same.
    assert [len(stack.engine.requests), len(second.requests)] == [1, 1]
    assert await stack.rows("SELECT 1 FROM usage") == []
    await stack.check_books()


async def test_a_worker_with_another_tls_key_is_not_spoken_to(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    # An impostor at the same address: what is enrolled no longer matches the key that answers there.
    [row] = await stack.rows("SELECT keyset FROM workers")
    impostor = hashlib.sha256(b"another key").digest()
    raw = msgspec.structs.replace(Keyset.decode(row["keyset"]), tls_spki_sha256=impostor).encode()
    await stack.rows("UPDATE workers SET keyset = $1, keyset_digest = $2 RETURNING 1", raw, keyset_digest(raw))

    async def refused() -> httpx.Response:
        async with stack.client() as client:
            return await client.post(PATH, json=chat())

    answer = await stack.until_true(refused, lambda answer: answer.status_code == 502)
    assert answer.json()["error"]["code"] == "worker_failed"
    before = len(stack.engine.requests)
    assert (await refused()).status_code in {502, 503}
    assert len(stack.engine.requests) == before
    assert "worker_identity_changed" in stack.log()
    await stack.check_books()
