"""A new price concerns new requests only: in every process, for streams in flight, and in the books."""

import asyncio
from typing import Any

import httpx

from billing.postgres.pool import open_pool
from billing.postgres.prices import set_price
from tests.fixtures_gateway import MODEL, PRICE, Stack, chat, events_of
from tests.scripted_engine import until

PATH = "/v1/chat/completions"
FACTOR = 3
OLD_NANO = (6 * PRICE.prompt + 4 * PRICE.cached + 12 * PRICE.completion) // 10**6
ASKS = 16
"""Questions on new connections that agree before every process is believed to know something."""


async def change_price(stack: Stack) -> None:
    async with open_pool(stack.database_url, application="test") as pool:
        await set_price(
            pool, MODEL, prompt=FACTOR * PRICE.prompt, cached=FACTOR * PRICE.cached,
            completion=FACTOR * PRICE.completion, share_bps=5_000,
        )  # fmt: skip


async def until_every_process_offers(stack: Stack, version: int) -> None:
    async def agree() -> bool:
        async with stack.client() as client:
            for _ in range(ASKS):
                answer = await client.get(f"/v1/models/{MODEL}", headers={"connection": "close"})
                if answer.json()["pricing"]["version"] != version:
                    return False
        return True

    await stack.until_true(agree, bool)


async def streamed(stack: Stack, script: dict[str, Any]) -> httpx.Response:
    body = chat(stream=True, max_tokens=50, script=script, stream_options={"include_usage": True})
    async with stack.client() as client:
        return await client.post(PATH, json=body, headers={"connection": "close"})


async def test_streams_in_flight_keep_their_price_on_every_process(stack: Stack) -> None:
    await stack.start_gateway(processes=2, upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    usage = {
        "prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22,
        "prompt_tokens_details": {"cached_tokens": 4},
    }  # fmt: skip
    # Long enough to be in flight until both processes have changed; cut short by nothing but their own end.
    slow = {"tokens": 12, "interval_s": 1.0, "usage": usage}
    async with asyncio.TaskGroup() as group:
        before = [group.create_task(streamed(stack, slow)) for _ in range(8)]
        await until(lambda: sum(seen.sent_tokens > 0 for seen in stack.engine.requests) == len(before))
        await change_price(stack)
        await until_every_process_offers(stack, 2)
        assert not any(task.done() for task in before), "the change came while they were in flight"
        after = [group.create_task(streamed(stack, {"tokens": 12, "usage": usage})) for _ in range(4)]
    for tasks, cost in ((before, OLD_NANO), (after, FACTOR * OLD_NANO)):
        for task in tasks:
            events = events_of(task.result().text)
            assert events[-1] == "[DONE]"
            assert events[-2]["usage"]["cost_nano"] == cost
    rows = await stack.usage(12)
    charged = {version: [row["charge_nano"] for row in rows if row["price_version"] == version] for version in (1, 2)}
    assert charged == {1: [OLD_NANO] * 8, 2: [FACTOR * OLD_NANO] * 4}
    assert {(row["price_version"], row["share_bps"]) for row in rows} == {(1, PRICE.share_bps), (2, 5_000)}
    # 4 of 10 prompt tokens were cached, and were charged as such.
    assert {row["cached_tokens"] for row in rows} == {4}
    await stack.check_books()
