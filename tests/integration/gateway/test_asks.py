"""Workers that ask less than the network's price, and customers that pay no more than they say."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from billing.postgres.pool import open_pool
from billing.postgres.prices import set_price
from tests.fixtures_gateway import MODEL, PRICE, Stack, chat, events_of
from tests.scripted_engine import ScriptedEngine, until

PATH = "/v1/chat/completions"
FIRST_ASK = 2**31
# The fixture's prices are 0.001, 0.0005 and 0.002 TON: 10^6 nano are 0.001.
CHEAP, CHEAPER = "0.0006/0.0004/0.0015", "0.0005/0.0004/0.001"
CHEAP_NANO = 6 * 600_000 + 4 * 400_000 + 5 * 1_500_000
NETWORK_NANO = 6 * PRICE.prompt + 4 * PRICE.cached + 5 * PRICE.completion


async def answered(stack: Stack, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with stack.client() as client:
        return await client.post(PATH, json=body, headers={"connection": "close", **headers})


async def until_asked(stack: Stack, count: int) -> None:
    await stack.until_true(
        lambda: stack.rows("SELECT version FROM asks ORDER BY version"), lambda rows: len(rows) >= count
    )


async def served_at(stack: Stack, version: int) -> httpx.Response:
    """Ask until an answer is charged at this version: processes hear of an ask as they hear of enrolments."""

    async def ask() -> httpx.Response | None:
        answer = await answered(stack, chat(max_tokens=5))
        await stack.until_settled()
        [row] = await stack.rows(
            "SELECT price_version FROM usage WHERE job_id::text = $1", answer.headers["x-request-id"]
        )
        return answer if row["price_version"] == version else None

    return await stack.until_true(ask, lambda answer: answer is not None)


async def test_an_answer_costs_what_its_worker_asked(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine, COCOON_WORKER_ASK=CHEAP)
    answer = await answered(stack, chat(max_tokens=5))
    assert answer.json()["usage"]["cost_nano"] == -(-CHEAP_NANO // 10**6)
    assert answer.json()["usage"]["cost"] == "0.0000000127"
    [row] = await stack.usage()
    [ask] = await stack.rows("SELECT * FROM asks")
    assert row["price_version"] == ask["version"] == FIRST_ASK
    assert (ask["prompt_nano_per_mtok"], ask["cached_nano_per_mtok"], ask["completion_nano_per_mtok"]) == (
        600_000, 400_000, 1_500_000,
    )  # fmt: skip
    assert (row["numerator"], row["share_bps"]) == (CHEAP_NANO, PRICE.share_bps)
    await stack.check_books()


async def test_sorting_by_price_goes_to_whoever_asks_least(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    async with ScriptedEngine() as second, ScriptedEngine() as third:
        await stack.start_worker("dear", stack.engine)
        await stack.start_worker("cheap", second, COCOON_WORKER_ASK=CHEAP)
        await stack.start_worker("cheaper", third, COCOON_WORKER_ASK=CHEAPER)
        body = chat(max_tokens=5, provider={"sort": "price", "made_up": {"deep": 1}})
        for _ in range(6):
            assert (await answered(stack, body)).headers["x-cocoon-worker"] == "cheaper"
        # The preferred worker alone has failed: the next cheapest is asked.
        ignoring = chat(max_tokens=5, provider={"sort": "price", "ignore": ["cheaper"]})
        assert (await answered(stack, ignoring)).headers["x-cocoon-worker"] == "cheap"
    await stack.check_books()


async def test_a_limit_is_kept_by_routing_and_by_the_hold(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    async with ScriptedEngine() as second:
        await stack.start_worker("dear", stack.engine)
        await stack.start_worker("cheap", second, COCOON_WORKER_ASK=CHEAP)
        limited = chat(max_tokens=5, provider={"max_price": 1_500_000})
        for _ in range(6):
            assert (await answered(stack, limited)).headers["x-cocoon-worker"] == "cheap"
        by_header = await answered(stack, chat(max_tokens=5), **{"x-cocoon-max-price": "600000/1500000"})
        assert by_header.headers["x-cocoon-worker"] == "cheap"

        for body, headers in (
            (chat(max_tokens=5, provider={"max_price": 1_499_999}), {}),
            (chat(max_tokens=5, provider={"max_price": {"prompt": 599_999}}), {}),
            (limited, {"x-cocoon-max-price": "1000"}),
            (chat(max_tokens=5, provider={"max_price": 1_500_000, "only": ["dear"]}), {}),
        ):
            refused = await answered(stack, body, **headers)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (400, "max_price_too_low"), refused.text
            cheapest = "1000000 nano" if "only" in str(body) else "600000 nano"
            assert cheapest in error["message"]
        malformed = await answered(stack, chat(), **{"x-cocoon-max-price": "1e6"})
        assert (malformed.status_code, malformed.json()["error"]["param"]) == (400, "x-cocoon-max-price")

        # Enough for the worst case at the limit, not at the network's price.
        poor = await stack.new_key(credit_nano=700)
        async with stack.client(poor) as client:
            assert (await client.post(PATH, json=chat(max_tokens=300))).status_code == 402
            paid = await client.post(PATH, json=chat(max_tokens=300, provider={"max_price": 1_500_000}))
            assert (paid.status_code, paid.headers["x-cocoon-worker"]) == (200, "cheap"), paid.text
    await stack.check_books()


async def test_an_ask_changes_while_streams_go_on_and_nothing_restarts(stack: Stack, tmp_path: Path) -> None:
    ask = tmp_path / "ask"
    ask.write_text(CHEAP)
    await stack.start_gateway(upstream=False)
    worker = await stack.start_worker("worker-1", stack.engine, COCOON_WORKER_ASK=f"@{ask}")
    slow = chat(stream=True, script={"tokens": 5, "interval_s": 1.5}, stream_options={"include_usage": True})
    async with asyncio.TaskGroup() as group:
        streamed = group.create_task(answered(stack, slow))
        await until(lambda: stack.engine.requests)
        ask.write_text(CHEAPER)
        await until_asked(stack, 2)
        assert not streamed.done()
    assert events_of(streamed.result().text)[-2]["usage"]["cost_nano"] == -(-CHEAP_NANO // 10**6)
    await served_at(stack, FIRST_ASK + 1)
    # What makes no sense, or is too dear, leaves the last ask in force.
    ask.write_text("a lot")
    ask.write_text("7/7")
    await stack.until_true(
        lambda: asyncio.to_thread(stack.log, "worker-1"), lambda log: "ask_refused" in log and '"kept": true' in log
    )
    await served_at(stack, FIRST_ASK + 1)
    ask.write_text("")
    await served_at(stack, 1)
    assert worker.poll() is None
    assert len(await stack.rows("SELECT 1 FROM asks")) == 2
    await stack.check_books()


async def test_an_ask_above_the_price_is_refused_unless_the_price_will_do(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    stack.start(
        "dear", ["worker"], stack.worker_environment("dear", stack.engine) | {"COCOON_WORKER_ASK": "0.001/0.003"}
    )
    await stack.until_true(
        lambda: asyncio.to_thread(stack.log, "dear"),
        lambda log: "ask_refused" in log and "above the network's price of 1000000 nano" in log,
    )
    assert await stack.rows("SELECT 1 FROM workers") == []
    async with ScriptedEngine() as second:
        stack.start(
            "modest", ["worker"],
            stack.worker_environment("modest", second)
            | {"COCOON_WORKER_ASK": "0.001/0.003", "COCOON_WORKER_ASK_OR_CEILING": "1"},
        )  # fmt: skip
        await stack.until_workers(1)
        answer = await answered(stack, chat(max_tokens=5))
        assert answer.json()["usage"]["cost_nano"] == -(-NETWORK_NANO // 10**6)
        # The price rises above the ask, which is then the one in force.
        async with open_pool(stack.database_url, application="test") as pool:
            await set_price(pool, MODEL, prompt=10**7, cached=10**7, completion=10**7, share_bps=9_000)
        await served_at(stack, FIRST_ASK)
    await stack.check_books()


async def test_an_ask_below_a_falling_price_is_out_of_force(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    await stack.start_worker("worker-1", stack.engine, COCOON_WORKER_ASK=CHEAP)
    assert (await answered(stack, chat(max_tokens=5))).status_code == 200
    async with open_pool(stack.database_url, application="test") as pool:
        await set_price(pool, MODEL, prompt=500_000, cached=400_000, completion=500_000, share_bps=9_000)
    refused = await stack.until_true(lambda: answered(stack, chat(max_tokens=5)), lambda a: a.status_code != 200)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
    await stack.check_books()
