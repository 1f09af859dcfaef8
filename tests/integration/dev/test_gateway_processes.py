"""`cocoon gateway`: granian's processes as it really runs them, around a tiny application."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from click.testing import CliRunner

from cli.dev.address import free_port
from cli.main import main
from cli.process import is_alive, processes_marked

MARK = "COCOON_TEST_GATEWAY"

# Stands in for gateway.app: answers with its pid; `/slow` first says so on a pipe, then waits. With LOADING set it is
# not done loading before it is ended.
SERVER = """
import asyncio, os, sys, time, types
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await receive()
    if scope["path"] == "/slow":
        print("slow", flush=True)
        await asyncio.sleep(1)
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
module = types.ModuleType("gateway.app")
def create_app():
    if "COCOON_TEST_LOADING" in os.environ:
        os.write(1, b"loading\\n")
        while True:
            time.sleep(0.01)
    return app
module.create_app = create_app
sys.modules["gateway.app"] = module
from cli.main import main
main(["gateway"])
"""
ENVIRONMENT = {
    "COCOON_ENV": "development",
    "COCOON_NETWORK_SECRET": "00" * 32,
    "COCOON_DATABASE_URL": "postgresql://127.0.0.1:1/none",
    "COCOON_REDIS_URL": "redis://127.0.0.1:1/0",
    "COCOON_GATEWAY_PROCESSES": "2",
    "COCOON_DRAIN_S": "5",
}


class Gateway:
    """The main process and what can be asked of it."""

    def __init__(self, **environment: str) -> None:
        self.port = free_port()
        self.mark = f"{os.getpid()}-{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER],
            env={**os.environ, **ENVIRONMENT, "COCOON_PORT": str(self.port), MARK: self.mark, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pid(self, path: str = "/") -> int | None:
        """Of the process that answers a new connection; None while none does."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=60, trust_env=False)
        except httpx.TransportError:
            return None
        return int(answer.text)

    def pids(self) -> set[int]:
        """Of all processes that answer."""
        return {pid for pid in (self.pid() for _ in range(20)) if pid is not None}

    def processes(self) -> list[int]:
        return processes_marked(MARK, self.mark)

    def end(self) -> None:
        self.process.kill()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()
        until(lambda: self.processes() == [])


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def both(gateway: Gateway) -> set[int]:
    """The pids of both processes, once each of them has answered in one turn."""
    found: list[set[int]] = []

    def two() -> bool:
        found.append(gateway.pids())
        return len(found[-1]) == 2

    until(two)
    return found[-1]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    try:
        until(lambda: len(gateway.pids()) == 2)
        yield gateway
    finally:
        gateway.end()


def test_a_killed_process_comes_back_while_the_other_one_serves(gateway: Gateway) -> None:
    dead, other = sorted(both(gateway))
    os.kill(dead, signal.SIGKILL)
    until(lambda: not is_alive(dead))
    until(lambda: gateway.pid() == other)
    assert other in both(gateway)
    assert gateway.process.poll() is None


def test_processes_end_with_a_killed_main_process_and_free_the_port(gateway: Gateway) -> None:
    gateway.process.kill()
    gateway.process.wait()
    until(lambda: gateway.processes() == [])
    with socket.create_server(("127.0.0.1", gateway.port)):
        pass


def test_processes_that_still_load_the_application_end_with_a_killed_main_process() -> None:
    gateway = Gateway(COCOON_TEST_LOADING="1")
    try:
        assert gateway.process.stdout is not None
        # Lines of several processes may run into each other.
        loading = 0
        while loading < 2:
            line = gateway.process.stdout.readline()
            assert line, "it ended"
            loading += line.count("loading")
        gateway.process.kill()
        until(lambda: gateway.processes() == [])
    finally:
        gateway.end()


def test_sigterm_lets_a_running_request_finish_and_leaves_nothing(gateway: Gateway) -> None:
    answers: list[int | None] = []
    request = threading.Thread(target=lambda: answers.append(gateway.pid("/slow")))
    request.start()
    assert gateway.process.stdout is not None
    assert any(line == "slow\n" for line in gateway.process.stdout)
    gateway.process.send_signal(signal.SIGTERM)
    request.join(60)
    assert len(answers) == 1
    assert answers != [None]
    assert gateway.process.wait(60) == 0
    assert gateway.processes() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("COCOON_NETWORK_SECRET", "zz"), ("COCOON_DRAIN_S", "soon"), ("COCOON_GATEWAY_PROCESSES", "0")],
)
def test_a_malformed_setting_stops_the_start_and_is_named(name: str, value: str) -> None:
    result = CliRunner().invoke(main, ["gateway"], env=ENVIRONMENT | {name: value})
    assert result.exit_code != 0
    assert name in result.output
