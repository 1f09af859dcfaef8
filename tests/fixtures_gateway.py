"""A real gateway (`cocoon gateway`, its own processes) on a real Postgres and Redis, with engines a test can script."""

import asyncio
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import asyncpg
import httpx
import pytest

from billing.postgres.account import Accounts
from billing.postgres.check import broken_invariants
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import connect, open_pool
from billing.postgres.prices import set_model, set_price
from billing.pricing import ModelTerms
from cli.dev.address import free_port
from cocoon.clock import SystemClock
from cocoon.ids import API_KEY_PREFIX, WORKER_KEY_PREFIX, new_job_id, new_secret_key
from cocoon.money import Amount, Price
from gateway.auth import Role
from gateway.postgres.keys import KeySpec, KeyStore
from tests.scripted_engine import ScriptedEngine

MODEL = "scripted"
NETWORK_SECRET = "11" * 32
START_S_MAX = 60.0
STOP_S_MAX = 60.0
CREDIT_NANO = 10**9
PRICE = Price(version=1, prompt=1_000_000, cached=500_000, completion=2_000_000, share_bps=9_000)
_LIBC = ctypes.CDLL(None)


class Stack:
    """Gateways, agents and engines around one database; everything it starts ends with it."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self.endpoints: list[str] | None = None
        self.database_url = database_url
        self.redis_url = redis_url
        self.api_key = new_secret_key(API_KEY_PREFIX, random.SystemRandom())
        self.worker_key = new_secret_key(WORKER_KEY_PREFIX, random.SystemRandom())
        self.customer_id = uuid.UUID(int=0)
        self.key_id = uuid.UUID(int=0)
        self.port = free_port()
        self.engine = ScriptedEngine()
        self.gateway: subprocess.Popen[bytes] | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs = Path(tempfile.mkdtemp(prefix="cocoon-stack-"))
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        # What is entered last ends first: engines, then processes, then what they wrote.
        self._stack.callback(shutil.rmtree, self._logs)
        self._stack.push_async_callback(self._end_processes)
        try:
            await self._stack.enter_async_context(self.engine)
            await self.seed()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _stopping(self) -> int:
        """Gateway processes that have begun to stop and not ended in order, those that a test has killed included."""
        logs = [path.read_text() for path in self._logs.glob("*.log")]
        return sum(log.count('"drain_began"') - log.count('"gateway_stopped"') for log in logs)

    async def _end_processes(self) -> None:
        stopping = await self._stopping()
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                await asyncio.to_thread(process.wait, STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # granian kills who hangs, and would be the only one to notice.
        await self.until_true(self._stopping, lambda count: count <= stopping)

    # Books

    async def seed(self, credit_nano: int = CREDIT_NANO) -> None:
        """A model with a price, a customer with credit and a key, and a worker key."""
        async with open_pool(self.database_url, application="test") as pool:
            await set_model(pool, ModelTerms(model=MODEL, context_tokens=8192, default_max_completion=1024))
            await set_price(
                pool, MODEL, prompt=PRICE.prompt, cached=PRICE.cached, completion=PRICE.completion,
                share_bps=PRICE.share_bps,
            )  # fmt: skip
            store, accounts = KeyStore(pool, random.SystemRandom()), Accounts(pool)
            self.customer_id = await accounts.open_customer(uuid.uuid4(), "customer")
            operator = await accounts.open_customer(uuid.uuid4(), "operator")
            self.key_id = await store.seed(self.api_key, KeySpec(customer_id=self.customer_id, name="test"))
            await store.seed(self.worker_key, KeySpec(customer_id=operator, name="workers", role=Role.WORKER))
            if credit_nano:
                await self.deposit(credit_nano)

    async def deposit(self, nano: int, customer_id: uuid.UUID | None = None) -> None:
        async with open_pool(self.database_url, application="test") as pool, PostgresLedger(pool) as ledger:
            transfer = new_job_id(SystemClock(), random.SystemRandom())
            await ledger.deposit(transfer, customer_id or self.customer_id, Amount(nano))

    async def new_key(self, credit_nano: int = CREDIT_NANO, **limits: Any) -> str:
        """A key of a new customer with this credit and these limits."""
        async with open_pool(self.database_url, application="test") as pool:
            customer_id = await Accounts(pool).open_customer(uuid.uuid4(), f"c-{uuid.uuid4()}")
            made = await KeyStore(pool, random.SystemRandom()).create(
                KeySpec(customer_id=customer_id, name="test", **limits)
            )
        if credit_nano:
            await self.deposit(credit_nano, customer_id)
        key = made.secret
        await self.until_known(key)
        return key

    async def until_known(self, key: str) -> None:
        """Wait until every gateway process has heard of the key (asked often enough to have met each)."""
        async with self.client(key) as client:
            for _ in range(8):
                await self.until_true(
                    lambda: client.get("/v1/models", headers={"connection": "close"}),
                    lambda answer: answer.status_code == 200,
                )

    async def until_true(self, ask: Any, judge: Any, deadline_s: float = 60.0) -> Any:
        end = time.monotonic() + deadline_s
        while True:
            with contextlib.suppress(httpx.HTTPError, OSError, asyncpg.PostgresError):
                answer = await ask()
                if judge(answer):
                    return answer
            assert time.monotonic() < end, f"did not come true in time; gateway said:\n{self.log()}"
            await asyncio.sleep(0.02)

    async def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    async def usage(self, count: int = 1) -> list[asyncpg.Record]:
        """The usage rows in order of their jobs, once there are `count`."""
        query = "SELECT * FROM usage ORDER BY job_id"
        return await self.until_true(lambda: self.rows(query), lambda rows: len(rows) >= count)

    async def until_settled(self) -> None:
        """Wait until every lease has gone back: nothing is reserved, and nothing waits in a journal."""
        query = "SELECT lease_id FROM leases WHERE state = 'active' UNION ALL SELECT id FROM open_holds"
        await self.until_true(lambda: self.rows(query), lambda rows: not rows)

    async def expire_leases(self, pid: int) -> None:
        """Bring forward the end of what a killed process had leased."""
        await self.rows(
            "UPDATE leases SET expires_at = now() - interval '1 second' WHERE state = 'active'"
            " AND split_part(holder, '/', 2) = $1 RETURNING 1",
            str(pid),
        )

    async def check_books(self) -> None:
        """Every invariant holds, and nothing is still held."""
        await self.until_settled()
        async with connect(self.database_url, application="test") as connection:
            assert await broken_invariants(connection) == []

    # Processes

    async def start_gateway(self, *, processes: int = 1, upstream: bool = True, **environment: str) -> None:
        settings = self.gateway_environment(self.port, processes=processes, upstream=upstream) | environment
        self.gateway = self.start("gateway", ["gateway"], settings)
        async with self.client() as client:
            await self.until_true(
                lambda: client.get("/v1/models"), lambda answer: answer.status_code == 200 and answer.json()["data"]
            )

    def gateway_environment(self, port: int, *, processes: int = 1, upstream: bool = True) -> dict[str, str]:
        upstreams: list[dict[str, Any]] = [
            {"name": "engine", "url": self.engine.url, "models": {MODEL: MODEL}, "context_tokens": 8192}
        ]
        if self.endpoints is not None:
            upstreams[0]["endpoints"] = self.endpoints
        return {
            "COCOON_ENV": "development", "COCOON_DATABASE_URL": self.database_url, "COCOON_REDIS_URL": self.redis_url,
            "COCOON_PORT": str(port), "COCOON_GATEWAY_PROCESSES": str(processes),
            "COCOON_NETWORK_SECRET": NETWORK_SECRET, "COCOON_ALLOW_PRIVATE_WORKERS": "1", "COCOON_DRAIN_S": "5",
            "COCOON_LEASE_IDLE_S": "0.2", "COCOON_UPSTREAMS": json.dumps(upstreams if upstream else []),
        }  # fmt: skip

    def worker_environment(self, name: str, engine: ScriptedEngine) -> dict[str, str]:
        return {
            "COCOON_ENV": "development", "COCOON_GATEWAY_URL": f"http://127.0.0.1:{self.port}",
            "COCOON_WORKER_KEY": self.worker_key, "COCOON_WORKER_NAME": name, "COCOON_WORKER_LISTEN": "127.0.0.1:0",
            "COCOON_WORKER_CAPACITY": "64", "COCOON_ENGINE": engine.url.removesuffix("/v1"),
            "COCOON_SERVED_MODEL": MODEL, "COCOON_CONTEXT_TOKENS": "8192", "COCOON_DRAIN_S": "5",
            "COCOON_SERVED_ENDPOINTS": ",".join(self.endpoints or ()),
        }  # fmt: skip

    async def start_worker(self, name: str, engine: ScriptedEngine, **environment: str) -> subprocess.Popen[bytes]:
        """A real agent in front of a scripted engine, once the gateway routes to it."""
        process = self.start(name, ["worker"], self.worker_environment(name, engine) | environment)
        await self.until_workers(sum(1 for p in self._processes if p.poll() is None) - 1)
        return process

    async def until_workers(self, count: int) -> None:
        """Wait until every gateway process routes to `count` workers (asked often enough to have met each)."""
        streak = 0
        async with self.client() as client:
            end = time.monotonic() + 60
            while streak < 8:
                assert time.monotonic() < end, f"workers did not arrive:\n{self.log()}"
                with contextlib.suppress(httpx.HTTPError):
                    # A new connection each time, so that every process is asked.
                    facts = (await client.get("/readyz", headers={"connection": "close"})).json()
                    streak = streak + 1 if facts.get("workers") == count else 0
                await asyncio.sleep(0.02)

    def start(self, name: str, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
                cwd=Path(__file__).parent.parent, preexec_fn=_die_with_parent,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def log(self, name: str = "gateway", characters: int | None = 4000) -> str:
        """The end of what a process wrote, or all of it."""
        path = self._logs / f"{name}.log"
        return path.read_text()[-(characters or 0) :] if path.exists() else ""

    # Clients

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False,
            headers={"authorization": f"Bearer {key or self.api_key}"},
        )  # fmt: skip


def chat(stream: bool = False, script: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    """A request whose prompt scripts the engine."""
    content = json.dumps(script) if script is not None else "hello"
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": stream, **members}


def events_of(text: str) -> list[Any]:
    """The decoded `data:` payloads of a stream; "[DONE]" as it is."""
    payloads = [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def content_of(events: list[Any]) -> str:
    """The text of a stream."""
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", [])
    )


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    """A stack without a gateway yet: the test starts what it needs."""
    async with Stack(database_url, redis_url) as made:
        yield made


@pytest.fixture
async def gateway(stack: Stack) -> Stack:
    """A stack with one gateway process before a plain upstream."""
    await stack.start_gateway()
    return stack
