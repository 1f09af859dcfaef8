"""A customer's own price, from the offer to the books: with an ask below the price, and across a change in flight."""

import asyncio
from decimal import Decimal

import httpx

from billing.postgres.multipliers import set_multiplier
from billing.postgres.pool import open_pool
from tests.fixtures_gateway import MODEL, PRICE, Stack, chat, events_of
from tests.scripted_engine import until

PATH = "/v1/chat/completions"
BPS = 9_500
ASK = "0.0006/0.0004/0.001500001"
ASKED = 6 * 600_000 + 4 * 400_000 + 5 * 1_500_001
# 95 % of 1,500,001 is rounded up to a whole nano per million tokens.
PAID = 6 * 570_000 + 4 * 380_000 + 5 * 1_425_001


async def multiply(stack: Stack, bps: int) -> None:
    async with open_pool(stack.database_url, application="test") as pool:
        await set_multiplier(pool, "customer", bps)

    async def completion() -> int:
        async with stack.client() as client:
            return (await client.get(f"/v1/models/{MODEL}")).json()["pricing"]["completion_nano_per_mtok"]

    await stack.until_true(completion, lambda nano: nano == PRICE.completion * bps // 10_000)


async def test_a_discount_is_exact_and_the_workers_part_is_not_touched(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine, COCOON_WORKER_ASK=ASK)
    await multiply(stack, BPS)
    rows = 7
    async with stack.client() as client:
        for _ in range(rows):
            usage = (await client.post(PATH, json=chat(max_tokens=5))).json()["usage"]
            assert Decimal(usage["cost"]) == Decimal(PAID) / 10**15
        # A limit is in what the customer pays.
        allowed = await client.post(PATH, json=chat(max_tokens=5, provider={"max_price": 1_425_001}))
        refused = await client.post(PATH, json=chat(max_tokens=5, provider={"max_price": 1_425_000}))
    assert (allowed.status_code, refused.status_code) == (200, 400)
    assert "1425001 nano" in refused.json()["error"]["message"]
    found = await stack.usage(rows + 1)
    assert {(row["customer_bps"], row["numerator"], row["worker_numerator"]) for row in found} == {(BPS, PAID, ASKED)}
    await stack.check_books()
    # Nothing was rounded but the sums.
    assert sum(row["charge_nano"] for row in found) == -(-PAID * len(found) // 10**6)
    assert sum(row["share_nano"] for row in found) == ASKED * len(found) * PRICE.share_bps // 10**10


async def test_a_change_leaves_requests_in_flight_alone(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine)
    slow = chat(stream=True, script={"tokens": 5, "interval_s": 1.5}, stream_options={"include_usage": True})

    async def streamed() -> httpx.Response:
        async with stack.client() as client:
            return await client.post(PATH, json=slow)

    whole = 6 * PRICE.prompt + 4 * PRICE.cached + 5 * PRICE.completion
    async with asyncio.TaskGroup() as group:
        before = group.create_task(streamed())
        await until(lambda: stack.engine.requests)
        await multiply(stack, 20_000)
        assert not before.done()
        after = group.create_task(streamed())
    for task, numerator in ((before, whole), (after, 2 * whole)):
        assert Decimal(events_of(task.result().text)[-2]["usage"]["cost"]) == Decimal(numerator) / 10**15
    rows = await stack.usage(2)
    assert sorted((row["customer_bps"], int(row["numerator"])) for row in rows if row["customer_bps"]) == [
        (20_000, 2 * whole)
    ]
    assert sum(row["share_nano"] for row in rows) == 2 * whole * PRICE.share_bps // 10**10
    await stack.check_books()
