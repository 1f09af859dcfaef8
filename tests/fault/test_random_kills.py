"""SIGKILL at random points under load: gateways, the agent, Redis, Postgres. The books must tie out after every round.

`COCOON_FAULT_ROUNDS` says how often (`make test-faults`: 200), `COCOON_FAULT_SEED` which kills: victims, moments and
requests come from it, what the processes were doing then does not. Time is helped along in one way only: what a dead
gateway had leased, and later what lies in recovery, is made to be due.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from billing.postgres.check import broken_invariants
from billing.postgres.leases import PostgresLeases
from billing.postgres.pool import connect, open_pool
from cli.dev.address import free_port
from tests.fault.balancer import Balancer
from tests.fixtures_gateway import CREDIT_NANO, Stack, chat
from tests.fixtures_postgres import PostgresServer
from tests.fixtures_redis import RedisServer

ROUNDS = int(os.environ.get("COCOON_FAULT_ROUNDS", "3"))
SEED = int(os.environ.get("COCOON_FAULT_SEED", "0")) or random.SystemRandom().getrandbits(32)
PATH = "/v1/chat/completions"
CLIENTS = 6
RECOVERY_S = 900.0
RECOVERED_S_MAX = 60.0
JOURNALED_S_MAX = 5.0
"""How long a settled row may still be in memory, with Postgres away."""
VICTIMS = ("gateway-0", "gateway-1", "worker", "redis", "postgres")
RESTART_ORDER = ("postgres", "redis", "gateway-0", "gateway-1", "worker")
"""What others need to start comes first; a supervisor would try until it is there."""
EXPIRE = (
    "UPDATE leases SET expires_at = now() - interval '1 second' WHERE state = 'active'"
    " AND split_part(holder, '/', 2) = ANY($1::text[]) RETURNING 1"
)
RETURN = "UPDATE leases SET returns_at = now() - interval '1 second' WHERE state = 'recovering' RETURNING 1"


class Site:
    """Two gateways behind one address, an agent with its receipts on disk, and what they stand on."""

    def __init__(self, stack: Stack, postgres: PostgresServer, redis: RedisServer, state: Path) -> None:
        self.stack = stack
        self.postgres = postgres
        self.redis = redis
        self.ports = [free_port(), free_port()]
        self.completed: set[uuid.UUID] = set()
        self.broken: dict[uuid.UUID, float] = {}
        self.answers: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self._state = state
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._dead: list[str] = []
        self._gateways_died: list[float] = []

    async def start(self, name: str) -> None:
        match name:
            case "postgres":
                await asyncio.to_thread(self.postgres.start)
            case "redis":
                await asyncio.to_thread(self.redis.start)
            case "worker":
                settings = self.stack.worker_environment("worker-1", self.stack.engine)
                settings |= {"COCOON_WORKER_STATE": str(self._state), "COCOON_RECEIPT_GRACE_S": "0.2"}
                self._processes[name] = self.stack.start(name, ["worker"], settings)
            case _:
                port = self.ports[int(name.rpartition("-")[2])]
                settings = self.stack.gateway_environment(port, upstream=False)
                self._processes[name] = self.stack.start(name, ["gateway"], settings)

    async def kill(self, name: str) -> None:
        """SIGKILL everything that the part consists of, at one moment."""
        self.killed[name] += 1
        if name == "postgres":
            await asyncio.to_thread(self.postgres.kill)
        elif name == "redis":
            await asyncio.to_thread(self.redis.kill)
        else:
            process = self._processes.pop(name)
            pids = _tree(process.pid)
            for signal_number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal_number)
            await asyncio.to_thread(process.wait)
            self._dead += [str(pid) for pid in pids]
            if name != "worker":
                self._gateways_died.append(time.monotonic())

    async def until_serving(self) -> None:
        """Until both gateways route to the agent."""
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            for port in self.ports:
                await self.stack.until_true(
                    lambda port=port: client.get(f"http://127.0.0.1:{port}/readyz"),
                    lambda answer: answer.status_code == 200 and answer.json()["workers"] == 1,
                    deadline_s=RECOVERED_S_MAX,
                )

    async def spend(self, dice: random.Random, stop: asyncio.Event) -> None:
        """One client after the other, some of which leave early, until told to stop."""
        async with self.stack.client() as client:
            while not stop.is_set():
                script = {"tokens": dice.randint(1, 8), "interval_s": 0.004, "first_s": 0.01 * dice.random()}
                leaves_after = dice.randint(0, 3) if dice.random() < 0.15 else None
                try:
                    await self._ask(client, chat(stream=dice.random() < 0.7, script=script), leaves_after)
                except httpx.HTTPError as error:
                    self.answers[type(error).__name__] += 1
                    # Nobody listens just now; the others need the processor.
                    await asyncio.sleep(0.01)

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, object], leaves_after: int | None) -> None:
        async with client.stream("POST", PATH, json=body, headers={"connection": "close"}) as answer:
            self.answers[str(answer.status_code)] += 1
            job_id = uuid.UUID(answer.headers["x-request-id"])
            if answer.status_code != 200:
                await answer.aread()
                self.broken[job_id] = time.monotonic()
                return
            if not body["stream"]:
                await answer.aread()
                self.completed.add(job_id)
                return
            events = 0
            async for line in answer.aiter_lines():
                events += 1
                if leaves_after is not None and events > leaves_after:
                    return
                if line == "data: [DONE]":
                    self.completed.add(job_id)
                elif line.startswith('data: {"error"'):
                    self.broken[job_id] = time.monotonic()

    async def recover(self, accounted: set[uuid.UUID]) -> None:
        """Wait until every answer that a client saw whole is in the books, exactly once."""
        deadline = time.monotonic() + RECOVERED_S_MAX
        async with open_pool(self.stack.database_url, application="test", connections_max=2) as pool:
            store = PostgresLeases(pool, self.stack.database_url)
            while True:
                await self.stack.rows(EXPIRE, self._dead)
                await store.sweep(500, RECOVERY_S)
                missing = self.completed - accounted
                rows = await self.stack.rows(
                    "SELECT job_id, outcome FROM usage WHERE job_id = ANY($1::uuid[]) AND outcome <> 'broken'",
                    list(missing),
                )
                charged = Counter(row["job_id"] for row in rows)
                assert not charged or max(charged.values()) == 1, "a job was charged twice"
                assert {row["outcome"] for row in rows} <= {"completed"}
                accounted |= set(charged)
                if missing <= accounted:
                    break
                assert time.monotonic() < deadline, await self._lost(missing - accounted)
                await asyncio.sleep(0.1)
            # What nobody has claimed goes back to the customer, receipts that are still under way or not.
            await self.stack.rows(RETURN)
            await store.sweep(500, RECOVERY_S)

    async def check(self) -> None:
        async with connect(self.stack.database_url, application="test") as connection:
            assert await broken_invariants(connection) == []
        # A gateway that died right after telling a client may have taken its word with it.
        told = [
            job_id
            for job_id, at in self.broken.items()
            if not any(at <= died < at + JOURNALED_S_MAX for died in self._gateways_died)
        ]
        paid = await self.stack.rows(
            "SELECT job_id, outcome FROM usage WHERE job_id = ANY($1::uuid[]) AND numerator > 0", told
        )
        assert paid == [], "charged for what the client was told had failed"
        refused = await self.stack.rows("SELECT job_id, reason FROM refused_usage")
        assert refused == []
        kinds = {row["kind"] for row in await self.stack.rows("SELECT DISTINCT kind FROM discrepancies")}
        # What interruptions explain. Nobody lied here, and the customer could always pay.
        assert kinds <= {"client_left", "broken", "other_attempt", "hold_released", "unfinished"}

    async def _lost(self, jobs: set[uuid.UUID]) -> str:
        found = await self.stack.rows("SELECT * FROM discrepancies WHERE job_id = ANY($1::uuid[])", list(jobs))
        logs = "\n".join(f"{name}:\n{self.stack.log(name)}" for name in ("gateway-0", "gateway-1", "worker"))
        return f"answers that nobody charged: {jobs}\ndiscrepancies: {found}\n{logs}"


async def one_round(site: Site, dice: random.Random) -> list[str]:
    """Load, kills, restarts; the load goes on until everything serves again. Returns who was killed."""
    stop = asyncio.Event()
    victims = dice.sample(VICTIMS, dice.choice([1, 1, 1, 2, 2, 3]))
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(site.spend(random.Random(dice.getrandbits(64)), stop))
        goal = len(site.completed) + dice.randint(5, 40)
        await site.stack.until_true(_value(lambda: len(site.completed)), lambda count: count >= goal)
        for victim in victims:
            await asyncio.sleep(dice.choice([0.0, 0.1]) * dice.random())
            await site.kill(victim)
        await asyncio.sleep(dice.random() * 0.5)
        for name in RESTART_ORDER:
            if name in victims:
                await site.start(name)
        await site.until_serving()
        goal = len(site.completed) + dice.randint(1, 20)
        await site.stack.until_true(_value(lambda: len(site.completed)), lambda count: count >= goal)
        stop.set()
    return list(victims)


@pytest.mark.timeout(120 + 60 * ROUNDS)
async def test_whatever_is_killed_every_whole_answer_is_charged_once_and_the_books_tie_out(
    own_postgres: PostgresServer, own_redis: RedisServer, tmp_path: Path
) -> None:
    say(f"COCOON_FAULT_SEED={SEED} COCOON_FAULT_ROUNDS={ROUNDS}")
    dice = random.Random(SEED)
    async with Stack(own_postgres.url(), own_redis.url) as stack:
        site = Site(stack, own_postgres, own_redis, tmp_path)
        async with Balancer(stack.port, site.ports, dice):
            for name in ("gateway-0", "gateway-1", "worker"):
                await site.start(name)
            await site.until_serving()
            accounted: set[uuid.UUID] = set()
            for number in range(ROUNDS):
                began = time.monotonic()
                victims = await one_round(site, dice)
                await site.recover(accounted)
                await site.check()
                seconds = time.monotonic() - began
                say(f"round {number}: killed {' '.join(victims)}; {len(accounted)} answers charged; {seconds:.1f} s")
            await until_everything_returned(site)
        say(f"killed {dict(site.killed)}; clients saw {dict(site.answers)}; {await what_was_recovered(stack)}")


async def until_everything_returned(site: Site) -> None:
    """With nobody left to spend it, all that was not charged is the customer's again."""
    stack = site.stack
    async with open_pool(stack.database_url, application="test", connections_max=2) as pool:
        store = PostgresLeases(pool, stack.database_url)

        async def returned() -> list[object]:
            await stack.rows(RETURN)
            await store.sweep(500, RECOVERY_S)
            return [*await stack.rows("SELECT 1 FROM leases WHERE state <> 'closed'")]

        await stack.until_true(returned, lambda rows: not rows)
    await stack.check_books()
    [sums] = await stack.rows(
        "SELECT (SELECT sum(credits_posted - debits_posted - debits_pending) FROM accounts"
        " WHERE owner = $1 AND kind = 'customer_available') AS left,"
        " (SELECT sum(charge_nano) FROM usage) AS spent, (SELECT sum(lost_nano) FROM recoveries) AS lost",
        stack.customer_id,
    )
    assert sums["left"] + sums["spent"] - (sums["lost"] or 0) == CREDIT_NANO


async def what_was_recovered(stack: Stack) -> str:
    charged = sum(stack.log(name, None).count('"charge_recovered"') for name in ("gateway-0", "gateway-1"))
    rows = await stack.rows("SELECT kind, count(*) AS n FROM discrepancies GROUP BY kind ORDER BY kind")
    return f"{charged} charged from receipts; discrepancies { ({row['kind']: row['n'] for row in rows}) }"


def _tree(pid: int) -> list[int]:
    """A process and everything under it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += _tree(int(child))
    return found


def _value(ask: Callable[[], int]) -> Callable[[], Awaitable[int]]:
    async def answer() -> int:
        return ask()

    return answer


def say(line: str) -> None:
    """Shown by `make test-faults`, and by pytest when the test fails."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
