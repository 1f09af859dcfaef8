"""Completions and embeddings have what chat has: bytes, usage, cost, receipts, keys of idempotency, limits, ends."""

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from cocoon import endpoints
from cocoon.receipt import ReceiptHead
from cocoon.sealed import CONTENT_TYPE
from tests.fixtures_gateway import MODEL, Stack, events_of
from tests.scripted_engine import until
from tests.sealed_client import SealedCall

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
# 10 prompt tokens of which 4 cached, 5 completion tokens, at the fixture's prices; embeddings have no cache.
COST_NANO = (6 * 1_000_000 + 4 * 500_000 + 5 * 2_000_000) // 10**6
EMBEDDING_NANO = 10


def text(script: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": json.dumps(script) if script is not None else "hello", **members}


def said(events: list[Any]) -> str:
    return "".join(choice["text"] for event in events if event != "[DONE]" for choice in event["choices"])


@pytest.fixture(params=["upstream", "agent"])
async def served(stack: Stack, request: pytest.FixtureRequest) -> Stack:
    await start(stack, agent=request.param == "agent")
    return stack


@pytest.fixture
async def agent(stack: Stack) -> Stack:
    await start(stack, agent=True)
    return stack


async def start(stack: Stack, *, agent: bool, **environment: Any) -> None:
    stack.endpoints = ["chat", "completions", "embeddings"]
    await stack.start_gateway(upstream=not agent, **environment)
    if agent:
        await stack.start_worker("worker-1", stack.engine)


async def test_both_answer_and_cost_what_they_used(served: Stack) -> None:
    async with served.client() as client:
        unary = await client.post(COMPLETIONS, json=text(max_tokens=9, echo=False, suffix="!", logprobs=1))
        stream = await client.post(COMPLETIONS, json=text(stream=True, stream_options={"include_usage": True}))
        plain = await client.post(COMPLETIONS, json=text(stream=True))
        vectors = await client.post(EMBEDDINGS, json={"model": MODEL, "input": ["a", "b"], "dimensions": 2})
        models = (await client.get("/v1/models")).json()["data"]
    assert [model["endpoints"] for model in models if model["id"] == MODEL] == [["chat", "completions", "embeddings"]]
    document = unary.json()
    assert document["choices"][0]["text"] == "t0 t1 t2 t3 t4 "
    assert (document["usage"]["cost_nano"], document["usage"]["total_tokens"]) == (COST_NANO, 15)
    sent = json.loads(served.engine.requests[0].body)
    assert (sent["max_tokens"], sent["echo"], sent["suffix"], sent["logprobs"]) == (9, False, "!", 1)
    assert json.loads(served.engine.requests[1].body)["max_tokens"] == 16
    events = events_of(stream.text)
    assert (said(events), events[-1], events[-2]["usage"]["cost_nano"]) == ("t0 t1 t2 t3 t4 ", "[DONE]", COST_NANO)
    events = events_of(plain.text)
    assert (said(events), events[-1]) == ("t0 t1 t2 t3 t4 ", "[DONE]")
    assert all(not event.get("usage") and event["choices"] for event in events[:-1])
    document = vectors.json()
    assert [one["embedding"] for one in document["data"]] == [[0.5, 0.25]] * 2
    assert (document["usage"]["prompt_tokens"], document["usage"]["cost_nano"]) == (10, EMBEDDING_NANO)
    rows = await served.usage(4)
    assert sorted(row["charge_nano"] for row in rows) == [EMBEDDING_NANO, COST_NANO, COST_NANO, COST_NANO]
    assert {row["completion_tokens"] for row in rows} == {0, 5}
    for answer in (unary, vectors):
        [row] = [row for row in rows if str(row["job_id"]) == answer.headers["x-request-id"]]
        if row["receipt_head"] is not None:
            assert answer.headers["x-cocoon-receipt"] == answer.headers["x-request-id"]
            assert ReceiptHead.decode(row["receipt_head"]).usage.completion == row["completion_tokens"]
    await served.check_books()


async def test_openais_own_client_is_served(agent: Stack) -> None:
    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{agent.port}/v1", api_key=agent.api_key, max_retries=0, timeout=30
    ) as client:
        whole = await client.completions.create(model=MODEL, prompt=["hello", "you"], max_tokens=3)
        stream = await client.completions.create(model=MODEL, prompt=[1, 2, 3], stream=True)
        pieces = [chunk async for chunk in stream]
        # Its default is base64, which this engine does not speak: what comes as floats is passed on as floats.
        vectors = await client.embeddings.create(model=MODEL, input="hello", encoding_format="float")
        assert (whole.object, whole.choices[0].finish_reason) == ("text_completion", "stop")
        assert whole.usage is not None
        assert "".join(piece.choices[0].text for piece in pieces) == "t0 t1 t2 t3 t4 "
        assert (vectors.data[0].embedding, vectors.usage.prompt_tokens) == ([0.5, 0.25], 10)
        with pytest.raises(BadRequestError) as refused:
            await client.embeddings.create(model=MODEL, input="hello", extra_body={"stream": True})
        assert (refused.value.param, refused.value.code) == ("stream", "invalid_value")
        with pytest.raises(BadRequestError) as refused:
            await client.completions.create(model=MODEL, prompt=[], max_tokens=3)
        assert (refused.value.param, refused.value.code) == ("prompt", "empty_array")
        with pytest.raises(NotFoundError):
            await client.embeddings.create(model="another", input="hello")


async def test_a_repeated_key_replays_each_endpoint_and_belongs_to_one(agent: Stack) -> None:
    vectors = {"model": MODEL, "input": "hello"}
    async with agent.client() as client:
        for path, body in ((COMPLETIONS, text()), (COMPLETIONS, text(stream=True)), (EMBEDDINGS, vectors)):
            headers = {"idempotency-key": f"{path}-{len(body)}"}
            first = await client.post(path, json=body, headers=headers)
            again = await client.post(path, json=body, headers=headers)
            assert (first.status_code, again.status_code, again.content) == (200, 200, first.content)
            assert again.headers["x-cocoon-replayed"] == first.headers["x-request-id"]
        other = await client.post(EMBEDDINGS, json=text(), headers={"idempotency-key": f"{COMPLETIONS}-2"})
        assert other.status_code == 400
        both = {**vectors, "prompt": "hello"}
        assert (await client.post(COMPLETIONS, json=both, headers={"idempotency-key": "k"})).status_code == 200
        conflict = await client.post(EMBEDDINGS, json=both, headers={"idempotency-key": "k"})
        assert conflict.status_code == 409
    assert len(await agent.usage(4)) == 4
    await agent.check_books()


async def test_a_client_that_leaves_a_completion_pays_for_what_came_and_one_that_breaks_costs_nothing(
    agent: Stack,
) -> None:
    async with agent.client() as client:
        long = text({"tokens": 500, "interval_s": 0.02}, stream=True, max_tokens=500)
        async with client.stream("POST", COMPLETIONS, json=long) as answer:
            async for line in answer.aiter_lines():
                if "t3 " in line:
                    break
        await until(lambda: agent.engine.requests[-1].ended == "aborted")
        [row] = await agent.usage()
        assert row["outcome"] == "client_gone"
        assert 4 <= row["completion_tokens"] <= agent.engine.requests[-1].sent_tokens
        broken = await client.post(
            COMPLETIONS, json=text({"tokens": 9, "die_after": 3, "interval_s": 0.25}, stream=True)
        )
        events = events_of(broken.text)
        assert "[DONE]" not in events
        assert events[-1]["error"]["code"] == "worker_failed"
        dead = await client.post(EMBEDDINGS, json={"model": MODEL, "input": json.dumps({"die_after": 0})})
        assert (dead.status_code, dead.json()["error"]["code"]) == (502, "worker_failed")
    rows = await agent.usage(3)
    assert [row["charge_nano"] for row in rows if row["outcome"] != "client_gone"] == [0, 0]
    await agent.check_books()


async def test_both_are_relayed_sealed_and_charged(agent: Stack) -> None:
    keysets = [row["keyset"] for row in await agent.rows("SELECT keyset FROM workers")]
    vectors = {"model": MODEL, "input": ["hello", "you"]}
    async with agent.client() as client:
        for endpoint, body in ((endpoints.COMPLETIONS, text(max_tokens=9)), (endpoints.EMBEDDINGS, vectors)):
            call = SealedCall(body, keysets, agent.api_key, endpoint)
            answer = await client.post(endpoint.path, content=call.sent.raw, headers={"content-type": CONTENT_TYPE})
            assert answer.status_code == 200, answer.text
            assert b"t0 t1" not in answer.content
            opened = call.opened(answer.content)
            assert opened.receipt().receipt_id == answer.headers["x-cocoon-receipt"]
            assert answer.headers["x-cocoon-cost-nano"] in {str(COST_NANO), str(EMBEDDING_NANO)}
            # The clear header does not say which endpoint it is for: the worker does not take it at another.
            again = SealedCall(body, keysets, agent.api_key, endpoint)
            wrong = endpoints.CHAT.path
            answer = await client.post(wrong, content=again.sent.raw, headers={"content-type": CONTENT_TYPE})
            assert answer.status_code == 400
    assert [row["charge_nano"] for row in await agent.usage(3) if row["charge_nano"]] == [COST_NANO, EMBEDDING_NANO]
    await agent.check_books()


async def test_a_hold_covers_every_prompt_and_every_answer_and_more_is_not_begun(agent: Stack) -> None:
    # At the fixture's 2 nano a completion token, 8 prompts times 4 answers of 1000 tokens are 64,000 nano.
    key = await agent.new_key(credit_nano=60_000)
    await agent.until_known(key)
    async with agent.client(key) as client:
        body = text(prompt=["a"] * 8, n=4, max_tokens=1000)
        assert (await client.post(COMPLETIONS, json=body)).status_code == 402
        assert (await client.post(COMPLETIONS, json={**body, "n": 3})).status_code == 200
    assert len(agent.engine.requests) == 1


async def test_a_model_is_not_asked_for_what_its_workers_do_not_serve(stack: Stack) -> None:
    stack.endpoints = ["completions"]
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    async with stack.client() as client:
        for path, body in (
            (EMBEDDINGS, {"model": MODEL, "input": "hello"}),
            ("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}),
        ):
            answer = await client.post(path, json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (404, "model_not_found")
            assert "only for completions" in error["message"]
        stack.endpoints = ["chat", "embeddings"]
        await stack.start_worker("worker-2", stack.engine)
        for path, body, name in (
            (EMBEDDINGS, {"input": "hello"}, "worker-2"),
            (COMPLETIONS, {"prompt": "x"}, "worker-1"),
        ):
            answers = await asyncio.gather(*(client.post(path, json={"model": MODEL, **body}) for _ in range(6)))
            assert {answer.headers["x-cocoon-worker"] for answer in answers} == {name}
    await stack.check_books()
