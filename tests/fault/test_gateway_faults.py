"""The gateway's own faults: its database restarts, it is told to stop, one of its processes is killed."""

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import httpx

from tests.fixtures_gateway import Stack, chat, events_of
from tests.fixtures_postgres import PostgresServer
from tests.scripted_engine import until

PATH = "/v1/chat/completions"


async def load(stack: Stack, statuses: Counter[int], stop: asyncio.Event) -> None:
    """Requests one after the other until told to stop."""
    async with stack.client() as client:
        while not stop.is_set():
            try:
                answer = await client.post(PATH, json=chat(script={"first_s": 0.005}))
                statuses[answer.status_code] += 1
            except httpx.HTTPError:
                statuses[0] += 1


async def test_postgres_restarted_under_load_gives_503s_then_recovery_and_balanced_books(
    own_postgres: PostgresServer, redis_url: str
) -> None:
    async with Stack(own_postgres.url(), redis_url) as stack:
        # Leases carry requests through a short outage; these end soon, so that the outage shows.
        await stack.start_gateway(COCOON_LEASE_TTL_S="1")
        statuses: Counter[int] = Counter()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(load(stack, statuses, stop))
            await until(lambda: statuses[200] > 20)
            await asyncio.to_thread(own_postgres.kill)
            await until(lambda: statuses[503] > 10)
            served_before = statuses[200]
            await asyncio.to_thread(own_postgres.start)
            await until(lambda: statuses[200] > served_before + 50)
            stop.set()
        assert set(statuses) <= {200, 503}
        await stack.check_books()
        # Whoever had an answer is in the books, exactly once.
        rows = await stack.rows("SELECT outcome, count(*) AS n FROM usage GROUP BY outcome")
        assert {row["outcome"]: row["n"] for row in rows} == {"completed": statuses[200]}


async def test_sigterm_under_load_finishes_streams_and_settles_every_one(stack: Stack) -> None:
    await stack.start_gateway(COCOON_DRAIN_S="10")
    assert stack.gateway is not None
    async with stack.client() as client:
        streams = [
            asyncio.create_task(client.post(PATH, json=chat(stream=True, script={"tokens": 50, "interval_s": 0.02})))
            for _ in range(10)
        ]
        await until(lambda: len(stack.engine.requests) == 10 and all(r.sent_tokens for r in stack.engine.requests))
        stack.gateway.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*streams)
    assert all(events_of(answer.text)[-1] == "[DONE]" for answer in answers)
    assert await asyncio.to_thread(stack.gateway.wait, 20) == 0
    rows = await stack.rows("SELECT outcome, completion_tokens FROM usage")
    assert [(row["outcome"], row["completion_tokens"]) for row in rows] == [("completed", 50)] * 10
    assert await stack.rows("SELECT 1 FROM open_holds") == []
    await stack.check_books()


async def test_streams_longer_than_the_drain_end_as_broken_and_cost_nothing(stack: Stack) -> None:
    await stack.start_gateway(COCOON_DRAIN_S="0.5")
    assert stack.gateway is not None
    async with stack.client() as client:
        stream = asyncio.create_task(
            client.post(PATH, json=chat(stream=True, script={"tokens": 2000, "interval_s": 0.02}))
        )
        await until(lambda: stack.engine.requests and stack.engine.requests[0].sent_tokens)
        stack.gateway.send_signal(signal.SIGTERM)
        events = events_of((await stream).text)
    assert "[DONE]" not in events
    assert events[-1]["error"]["type"] == "server_error"
    await asyncio.to_thread(stack.gateway.wait, 20)
    rows = await stack.rows("SELECT outcome, charge_nano FROM usage")
    assert [(row["outcome"], row["charge_nano"]) for row in rows] == [("broken", 0)]
    await stack.check_books()


async def test_one_of_two_processes_killed_the_other_serves_on_and_the_dead_one_returns(stack: Stack) -> None:
    await stack.start_gateway(processes=2)
    assert stack.gateway is not None
    main = stack.gateway.pid
    await stack.until_true(lambda: serving(main), lambda pids: len(pids) == 2)
    victim = (await serving(main))[0]
    os.kill(victim, signal.SIGKILL)
    for _ in range(10):
        async with stack.client() as client:
            answer = await stack.until_true(
                lambda client=client: client.post(PATH, json=chat()), lambda answer: answer.status_code == 200
            )
            assert answer.status_code == 200
    pids = await stack.until_true(lambda: serving(main), lambda pids: len(pids) == 2 and victim not in pids)
    assert len(pids) == 2
    await stack.expire_leases(victim)
    await stack.check_books()


async def serving(main: int) -> list[int]:
    """The server processes under granian's main process."""
    found: list[int] = []
    for task in Path(f"/proc/{main}/task").glob("*/children"):
        for child in task.read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"resource_tracker" not in command:
                found.append(int(child))
    return found


async def test_a_storm_of_requests_disconnects_and_kills_ties_out_to_the_nano(stack: Stack) -> None:
    await stack.start_gateway(processes=2, upstream=False, COCOON_REQUEST_S_MAX="5")
    second = await stack._stack.enter_async_context(type(stack.engine)())
    await stack.start_worker("worker-1", stack.engine)
    worker = await stack.start_worker("worker-2", second)
    assert stack.gateway is not None
    rng = random.Random(7)

    async def one() -> None:
        script = {"tokens": rng.randint(1, 30), "interval_s": 0.003, "first_s": rng.random() * 0.05}
        if rng.random() < 0.1:
            script["die_after"] = rng.randint(0, 5)
        body = chat(stream=rng.random() < 0.7, script=script)
        async with stack.client() as client:
            try:
                async with asyncio.timeout(rng.choice([0.02, 0.08, 20])):
                    await client.post(PATH, json=body)
            except (httpx.HTTPError, TimeoutError):
                return

    stop = asyncio.Event()

    async def storm() -> None:
        # However fast requests are refused while breakers are open, some of them arrive after every kill.
        while not stop.is_set():
            await one()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(storm())
        await until(lambda: len(stack.engine.requests) + len(second.requests) > 60)
        worker.send_signal(signal.SIGKILL)
        seen = len(stack.engine.requests)
        await until(lambda: len(stack.engine.requests) > seen + 40)
        victim = (await serving(stack.gateway.pid))[0]
        os.kill(victim, signal.SIGKILL)
        seen = len(stack.engine.requests)
        await until(lambda: len(stack.engine.requests) > seen + 40)
        stop.set()
    await asyncio.to_thread(worker.wait)
    # What the killed process had leased expires by the database's clock; bring that moment forward.
    await stack.expire_leases(victim)
    await stack.check_books()
    [proof] = await stack.rows(
        "SELECT (SELECT sum(debits_posted) - sum(credits_posted) FROM accounts) AS imbalance,"
        " (SELECT sum(charge_nano) FROM usage)"
        " - (SELECT coalesce(sum(amount), 0) FROM transfers WHERE code = 'charge') AS gap"
    )
    assert (proof["imbalance"], proof["gap"]) == (0, 0)
