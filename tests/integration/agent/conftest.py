import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.fake_engine import FakeEngine
from tests.integration.agent.fake_gateway import WORKER_KEY, FakeGateway, Peer, until

STOP_S = 60.0


class AgentProcess:
    """`cocoon worker` as an operator runs it."""

    def __init__(self, process: asyncio.subprocess.Process, gateway: FakeGateway, log: Path) -> None:
        self.process = process
        self.gateway = gateway
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def peer(self) -> Peer:
        await until(lambda: self.gateway.enrolments or self.process.returncode is not None)
        assert self.process.returncode is None, self.output
        return Peer(self.gateway.enrolments[-1])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def exited(self) -> int:
        async with asyncio.timeout(STOP_S):
            return await self.process.wait()


Launch = Callable[..., Awaitable[AgentProcess]]


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as served:
        yield served


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as served:
        yield served


@pytest.fixture
async def launch(gateway: FakeGateway, tmp_path: Path) -> AsyncIterator[Launch]:
    started: list[AgentProcess] = []

    async def start(**variables: Any) -> AgentProcess:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("COCOON_", "OTEL_"))}
        environ |= {
            "COCOON_ENV": "development", "COCOON_GATEWAY_URL": gateway.url, "COCOON_WORKER_KEY": WORKER_KEY,
            "COCOON_SERVED_MODEL": "fake", **{name: str(value) for name, value in variables.items()},
        }  # fmt: skip
        log = tmp_path / f"agent-{len(started)}.log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cli.main", "worker", env=environ, stdout=file, stderr=file
            )
        agent = AgentProcess(process, gateway, log)
        started.append(agent)
        return agent

    yield start
    for agent in started:
        if agent.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                agent.process.kill()
            await agent.process.wait()


@pytest.fixture
async def peer(launch: Launch, engine: FakeEngine) -> Peer:
    """An agent before the fake engine, enrolled."""
    agent = await launch(COCOON_ENGINE=engine.url)
    return await agent.peer()
