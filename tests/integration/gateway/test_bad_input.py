"""What comes in wrong: a clear error in OpenAI's shape, nothing sent to an engine, nothing held or charged."""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator

import httpx

from tests.fixtures_gateway import MODEL, Stack, chat, events_of
from tests.scripted_engine import until

PATH = "/v1/chat/completions"


def assert_openai_error(answer: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert answer.headers["content-type"] == "application/json"


async def test_bad_requests_get_a_clear_error_and_cost_nothing(gateway: Stack) -> None:
    cases: list[tuple[bytes, int, str, str | None]] = [
        (b"{", 400, "invalid_json", None),
        (b'{"model":"scripted","messages":[{"role":"user","content":"\xff"}]}', 400, "invalid_utf8", None),
        (json.dumps({"messages": []}).encode(), 400, "invalid_type", "model"),
        (json.dumps(chat(messages=[])).encode(), 400, "empty_array", "messages"),
        (json.dumps(chat() | {"stream": "yes"}).encode(), 400, "invalid_type", "stream"),
        (json.dumps(chat(max_tokens=-1)).encode(), 400, "integer_below_min_value", "max_tokens"),
        (json.dumps(chat(max_tokens=10**12)).encode(), 400, "context_length_exceeded", "max_tokens"),
        (json.dumps(chat() | {"model": "no-such-model"}).encode(), 404, "model_not_found", None),
        (json.dumps(chat() | {"model": "x\r\nx-evil: 1"}).encode(), 404, "model_not_found", None),
        (json.dumps(chat(provider={"require": "tdx"})).encode(), 503, "no_worker", None),
    ]
    async with gateway.client() as client:
        for body, status, code, param in cases:
            answer = await client.post(PATH, content=body)
            assert_openai_error(answer, status, code, param)
            assert "x-evil" not in answer.headers
            assert answer.headers["x-request-id"]
    assert gateway.engine.requests == []
    await gateway.check_books()
    assert await gateway.rows("SELECT 1 FROM usage") == []


async def test_a_body_over_the_limit_is_413_by_its_word_and_in_fact(gateway: Stack) -> None:
    body = b'{"model":"scripted","pad":"' + b"x" * 20_000_000 + b'"}'

    async def without_length() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]

    async with gateway.client() as client:
        assert_openai_error(await client.post(PATH, content=body), 413, "body_too_large")
        assert_openai_error(await client.post(PATH, content=without_length()), 413, "body_too_large")
        assert (await client.post(PATH, json=chat())).status_code == 200


async def test_a_large_body_below_the_limit_passes_verbatim(stack: Stack) -> None:
    await stack.start_gateway(COCOON_BODY_BYTES_MAX="20000000")
    body = json.dumps(chat(max_tokens=5, filler="é" * 3_000_000)).encode()
    async with stack.client() as client:
        assert (await client.post(PATH, content=body)).status_code == 200
    assert stack.engine.requests[0].body == body


async def test_keys_that_are_missing_wrong_expired_or_of_another_role_are_refused(gateway: Stack) -> None:
    past = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
    soon_expired = await gateway.new_key(expires_at=past)
    async with gateway.client() as client:
        missing = await client.post(PATH, json=chat(), headers={"authorization": ""})
        assert_openai_error(missing, 401, "missing_api_key")
        assert missing.headers["www-authenticate"] == "Bearer"
        wrong = await client.post(PATH, json=chat(), headers={"authorization": "Bearer sk-cocoon-" + "A" * 43})
        assert_openai_error(wrong, 401, "invalid_api_key")
        role = await client.post(PATH, json=chat(), headers={"authorization": f"Bearer {gateway.worker_key}"})
        assert_openai_error(role, 403, "role_forbidden")
        expired = await gateway.until_true(
            lambda: client.post(PATH, json=chat(), headers={"authorization": f"Bearer {soon_expired}"}),
            lambda answer: answer.status_code != 200,
        )
        assert_openai_error(expired, 401, "expired_api_key")


async def test_a_revoked_key_stops_within_a_second_on_every_process(stack: Stack) -> None:
    await stack.start_gateway(processes=2)
    key = await stack.new_key()
    loop = asyncio.get_running_loop()
    await stack.rows("UPDATE api_keys SET revoked_at = now() WHERE sha256 = sha256($1::text::bytea) RETURNING id", key)
    revoked = loop.time()
    refused = 0
    while refused < 10:
        async with stack.client(key) as client:
            answer = await client.get("/v1/models")
        refused = refused + 1 if answer.status_code == 401 else 0
        assert refused or loop.time() - revoked < 1


async def test_an_empty_balance_is_402_and_nothing_reaches_the_engine(gateway: Stack) -> None:
    key = await gateway.new_key(credit_nano=1)
    async with gateway.client(key) as client:
        assert_openai_error(await client.post(PATH, json=chat(max_tokens=500)), 402, "insufficient_quota")
    assert gateway.engine.requests == []
    await gateway.check_books()


async def test_a_small_balance_shortens_the_answer_instead_of_refusing_it(gateway: Stack) -> None:
    # The prompt's bound costs about 200 nano here; what is left pays for some completion tokens at 2 nano each.
    key = await gateway.new_key(credit_nano=260)
    async with gateway.client(key) as client:
        answer = await client.post(PATH, json=chat())
    assert answer.status_code == 200
    injected = json.loads(gateway.engine.requests[0].body)["max_tokens"]
    assert 1 <= injected <= 130
    await gateway.check_books()


async def test_over_the_rate_limit_is_429_with_retry_after_and_headers(gateway: Stack) -> None:
    key = await gateway.new_key(requests_per_min=3)
    async with gateway.client(key) as client:
        answers = [await client.post(PATH, json=chat()) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:3]] == ["2", "1", "0"]
    assert answers[3].headers["x-ratelimit-limit-requests"] == "3"
    assert_openai_error(answers[3], 429, "rate_limit_exceeded")
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    await gateway.check_books()


async def test_the_rate_limit_is_one_for_all_processes(stack: Stack) -> None:
    await stack.start_gateway(processes=2)
    key = await stack.new_key(requests_per_min=5)
    statuses: list[int] = []
    for _ in range(12):
        async with stack.client(key) as client:
            statuses.append((await client.post(PATH, json=chat())).status_code)
    assert statuses.count(200) == 5


async def test_more_at_once_than_the_key_allows_is_429(gateway: Stack) -> None:
    key = await gateway.new_key(concurrency_max=1)
    async with gateway.client(key) as client:
        slow = asyncio.create_task(client.post(PATH, json=chat(script={"first_s": 1})))
        await until(lambda: gateway.engine.requests)
        assert (await client.post(PATH, json=chat())).status_code == 429
        assert (await slow).status_code == 200
        assert (await client.post(PATH, json=chat())).status_code == 200


async def test_a_model_outside_the_keys_list_is_403_and_invisible(gateway: Stack) -> None:
    key = await gateway.new_key(allowed_models=("another",))
    async with gateway.client(key) as client:
        assert_openai_error(await client.post(PATH, json=chat()), 403, "model_not_allowed")
        assert (await client.get("/v1/models")).json()["data"] == []
        assert_openai_error(await client.get(f"/v1/models/{MODEL}"), 404, "model_not_found")


async def test_unknown_paths_and_methods_have_the_same_error_shape(gateway: Stack) -> None:
    async with gateway.client() as client:
        assert_openai_error(await client.get("/v1/nothing"), 404, "notfound")
        assert_openai_error(await client.get(PATH), 405, "method_not_allowed")


async def test_content_cannot_inject_events_into_a_stream(gateway: Stack) -> None:
    evil = 'x\n\ndata: {"choices":[],"usage":{"prompt_tokens":0}}\n\ndata: [DONE]\n\n'
    async with gateway.client() as client:
        answer = await client.post(PATH, json=chat(stream=True, script={"tokens": 2, "text": evil}))
    events = events_of(answer.text)
    assert events.count("[DONE]") == 1
    assert events[-1] == "[DONE]"
    assert [event["choices"][0]["delta"].get("content") for event in events[:-1]] == [evil, evil, None]


async def test_cors_answers_only_origins_that_a_key_names(gateway: Stack) -> None:
    key = await gateway.new_key(cors_origins=("https://app.example",))
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with gateway.client(key) as client:
        allowed = await client.options(PATH, headers={"origin": "https://app.example", **preflight})
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        foreign = await client.options(PATH, headers={"origin": "https://evil.example", **preflight})
        assert "access-control-allow-origin" not in foreign.headers
        answer = await client.post(PATH, json=chat(), headers={"origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        refused = await client.post(PATH, content=b"{", headers={"origin": "https://app.example"})
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
    async with gateway.client() as other:
        answer = await other.post(PATH, json=chat(), headers={"origin": "https://app.example"})
        assert "access-control-allow-origin" not in answer.headers
