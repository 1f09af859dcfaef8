"""`Idempotency-Key` on real gateways: the same bytes again, one charge, whichever process is asked."""

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from cli.dev.address import free_port
from gateway.idempotency import KEY_BYTES_MAX
from gateway.outcomes import OUTCOME_BYTES_MAX
from tests.fixtures_gateway import MODEL, Stack, chat, events_of
from tests.integration.gateway.test_disconnects import hang_up
from tests.scripted_engine import until

PATH = "/v1/chat/completions"


class Pair:
    """Two gateways, each with processes of its own, on the same books."""

    def __init__(self, stack: Stack, ports: list[int]) -> None:
        self.stack = stack
        self.ports = ports

    async def post(self, which: int, body: dict[str, Any], key: str | bytes | None = "k", **more: Any) -> Any:
        headers: Any = {} if key is None else {"idempotency-key": key}
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            return await client.post(
                f"http://127.0.0.1:{self.ports[which]}{PATH}", json=body,
                headers={"authorization": f"Bearer {more.get('api_key', self.stack.api_key)}"} | headers,
            )  # fmt: skip


@pytest.fixture
async def pair(stack: Stack) -> Pair:
    ports: list[int] = []
    for _ in range(2):
        stack.port = free_port()
        ports.append(stack.port)
        await stack.start_gateway()
    return Pair(stack, ports)


async def post(stack: Stack, body: dict[str, Any], key: str | bytes = "k", api_key: str | None = None) -> Any:
    async with stack.client(api_key) as client:
        headers: Any = {"idempotency-key": key}
        return await client.post(PATH, json=body, headers=headers)


@pytest.mark.parametrize("agent", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeated_request_gets_the_same_bytes_and_one_charge(stack: Stack, agent: bool, stream: bool) -> None:
    await stack.start_gateway(upstream=not agent)
    if agent:
        await stack.start_worker("worker-1", stack.engine)
    body = chat(stream=stream, script={"tokens": 9, "interval_s": 0.002})
    first = await post(stack, body)
    second = await post(stack, body)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    for name in ("content-type", "cache-control", "x-cocoon-worker", "x-cocoon-receipt", "x-cocoon-salt"):
        assert second.headers.get(name) == first.headers.get(name), name
    assert second.headers["x-cocoon-replayed"] == first.headers["x-request-id"] != second.headers["x-request-id"]
    assert "x-cocoon-replayed" not in first.headers
    if agent:
        assert second.headers["x-cocoon-receipt"] == first.headers["x-request-id"]
    assert len(stack.engine.requests) == 1
    assert len(await stack.usage()) == 1
    await stack.check_books()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_duplicate_at_another_process_waits_for_the_first(pair: Pair, stream: bool) -> None:
    body = chat(stream=stream, script={"tokens": 20, "interval_s": 0.05})
    first = asyncio.create_task(pair.post(0, body))
    await until(lambda: pair.stack.engine.requests)
    second = asyncio.create_task(pair.post(1, body))
    answers = [await first, await second]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].content == answers[0].content
    assert answers[1].headers["x-cocoon-replayed"] == answers[0].headers["x-request-id"]
    assert len(pair.stack.engine.requests) == 1
    [row] = await pair.stack.usage()
    assert (row["outcome"], row["completion_tokens"]) == ("completed", 20)
    await pair.stack.check_books()


async def test_of_many_duplicates_at_once_one_runs(pair: Pair) -> None:
    body = chat(script={"tokens": 3, "interval_s": 0.02})
    answers = await asyncio.gather(*(pair.post(number % 2, body) for number in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("x-cocoon-replayed" not in answer.headers for answer in answers) == 1
    assert len(pair.stack.engine.requests) == 1
    assert len(await pair.stack.usage()) == 1
    await pair.stack.check_books()


async def test_a_key_with_another_body_is_a_conflict_everywhere(pair: Pair) -> None:
    assert (await pair.post(0, chat())).status_code == 200
    await pair.stack.usage()
    for which in (0, 1):
        refused = await pair.post(which, chat(max_tokens=3))
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "idempotency_conflict"
        assert refused.headers["x-should-retry"] == "false"
    assert len(await pair.stack.rows("SELECT 1 FROM usage")) == 1


async def test_a_key_belongs_to_its_api_key(gateway: Stack) -> None:
    other = await gateway.new_key()
    first = await post(gateway, chat())
    foreign = await post(gateway, chat(), api_key=other)
    assert foreign.status_code == 200
    assert "x-cocoon-replayed" not in foreign.headers
    assert len(gateway.engine.requests) == 2
    # And neither is a conflict for the other.
    assert (await post(gateway, chat(max_tokens=3), api_key=other)).status_code == 409
    assert (await post(gateway, chat())).headers["x-cocoon-replayed"] == first.headers["x-request-id"]


async def test_a_key_that_is_none_is_refused(gateway: Stack) -> None:
    for key in ("", b"\xe9t\xe9", "x" * (KEY_BYTES_MAX + 1)):
        refused = await post(gateway, chat(), key)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_idempotency_key"
    assert gateway.engine.requests == []


async def test_refusals_that_cost_nothing_are_not_remembered(gateway: Stack) -> None:
    poor = await gateway.new_key(credit_nano=0)
    assert (await post(gateway, chat(), api_key=poor)).status_code == 402
    assert (await post(gateway, {**chat(), "model": "nobody"})).status_code == 404
    assert (await post(gateway, chat(script={"status": 400}))).status_code == 400
    broken = await post(gateway, chat(stream=True, script={"tokens": 9, "die_after": 4, "interval_s": 0.25}))
    assert "[DONE]" not in events_of(broken.text)
    await gateway.until_true(lambda: gateway.rows("SELECT 1 FROM idempotency_claims"), lambda rows: not rows)
    assert (await post(gateway, chat())).status_code == 200
    await gateway.check_books()


async def test_who_left_and_was_charged_hears_so_and_is_not_charged_again(gateway: Stack) -> None:
    body = chat(stream=True, script={"tokens": 500, "interval_s": 0.02})
    async with gateway.client() as client:
        async with client.stream("POST", PATH, json=body, headers={"idempotency-key": "k"}) as answer:
            async for text in answer.aiter_text():
                if "t3 " in text:
                    break
        job = answer.headers["x-request-id"]
    [row] = await gateway.usage()
    assert (row["outcome"], row["charge_nano"] > 0) == ("client_gone", True)
    for _ in range(2):
        refused = await post(gateway, body)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "charged"
        assert job in refused.json()["error"]["message"]
        assert (refused.headers["x-cocoon-receipt"], refused.headers["x-should-retry"]) == (job, "false")
    assert len(gateway.engine.requests) == 1
    await gateway.check_books()


async def test_who_left_before_anything_was_generated_may_try_again(gateway: Stack) -> None:
    async with gateway.client() as client:
        task = asyncio.create_task(
            client.post(PATH, json=chat(script={"first_s": 30}), headers={"idempotency-key": "k"})
        )
        await until(lambda: gateway.engine.requests)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await gateway.until_true(lambda: gateway.rows("SELECT 1 FROM idempotency_claims"), lambda rows: not rows)
    assert (await post(gateway, chat())).status_code == 200


async def test_an_answer_that_is_too_long_to_keep_is_refused_with_its_receipt(gateway: Stack) -> None:
    script = {"tokens": OUTCOME_BYTES_MAX // 20_000 + 1, "text": "x" * 20_000}
    first = await post(gateway, chat(max_tokens=1000, script=script))
    assert len(first.content) > OUTCOME_BYTES_MAX
    again = await post(gateway, chat(max_tokens=1000, script=script))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_completed")
    assert again.headers["x-cocoon-receipt"] == first.headers["x-request-id"]
    assert len(await gateway.usage()) == 1


async def test_what_is_stored_holds_no_prompt_no_answer_and_no_key(gateway: Stack) -> None:
    body = chat(script={"tokens": 3, "text": "quince{} "})
    answer = await post(gateway, body, "order-4711")
    assert "quince1" in answer.text
    await gateway.until_true(
        lambda: gateway.rows("SELECT 1 FROM idempotency_claims WHERE state = 'kept'"), lambda rows: rows
    )
    [row] = await gateway.rows("SELECT * FROM idempotency_claims")
    stored = repr(dict(row)).encode() + b"".join(value for value in row.values() if isinstance(value, bytes))
    for secret in (b"quince", b"order-4711", gateway.api_key.encode()):
        assert secret not in stored
        assert secret not in gateway.log().encode()


async def test_a_day_later_the_key_is_free(gateway: Stack) -> None:
    await post(gateway, chat())
    await gateway.until_true(
        lambda: gateway.rows(
            "UPDATE idempotency_claims SET expires_at = now() - interval '1 s' WHERE state = 'kept' RETURNING 1"
        ),
        lambda rows: rows,
    )
    again = await post(gateway, chat(max_tokens=3))
    assert again.status_code == 200
    assert "x-cocoon-replayed" not in again.headers


async def test_it_is_kept_for_a_day_by_the_databases_clock(gateway: Stack) -> None:
    await post(gateway, chat())
    await gateway.until_true(
        lambda: gateway.rows("SELECT 1 FROM idempotency_claims WHERE state = 'kept'"), lambda rows: rows
    )
    [row] = await gateway.rows("SELECT extract(epoch FROM expires_at - now())::float AS left_s FROM idempotency_claims")
    assert 23.9 * 3600 < row["left_s"] <= 24 * 3600


async def test_a_waiting_duplicate_whose_client_leaves_lets_the_first_be(gateway: Stack) -> None:
    body = chat(script={"tokens": 20, "interval_s": 0.05})
    first = asyncio.create_task(post(gateway, body))
    await until(lambda: gateway.engine.requests)
    raw = httpx.Request("POST", "http://x", json=body).content
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.api_key}\r\nidempotency-key: k\r\n"
        f"content-length: {len(raw)}\r\n\r\n"
    )
    writer.write(head.encode() + raw)
    await writer.drain()
    await hang_up(writer)
    assert (await first).status_code == 200
    assert len(await gateway.usage()) == 1


async def test_the_official_client_replays_when_it_is_asked_to(gateway: Stack) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    http: Any = httpx.AsyncClient(trust_env=False)
    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=gateway.api_key, max_retries=2,
        http_client=http,
    ) as client:  # fmt: skip
        create: Any = client.chat.completions.create
        plain = [await create(model=MODEL, messages=messages) for _ in range(2)]
        assert len(gateway.engine.requests) == 2, "it sends no key unless it is asked to"
        keyed = {"extra_headers": {"Idempotency-Key": "order-1"}}
        first = await create(model=MODEL, messages=messages, **keyed)
        again = await create(model=MODEL, messages=messages, **keyed)
        assert again == first
        assert first.choices == plain[0].choices
        streamed = {"extra_headers": {"Idempotency-Key": "order-2"}, "stream": True}
        texts = [
            "".join([chunk.choices[0].delta.content or "" async for chunk in await create(
                model=MODEL, messages=messages, **streamed)])
            for _ in range(2)
        ]  # fmt: skip
        assert texts[0] == texts[1] != ""
        assert len(gateway.engine.requests) == 4
        with pytest.raises(Exception, match="different request"):
            await create(model=MODEL, messages=messages, max_tokens=3, **keyed)
    assert len(await gateway.usage(4)) == 4
