"""Repeated requests whose gateway, database or worker dies in between: a key is charged once at most."""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import httpx

from cli.dev.address import free_port
from tests.fault.test_gateway_faults import serving
from tests.fault.test_receipts_recover import kill_gateway, recovered
from tests.fixtures_gateway import Stack, chat, events_of
from tests.fixtures_postgres import PostgresServer
from tests.scripted_engine import until

PATH = "/v1/chat/completions"
FORGOTTEN = "UPDATE idempotency_claims SET expires_at = now() - interval '1 second' WHERE state = 'running' RETURNING 1"
"""Nobody renews the claims of the dead: bring forward what the database's clock would do."""


async def post(stack: Stack, body: dict[str, Any], key: str | None = "k") -> httpx.Response:
    async with stack.client() as client:
        return await client.post(PATH, json=body, headers={} if key is None else {"idempotency-key": key})


async def test_a_gateway_killed_half_way_leaves_its_key_to_a_retry_that_pays_once(stack: Stack) -> None:
    await stack.start_gateway()
    body = chat(script={"tokens": 30, "interval_s": 0.05})
    first = asyncio.create_task(post(stack, body))
    await until(lambda: stack.engine.requests and stack.engine.requests[0].sent_tokens > 3)
    await kill_gateway(stack)
    assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], httpx.HTTPError)
    await stack.start_gateway()
    # The dead one's claim still stands: a retry waits, and runs once nobody renews it any more.
    retry = asyncio.create_task(post(stack, body))
    await asyncio.sleep(0.1)
    assert len(stack.engine.requests) == 1
    await stack.rows(FORGOTTEN)
    answer = await retry
    assert (answer.status_code, "x-cocoon-replayed" in answer.headers) == (200, False)
    again = await post(stack, body)
    assert again.headers["x-cocoon-replayed"] == answer.headers["x-request-id"]
    assert again.content == answer.content
    rows = await stack.usage(2)
    assert [(row["finish_reason"], row["charge_nano"] > 0) for row in rows] == [("written_off", False), ("stop", True)]
    await stack.rows("UPDATE leases SET expires_at = now() - interval '1 second' WHERE state = 'active' RETURNING 1")
    await stack.check_books()


async def test_a_duplicate_waits_at_the_living_gateway_while_the_other_dies(stack: Stack) -> None:
    await stack.start_gateway()
    dying = stack.gateway
    first_port, stack.port = stack.port, free_port()
    await stack.start_gateway()
    body = chat(stream=True, script={"tokens": 100, "interval_s": 0.05})
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{first_port}", timeout=30, trust_env=False) as client:
        headers = {"authorization": f"Bearer {stack.api_key}", "idempotency-key": "k"}
        first = asyncio.create_task(client.post(PATH, json=body, headers=headers))
        await until(lambda: stack.engine.requests and stack.engine.requests[0].sent_tokens > 3)
        retry = asyncio.create_task(post(stack, chat(stream=True, script={"tokens": 100, "interval_s": 0.05})))
        living, stack.gateway = stack.gateway, dying
        await kill_gateway(stack)
        stack.gateway = living
        await asyncio.gather(first, return_exceptions=True)
    await stack.rows(FORGOTTEN)
    assert events_of((await retry).text)[-1] == "[DONE]"
    rows = await stack.usage(2)
    assert sum(row["charge_nano"] > 0 for row in rows) == 1
    assert len(stack.engine.requests) == 2


async def lose_the_settlement(stack: Stack, postgres: PostgresServer, body: dict[str, Any]) -> str:
    """A whole answer under a key reaches the client; its gateway dies before the charge is durable. The job's id."""
    async with stack.client() as client:
        text = ""
        async with client.stream("POST", PATH, json=body, headers={"idempotency-key": "k"}) as answer:
            async for part in answer.aiter_text():
                if not text:
                    await asyncio.to_thread(postgres.kill)
                text += part
    assert events_of(text)[-1] == "[DONE]"
    await kill_gateway(stack)
    await asyncio.to_thread(postgres.start)
    assert await stack.rows("SELECT 1 FROM usage") == []
    return answer.headers["x-request-id"]


async def test_a_charge_that_comes_back_from_a_receipt_is_not_repeated_by_a_retry(
    own_postgres: PostgresServer, redis_url: str, tmp_path: Path
) -> None:
    async with Stack(own_postgres.url(), redis_url) as stack:
        await stack.start_gateway(upstream=False)
        await stack.start_worker(
            "worker-1", stack.engine, COCOON_WORKER_STATE=str(tmp_path), COCOON_RECEIPT_GRACE_S="0.2"
        )
        body = chat(stream=True, script={"tokens": 12, "interval_s": 0.1})
        job = await lose_the_settlement(stack, own_postgres, body)
        await stack.start_gateway(upstream=False)
        await recovered(stack)
        await stack.rows(FORGOTTEN)
        refused = await post(stack, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "already_completed")
        assert refused.headers["x-cocoon-receipt"] == job
        [row] = await stack.rows("SELECT outcome, charge_nano FROM usage")
        assert (row["outcome"], row["charge_nano"] > 0) == ("completed", True)
        await stack.check_books()


async def test_a_retry_that_comes_before_the_receipt_pays_and_the_receipt_charges_nobody(
    own_postgres: PostgresServer, redis_url: str, tmp_path: Path
) -> None:
    async with Stack(own_postgres.url(), redis_url) as stack:
        await stack.start_gateway(upstream=False)
        state = {"COCOON_WORKER_STATE": str(tmp_path), "COCOON_RECEIPT_GRACE_S": "0.2"}
        worker = await stack.start_worker("worker-1", stack.engine, **state)
        body = chat(stream=True, script={"tokens": 12, "interval_s": 0.1})
        job = await lose_the_settlement(stack, own_postgres, body)
        worker.kill()  # and with it, for now, the receipt
        await asyncio.to_thread(worker.wait)
        await stack.start_gateway()
        await stack.rows(FORGOTTEN)
        answer = await post(stack, body)
        assert (answer.status_code, "x-cocoon-replayed" in answer.headers) == (200, False)
        await stack.usage(2)
        await stack.rows(
            "UPDATE leases SET expires_at = now() - interval '1 second' WHERE state = 'active' RETURNING 1"
        )
        stack.start("worker-2", ["worker"], {**os.environ, **worker_environment(stack), **state})
        await stack.until_true(lambda: stack.rows("SELECT kind, job_id FROM discrepancies"), lambda rows: rows)
        [found] = await stack.rows("SELECT kind, job_id, against_worker FROM discrepancies")
        assert tuple(found.values())[0::2] == ("other_attempt", False)
        assert str(found["job_id"]) == job
        rows = await stack.rows("SELECT job_id, charge_nano FROM usage WHERE charge_nano > 0")
        assert [str(row["job_id"]) for row in rows] == [answer.headers["x-request-id"]]


def worker_environment(stack: Stack) -> dict[str, str]:
    """The worker that died, again."""
    return {
        "COCOON_ENV": "development", "COCOON_GATEWAY_URL": f"http://127.0.0.1:{stack.port}",
        "COCOON_WORKER_KEY": stack.worker_key, "COCOON_WORKER_NAME": "worker-1", "COCOON_WORKER_LISTEN": "127.0.0.1:0",
        "COCOON_WORKER_CAPACITY": "64", "COCOON_ENGINE": stack.engine.url.removesuffix("/v1"),
        "COCOON_SERVED_MODEL": "scripted", "COCOON_CONTEXT_TOKENS": "8192", "COCOON_DRAIN_S": "5",
    }  # fmt: skip


async def test_without_postgres_requests_with_a_key_are_503_and_others_go_on(
    own_postgres: PostgresServer, redis_url: str
) -> None:
    async with Stack(own_postgres.url(), redis_url) as stack:
        await stack.start_gateway(COCOON_LEASE_IDLE_S="5")
        assert (await post(stack, chat(), "before")).status_code == 200
        running = asyncio.create_task(post(stack, chat(script={"tokens": 10, "interval_s": 0.1}), "during"))
        await until(lambda: len(stack.engine.requests) == 2)
        await asyncio.to_thread(own_postgres.kill)
        for key in ("before", "new"):
            refused = await post(stack, chat(), key)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "ledger_unavailable"
            assert "retry-after" in refused.headers
        for _ in range(5):
            assert (await post(stack, chat(), None)).status_code == 200
        assert (await running).status_code == 200
        await asyncio.to_thread(own_postgres.start)
        # What ended meanwhile is kept once the database is back.
        body = chat(script={"tokens": 10, "interval_s": 0.1})
        again = await stack.until_true(lambda: post(stack, body, "during"), lambda answer: answer.status_code == 200)
        assert (again.content, "x-cocoon-replayed" in again.headers) == ((await running).content, True)
        assert len(stack.engine.requests) == 7
        await stack.check_books()


async def test_a_gateway_that_is_told_to_stop_keeps_what_it_has_answered(stack: Stack) -> None:
    await stack.start_gateway()
    assert stack.gateway is not None
    body = chat(stream=True, script={"tokens": 20, "interval_s": 0.02})
    first = asyncio.create_task(post(stack, body))
    await until(lambda: stack.engine.requests and stack.engine.requests[0].sent_tokens > 3)
    stack.gateway.send_signal(signal.SIGTERM)
    answer = await first
    assert events_of(answer.text)[-1] == "[DONE]"
    assert await asyncio.to_thread(stack.gateway.wait, 20) == 0
    await stack.start_gateway()
    again = await post(stack, body)
    assert (again.content, again.headers["x-cocoon-replayed"]) == (answer.content, answer.headers["x-request-id"])
    await stack.check_books()


async def test_clients_that_repeat_until_they_have_an_answer_pay_once_for_each_key_through_kills(stack: Stack) -> None:
    await stack.start_gateway(processes=2, COCOON_REQUEST_S_MAX="5")
    assert stack.gateway is not None
    rng, keys = random.Random(11), [f"key-{number}" for number in range(12)]
    answers: dict[str, set[bytes]] = {key: set() for key in keys}

    async def insist(key: str) -> None:
        body = chat(stream=rng.random() < 0.5, user=key, script={"tokens": 10, "interval_s": 0.02})
        while True:
            try:
                async with asyncio.timeout(rng.choice([0.05, 20, 20])):
                    answer = await post(stack, body, key)
            except (httpx.HTTPError, TimeoutError):
                continue
            if answer.status_code == 200 and (not body["stream"] or b"[DONE]" in answer.content):
                answers[key].add(answer.content)
                if "x-cocoon-replayed" in answer.headers:
                    return
            elif answer.status_code == 409 and answer.json()["error"]["code"] in {"charged", "already_completed"}:
                return
            await asyncio.sleep(0.02)

    async def kill_and_forget() -> None:
        assert stack.gateway is not None
        for victim in (await serving(stack.gateway.pid))[:1]:
            os.kill(victim, signal.SIGKILL)
        while True:
            await asyncio.sleep(0.5)
            # Sixty seconds in a moment, for whoever is dead; the living renew at their next round at the latest.
            await stack.rows(FORGOTTEN)

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(insist(key)) for key in keys]
        await until(lambda: len(stack.engine.requests) > 4)
        killer = group.create_task(kill_and_forget())
        await asyncio.wait(clients)
        killer.cancel()
    charged = await stack.rows("SELECT count(*) AS n FROM usage WHERE charge_nano > 0")
    assert charged[0]["n"] <= len(keys)
    assert all(len(found) <= 1 for found in answers.values())
    await stack.rows("UPDATE leases SET expires_at = now() - interval '1 second' WHERE state = 'active' RETURNING 1")
    await stack.check_books()
