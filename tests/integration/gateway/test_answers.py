"""What goes through right: bytes, streams, usage, cost, headers, through a plain upstream and through real agents."""

import json
from decimal import Decimal
from typing import Any

import pytest

from cocoon.receipt import ReceiptHead, verify
from cocoon.ticket import plain_request_digest
from tests.fixtures_gateway import MODEL, Stack, chat, content_of, events_of
from tests.scripted_engine import ScriptedEngine

PATH = "/v1/chat/completions"
# 10 prompt tokens of which 4 cached, 5 completion tokens, at the fixture's prices.
COST_NANO = (6 * 1_000_000 + 4 * 500_000 + 5 * 2_000_000) // 10**6


@pytest.fixture(params=["upstream", "agent"])
async def served(stack: Stack, request: pytest.FixtureRequest) -> Stack:
    """The same engine, as a plain upstream and behind an agent: clients must not notice a difference."""
    await stack.start_gateway(upstream=request.param == "upstream")
    if request.param == "agent":
        await stack.start_worker("worker-1", stack.engine)
    return stack


async def test_a_unary_answer_has_usage_with_its_exact_cost(served: Stack) -> None:
    async with served.client() as client:
        answer = await client.post(PATH, json=chat(max_tokens=50))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "t0 t1 t2 t3 t4 "}
    assert body["usage"]["total_tokens"] == 15
    assert body["usage"]["cost_nano"] == COST_NANO
    assert Decimal(body["usage"]["cost"]) == Decimal(COST_NANO) / 10**9
    [row] = await served.usage()
    assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (10, 4, 5)
    assert (row["charge_nano"], row["outcome"]) == (COST_NANO, "completed")
    assert str(row["job_id"]) == answer.headers["x-request-id"]
    await served.check_books()


async def test_a_stream_without_include_usage_shows_none_and_is_charged_all_the_same(served: Stack) -> None:
    async with served.client() as client:
        answer = await client.post(PATH, json=chat(stream=True))
    events = events_of(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert content_of(events) == "t0 t1 t2 t3 t4 "
    assert events[-1] == "[DONE]"
    assert all(not event.get("usage") for event in events[:-1])
    assert all(event["choices"] for event in events[:-1])
    [row] = await served.usage()
    assert row["charge_nano"] == COST_NANO
    await served.check_books()


async def test_a_stream_with_include_usage_ends_with_usage_and_cost(served: Stack) -> None:
    async with served.client() as client:
        answer = await client.post(PATH, json=chat(stream=True, stream_options={"include_usage": True}))
    events = events_of(answer.text)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["cost_nano"] == COST_NANO
    await served.check_books()


async def test_events_split_across_reads_arrive_whole(served: Stack) -> None:
    script = {"tokens": 20, "split": True, "interval_s": 0.002}
    async with served.client() as client:
        answer = await client.post(PATH, json=chat(stream=True, script=script))
    assert content_of(events_of(answer.text)) == "".join(f"t{i} " for i in range(20))


async def test_unknown_fields_reach_the_engine_and_credentials_do_not(served: Stack) -> None:
    body = chat(user="u-1", made_up={"deep": [1, 2.50, "é"]}, tools=[{"type": "function", "function": {"name": "f"}}])
    async with served.client() as client:
        assert (await client.post(PATH, json=body, headers={"x-custom": "mine"})).status_code == 200
    [seen] = served.engine.requests
    forwarded = json.loads(seen.body)
    for name in ("user", "made_up", "tools", "messages"):
        assert forwarded[name] == body[name]
    assert served.api_key not in json.dumps(seen.headers)
    assert "authorization" not in seen.headers
    assert "x-custom" not in seen.headers


async def test_a_maximum_is_enforced_upstream_when_the_client_gives_none(served: Stack) -> None:
    async with served.client() as client:
        assert (await client.post(PATH, json=chat())).status_code == 200
    [seen] = served.engine.requests
    assert json.loads(seen.body)["max_tokens"] == 1024


async def test_the_engines_own_refusal_reaches_the_client_in_openai_shape(served: Stack) -> None:
    script = {"status": 400, "body": {"object": "error", "message": "bad temperature", "code": 400}}
    async with served.client() as client:
        answer = await client.post(PATH, json=chat(script=script))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "bad temperature"
    assert await served.rows("SELECT 1 FROM usage") == []
    await served.check_books()


async def test_a_busy_engine_is_503_with_its_own_retry_after(served: Stack) -> None:
    async with served.client() as client:
        answer = await client.post(PATH, json=chat(script={"status": 429, "retry_after": 7}))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "workers_busy"
    assert int(answer.headers["retry-after"]) in {7, 8}
    await served.check_books()


async def test_an_agents_answer_carries_a_receipt_that_verifies(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    body = json.dumps(chat()).encode()
    async with stack.client() as client:
        answer = await client.post(PATH, content=body)
    assert answer.headers["x-cocoon-worker"] == "worker-1"
    assert answer.headers["x-cocoon-receipt"] == answer.headers["x-request-id"]
    [row] = await stack.usage()
    [worker] = await stack.rows("SELECT worker_id, keyset FROM workers")
    keyset = json.loads(worker["keyset"])
    head = ReceiptHead.decode(row["receipt_head"])
    from cocoon.canonical import from_base64url

    verify(from_base64url(keyset["receipt_pk"]), row["receipt_head"], row["receipt_signature"])
    assert (head.usage.prompt, head.usage.cached, head.usage.completion) == (10, 4, 5)
    assert row["worker_id"] == worker["worker_id"]
    assert row["share_nano"] == COST_NANO * 9 // 10
    assert len(plain_request_digest(body)) == 32


async def test_models_are_listed_with_prices_and_live_workers(gateway: Stack) -> None:
    async with gateway.client() as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get(f"/v1/models/{MODEL}")).json()
    assert listed["object"] == "list"
    assert listed["data"] == [one]
    assert (one["id"], one["object"], one["workers"]) == (MODEL, "model", 1)
    assert one["pricing"]["completion_nano_per_mtok"] == 2_000_000


async def test_balance_and_usage_agree_with_what_was_charged(gateway: Stack) -> None:
    async with gateway.client() as client:
        before = (await client.get("/v1/account/balance")).json()
        for _ in range(3):
            assert (await client.post(PATH, json=chat())).status_code == 200
        await gateway.usage(3)
        await gateway.until_settled()
        after = (await client.get("/v1/account/balance")).json()
        usage: dict[str, Any] = (await client.get("/v1/account/usage")).json()
    assert before["available_nano"] - after["available_nano"] == 3 * COST_NANO
    assert after["held_nano"] == 0
    [day] = usage["data"]
    assert (day["requests"], day["charge_nano"], day["model"]) == (3, 3 * COST_NANO, MODEL)
    await gateway.check_books()


async def test_keep_alive_comments_come_before_a_late_first_token(stack: Stack) -> None:
    await stack.start_gateway(COCOON_KEEP_ALIVE_S="0.1")
    async with stack.client() as client:
        answer = await client.post(PATH, json=chat(stream=True, script={"first_s": 0.5}))
    assert answer.text.count(": keep-alive\n\n") >= 2
    assert answer.text.startswith(": keep-alive\n\n")
    assert content_of(events_of(answer.text)) == "t0 t1 t2 t3 t4 "


async def test_a_failure_after_a_keep_alive_is_an_error_event_without_done(stack: Stack) -> None:
    await stack.start_gateway(COCOON_KEEP_ALIVE_S="0.1")
    async with stack.client() as client:
        answer = await client.post(PATH, json=chat(stream=True, script={"first_s": 0.5, "die_after": 0}))
    assert answer.status_code == 200
    [event] = events_of(answer.text)
    assert event["error"]["code"] == "worker_failed"
    await stack.check_books()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_does_not_come_is_504(stack: Stack, stream: bool) -> None:
    # A plain upstream says nothing of a unary answer before it is whole, so that only the whole can be limited.
    limits: dict[str, Any] = {"COCOON_FIRST_BYTE_S" if stream else "COCOON_REQUEST_S_MAX": "0.5"}
    await stack.start_gateway(**limits)
    async with stack.client() as client:
        answer = await client.post(PATH, json=chat(stream, script={"first_s": 10}))
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "worker_timeout"
    await stack.engine.until(lambda: stack.engine.requests[0].ended == "aborted")
    await stack.check_books()


@pytest.mark.parametrize("behind", ["upstream", "agent"])
async def test_a_unary_answer_may_take_longer_than_a_first_token(stack: Stack, behind: str) -> None:
    await stack.start_gateway(upstream=behind == "upstream", COCOON_FIRST_BYTE_S="0.5")
    if behind == "agent":
        await stack.start_worker("worker-1", stack.engine)
    async with stack.client() as client:
        answer = await client.post(PATH, json=chat(script={"tokens": 15, "interval_s": 0.1}))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].endswith("t14 ")
    await stack.check_books()


async def test_a_lying_engine_is_charged_at_most_what_was_authorised(stack: Stack) -> None:
    usage = {"prompt_tokens": 2**31, "completion_tokens": 2**31, "total_tokens": 2**32}
    async with ScriptedEngine(usage=usage) as liar:
        stack.engine = liar
        await stack.start_gateway()
        async with stack.client() as client:
            assert (await client.post(PATH, json=chat(max_tokens=7))).status_code == 200
        [row] = await stack.usage()
    assert row["completion_tokens"] == 7
    assert row["prompt_tokens"] < 1000
    await stack.check_books()


async def test_readiness_shows_the_journal_and_the_leases(gateway: Stack) -> None:
    async with gateway.client() as client:
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
        answer = await gateway.until_true(
            lambda: client.get("/readyz"), lambda answer: answer.json()["ledger"]["rows_flushed"] == 1
        )
    facts = answer.json()["ledger"]
    assert (facts["rows_waiting"], facts["rows_quarantined"], facts["holds"]) == (0, 0, 0)
    assert facts["flush_ms"] > 0
