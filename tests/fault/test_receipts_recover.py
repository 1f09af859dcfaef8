"""A gateway that dies between an answer's end and its settlement: the worker's receipt brings the charge back, once."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from cocoon.money import Price, ceiling
from cocoon.receipt_batch import Verdict
from cocoon.usage import TokenUsage
from tests.fault.test_gateway_faults import serving
from tests.fixtures_gateway import PRICE, Stack, chat, events_of
from tests.fixtures_postgres import PostgresServer

PATH = "/v1/chat/completions"
FORGOTTEN = (
    "UPDATE open_holds SET expires_at = now() - interval '1 second' RETURNING 1",
    "UPDATE leases SET expires_at = now() - interval '1 second' WHERE state = 'active' RETURNING 1",
)


async def kill_gateway(stack: Stack) -> None:
    """SIGKILL every process of the gateway: nothing of it can still speak to anybody."""
    assert stack.gateway is not None
    victims = [*await serving(stack.gateway.pid), stack.gateway.pid]
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(stack.gateway.wait)


async def lose_a_charge(stack: Stack, postgres: PostgresServer) -> None:
    """A whole answer reaches the client while the database is down; then its gateway is killed."""
    async with stack.client() as client:
        script = {"tokens": 12, "interval_s": 0.1}
        text = ""
        async with client.stream("POST", PATH, json=chat(stream=True, script=script)) as answer:
            async for part in answer.aiter_text():
                if not text:
                    await asyncio.to_thread(postgres.kill)
                text += part
    assert events_of(text)[-1] == "[DONE]"
    await kill_gateway(stack)
    await asyncio.to_thread(postgres.start)
    assert await stack.rows("SELECT 1 FROM usage") == []


async def recovered(stack: Stack) -> None:
    """Wait for the usage row: the dead gateway's credit expires, and the receipt is judged."""

    async def ask() -> list[Any]:
        for statement in FORGOTTEN:
            await stack.rows(statement)
        return await stack.rows("SELECT * FROM usage")

    await stack.until_true(ask, lambda rows: len(rows) > 0, deadline_s=60)


async def verdicts_of(worker: subprocess.Popen[bytes], state: Path) -> list[str | None]:
    """What a worker that is told to stop has noted about its receipts."""
    worker.terminate()
    assert await asyncio.to_thread(worker.wait, 20) == 0
    [path] = state.glob("*.sqlite3")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT verdict FROM receipts ORDER BY id")]


async def check_charged_once(stack: Stack, price: Price = PRICE) -> None:
    [row] = await stack.rows("SELECT * FROM usage")
    assert (row["outcome"], row["completion_tokens"], row["receipt_head"] is not None) == ("completed", 12, True)
    usage = TokenUsage(prompt=row["prompt_tokens"], cached=row["cached_tokens"], completion=row["completion_tokens"])
    assert row["charge_nano"] == ceiling(price.numerator(usage)).nano > 0
    assert row["price_version"] == price.version
    async with stack.client() as client:
        balance = (await client.get("/v1/account/balance")).json()
    assert balance["spent_nano"] == row["charge_nano"]
    assert await stack.rows("SELECT 1 FROM discrepancies") == []
    await stack.check_books()


async def test_a_charge_lost_with_its_gateway_comes_back_from_the_workers_receipt_exactly_once(
    own_postgres: PostgresServer, redis_url: str, tmp_path: Path
) -> None:
    async with Stack(own_postgres.url(), redis_url) as stack:
        await stack.start_gateway(upstream=False)
        worker = await stack.start_worker(
            "worker-1", stack.engine, COCOON_WORKER_STATE=str(tmp_path), COCOON_RECEIPT_GRACE_S="0.2",
            COCOON_WORKER_ASK="0.0006/0.0004/0.0015",
        )  # fmt: skip
        await lose_a_charge(stack, own_postgres)
        await stack.start_gateway(upstream=False)
        await recovered(stack)
        # What the worker asked when the ticket was written, and nothing else.
        asked = Price(version=2**31, prompt=600_000, cached=400_000, completion=1_500_000, share_bps=PRICE.share_bps)
        await check_charged_once(stack, asked)
        await until_judged(stack, 1)
        assert await verdicts_of(worker, tmp_path) == ["recovered"]


async def test_a_worker_killed_as_well_delivers_after_its_restart_under_new_keys(
    own_postgres: PostgresServer, redis_url: str, tmp_path: Path
) -> None:
    async with Stack(own_postgres.url(), redis_url) as stack:
        await stack.start_gateway(upstream=False)
        settings = {"COCOON_WORKER_STATE": str(tmp_path), "COCOON_RECEIPT_GRACE_S": "2"}
        first = await stack.start_worker("worker-1", stack.engine, **settings)
        await lose_a_charge(stack, own_postgres)
        first.kill()
        await asyncio.to_thread(first.wait)
        await stack.start_gateway(upstream=False)
        second = await stack.start_worker("worker-1", stack.engine, **settings)
        await recovered(stack)
        await check_charged_once(stack)
        await until_judged(stack, 1)
        assert await verdicts_of(second, tmp_path) == ["recovered"]


async def test_what_the_gateway_settled_is_acknowledged_and_nothing_more(stack: Stack, tmp_path: Path) -> None:
    await stack.start_gateway(upstream=False)
    worker = await stack.start_worker(
        "worker-1", stack.engine, COCOON_WORKER_STATE=str(tmp_path), COCOON_RECEIPT_GRACE_S="0.5"
    )
    async with stack.client() as client:
        for stream in (True, False):
            assert (await client.post(PATH, json=chat(stream=stream))).status_code == 200
        broken = await client.post(
            PATH, json=chat(stream=True, script={"tokens": 9, "die_after": 4, "interval_s": 0.25})
        )
        assert "[DONE]" not in events_of(broken.text)
    await stack.usage(3)
    await until_judged(stack, 3)
    assert await verdicts_of(worker, tmp_path) == ["recorded"] * 3
    assert await stack.rows("SELECT 1 FROM recoveries UNION ALL SELECT 1 FROM discrepancies") == []
    await stack.check_books()


async def until_judged(stack: Stack, count: int) -> None:
    """Wait until the worker has heard final verdicts about this many receipts."""

    async def judged() -> int:
        lines = [json.loads(line) for line in stack.log("worker-1").splitlines() if '"receipts_judged"' in line]
        return sum(line.get(verdict.value, 0) for line in lines for verdict in Verdict if verdict.final)

    await stack.until_true(judged, lambda found: found >= count)
