"""Sealed requests through a real gateway and real agents: what passes, what is refused, and what is charged."""

import asyncio
import datetime as dt
import os
import time
import uuid
from typing import Any

import httpx
import msgspec
import pytest

from cocoon.clock import ManualClock, system_random
from cocoon.enrolment import Keyset
from cocoon.ids import new_job_id
from cocoon.sealed import CONTENT_TYPE, UnopenableError, parse_request
from tests.fixtures_gateway import Stack, chat
from tests.scripted_engine import ScriptedEngine, until
from tests.sealed_client import OpenedAnswer, SealedCall

PATH = "/v1/chat/completions"
HEADERS = {"content-type": CONTENT_TYPE}


@pytest.fixture
async def pair(stack: Stack) -> tuple[Stack, ScriptedEngine]:
    """Two agents, each before an engine of its own."""
    second = await stack._stack.enter_async_context(ScriptedEngine())
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    await stack.start_worker("worker-2", second)
    return stack, second


async def keysets(stack: Stack, *names: str) -> list[bytes]:
    rows = await stack.rows("SELECT name, keyset FROM workers ORDER BY name")
    return [row["keyset"] for row in rows if not names or row["name"] in names]


async def sealed(stack: Stack, *names: str, stream: bool = True, script: Any = None, **changes: Any) -> SealedCall:
    key = changes.pop("key", stack.api_key)
    return SealedCall(chat(stream=stream, script=script, max_tokens=1000), await keysets(stack, *names), key, **changes)


async def post(
    stack: Stack, call: SealedCall, raw: bytes | None = None, key: str | None = None, **headers: str
) -> httpx.Response:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    async with stack.client(key) as client:
        return await client.post(PATH, content=raw or call.sent.raw, headers=HEADERS | more)


async def refused(
    stack: Stack, call: SealedCall, raw: bytes | None = None, key: str | None = None, **headers: str
) -> tuple[int, str]:
    answer = await post(stack, call, raw, key, **headers)
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()["error"]["code"]


def opened(call: SealedCall, answer: httpx.Response) -> OpenedAnswer:
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE), answer.text
    return call.opened(answer.content)


async def test_sealed_answers_arrive_whole_are_charged_and_name_their_price(pair: tuple[Stack, ScriptedEngine]) -> None:
    stack, _ = pair
    jobs: list[uuid.UUID] = []
    for stream in (True, False):
        call = await sealed(stack, stream=stream)
        answer = await post(stack, call)
        whole = opened(call, answer)
        assert whole.text == "t0 t1 t2 t3 t4 "
        receipt = whole.receipt()
        assert answer.headers["x-cocoon-receipt"] == receipt.receipt_id == str(call.job_id)
        assert answer.headers["x-cocoon-price"] == "1000000/500000/2000000"
        assert answer.headers.get("x-cocoon-cost-nano") == (None if stream else "18")
        assert "x-cocoon-salt" not in answer.headers
        jobs.append(call.job_id)
    rows = await stack.usage(2)
    charged = [(row["job_id"], row["outcome"], row["charge_nano"], row["completion_tokens"]) for row in rows]
    assert charged == [(job, "completed", 18, 5) for job in jobs]
    await stack.check_books()


async def test_what_the_header_gives_away_is_refused_before_any_worker_is_asked(
    pair: tuple[Stack, ScriptedEngine],
) -> None:
    stack, second = pair
    other_key = await stack.new_key()
    call = await sealed(stack)
    assert await refused(stack, call, key=other_key) == (403, "sealed_key_tag")
    assert await refused(stack, call, call.sent.raw[:-1]) == (400, "sealed_malformed")
    assert await refused(stack, call, b'{"model":"scripted"}') == (400, "sealed_malformed")
    assert await refused(stack, await sealed(stack, not_after=int(time.time()) - 1)) == (400, "sealed_expired")
    for minutes in (-6, 6):
        assert await refused(stack, await sealed(stack, job_id=_job_of(minutes))) == (400, "sealed_job_id")
    assert await refused(stack, await sealed(stack, job_id=uuid.uuid4().bytes)) == (400, "sealed_job_id")
    assert await refused(stack, await sealed(stack, model="unknown")) == (404, "model_not_found")
    assert await refused(stack, await sealed(stack, max_completion=8193)) == (400, "context_length_exceeded")
    assert await refused(stack, await sealed(stack, max_completion=0)) == (400, "integer_below_min_value")
    assert await refused(stack, await sealed(stack, max_prompt=0)) == (400, "integer_below_min_value")
    stranger = (await keysets(stack))[0]
    strangers = SealedCall(chat(), [_renamed(stranger)], stack.api_key)
    assert await refused(stack, strangers) == (409, "sealed_recipients_gone")
    assert stack.engine.requests == second.requests == []
    # None of these has used up its id: the key's holder may still send the first one.
    assert opened(call, await post(stack, call)).receipt().seal == "sealed"
    await stack.usage()
    await stack.check_books()


def _job_of(minutes: int) -> bytes:
    return new_job_id(ManualClock(dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)), system_random()).bytes


def _renamed(raw: bytes) -> bytes:

    return msgspec.structs.replace(Keyset.decode(raw), boot_id=os.urandom(16)).encode()


async def test_a_job_runs_once_whoever_sends_it_again(pair: tuple[Stack, ScriptedEngine]) -> None:
    stack, second = pair
    call = await sealed(stack)
    answers = await asyncio.gather(*(post(stack, call) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert {a.json()["error"]["code"] for a in answers if a.status_code == 409} == {"sealed_job_used"}
    assert {a.headers["x-should-retry"] for a in answers if a.status_code == 409} == {"false"}
    assert await refused(stack, call) == (409, "sealed_job_used")
    other = await stack.new_key()
    assert await refused(stack, call, key=other) == (403, "sealed_key_tag")
    assert len(stack.engine.requests) + len(second.requests) == 1
    assert len(await stack.usage()) == 1
    await stack.check_books()


async def test_with_an_idempotency_key_the_same_sealed_bytes_get_the_same_sealed_answer(
    pair: tuple[Stack, ScriptedEngine],
) -> None:
    stack, second = pair
    call = await sealed(stack)
    name = str(uuid.uuid4())
    first, again = await asyncio.gather(
        post(stack, call, idempotency_key=name), post(stack, call, idempotency_key=name)
    )
    assert first.content == again.content
    assert opened(call, again).text == opened(call, first).text == "t0 t1 t2 t3 t4 "
    assert [a.headers.get("x-cocoon-replayed") for a in (first, again)].count(str(call.job_id)) == 1
    assert await refused(stack, await sealed(stack), idempotency_key=name) == (409, "idempotency_conflict")
    # Without a first answer under this name, nothing runs either.
    assert await refused(stack, call, idempotency_key="another") == (409, "sealed_job_used")
    assert len(stack.engine.requests) + len(second.requests) == 1
    await stack.usage()
    await stack.check_books()


async def test_another_recipient_answers_when_the_first_cannot(pair: tuple[Stack, ScriptedEngine]) -> None:
    stack, second = pair
    stack.engine.refuse_with = 500
    [able] = await keysets(stack, "worker-2")
    for stream in (True, True, False, False):
        call = await sealed(stack, stream=stream)
        whole = opened(call, await post(stack, call))
        assert call.keysets[whole.keyset_digest] == able
        assert whole.receipt().keyset_digest == whole.keyset_digest
    # Only recipients are asked: this one has no other.
    answered = len(second.requests)
    assert await refused(stack, await sealed(stack, "worker-1")) == (502, "worker_failed")
    assert len(second.requests) == answered
    await stack.until_settled()
    await stack.check_books()


async def test_a_stream_that_breaks_ends_without_its_last_frame_and_is_free(pair: tuple[Stack, ScriptedEngine]) -> None:
    stack, second = pair
    call = await sealed(stack, script={"tokens": 400, "interval_s": 0.03})
    data = b""
    async with stack.client() as client, client.stream("POST", PATH, content=call.sent.raw, headers=HEADERS) as answer:
        assert answer.headers["content-type"] == CONTENT_TYPE
        async for part in answer.aiter_bytes():
            data += part
            await stack.engine.die()
            await second.die()
    with pytest.raises(UnopenableError, match="cut off"):
        call.opened(data)
    [row] = await stack.usage()
    assert (row["outcome"], row["charge_nano"]) == ("broken", 0)
    await stack.check_books()


async def test_a_client_that_leaves_stops_its_worker_and_pays_for_what_was_generated(
    pair: tuple[Stack, ScriptedEngine],
) -> None:
    stack, second = pair
    call = await sealed(stack, script={"tokens": 1000, "interval_s": 0.03})
    async with stack.client() as client, client.stream("POST", PATH, content=call.sent.raw, headers=HEADERS) as answer:
        async for _ in answer.aiter_bytes():
            break
    requests = [*stack.engine.requests, *second.requests]
    await until(lambda: requests[0].ended is not None)
    assert requests[0].ended == "aborted"
    [row] = await stack.usage()
    assert row["outcome"] == "client_gone"
    await stack.check_books()


async def test_a_stream_is_kept_alive_by_what_its_opener_skips(stack: Stack) -> None:
    await stack.start_gateway(upstream=False, COCOON_KEEP_ALIVE_S="0.1")
    await stack.start_worker("worker-1", stack.engine)
    call = await sealed(stack, script={"first_s": 0.6, "tokens": 2})
    answer = await post(stack, call)
    assert answer.content.startswith(b"\0")
    assert opened(call, answer).text == "t0 t1 "
    await stack.usage()


async def test_a_gateway_that_alters_anything_on_the_way_is_found_out(pair: tuple[Stack, ScriptedEngine]) -> None:
    """Our gateway does not, so that what it relays is altered behind it: the worker or the client refuses each."""
    stack, second = pair
    call = await sealed(stack)
    parsed = parse_request(call.sent.raw)
    one, two = parsed.wraps
    # Swapped wraps: neither recipient can open them.
    assert await refused(stack, call, call.sent.raw.replace(one + two, two + one)) == (400, "sealed_unopenable")
    # Another model, maximum or list of recipients in the header: H differs, so no wrap opens.
    for old, new in (
        (b'"max_completion":1000', b'"max_completion":1001'),
        (b'"n":1', b'"n":2'),
        (b'"stream":true', b'"stream":false'),
    ):
        call = await sealed(stack)
        changed = call.sent.raw.replace(old, new)
        length = int.from_bytes(changed[4:8], "big") + len(new) - len(old)
        altered = changed[:4] + length.to_bytes(4, "big") + changed[8:]
        assert await refused(stack, call, altered) == (400, "sealed_unopenable")
    assert stack.engine.requests == second.requests == []
    call = await sealed(stack)
    answer = await post(stack, call)
    for broken in (answer.content[:-1], answer.content + b"\0", answer.content[:65] + answer.content[70:]):
        with pytest.raises(UnopenableError):
            call.opened(broken)
    await stack.until_settled()
    await stack.check_books()
