"""`cocoon dev` as tests run it: in a state directory of its own, on a port of its own, ended by pid."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx

from cli.dev.address import free_port
from cli.dev.placement import remove_placement
from cli.dev.state import StateDirectory
from cli.dev.supervisor import MARKER
from cli.process import processes_in, processes_marked
from tests.fixtures_postgres import run_apart

MODEL = "smollm2-135m-instruct"
READY_S = 150.0
STOP_S = 60.0
KNOWN_S = 60.0
PROCESSES_ASKED = 12
"""Answers in a row, each on a new connection, after which every gateway process has most likely been asked."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Dev:
    """One `cocoon dev` at a time in one state directory."""

    def __init__(self, place: Path) -> None:
        self.state = StateDirectory(place / ".cocoon")
        self.port = free_port()
        self.output = place / "output"
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "cli.main", "dev"],
                env={
                    **clean_environment(),
                    "COCOON_STATE_DIR": str(self.state.root),
                    "COCOON_PORT": str(self.port),
                    "COCOON_DRAIN_S": "5",
                    "COCOON_EPOCH_S": "5",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def start(self) -> dict[str, Any]:
        """Start and return `dev.json` once it is there."""
        process = self.process = self.spawn()
        until(lambda: (self.state.root / "dev.json").exists() or process.poll() is not None, READY_S, self.diagnose)
        assert process.poll() is None, self.diagnose()
        return self.facts()

    def facts(self) -> dict[str, Any]:
        return json.loads((self.state.root / "dev.json").read_text())

    def interrupt(self) -> int:
        """What Ctrl-C in a terminal does; the exit status."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOP_S)

    def left(self) -> list[int]:
        """Processes of this network that still live; PostgreSQL hides its environment but not its directory."""
        marked = processes_marked(MARKER, self.state.mark)
        return marked + processes_in(self.state.root / "postgres" / "data")

    def diagnose(self) -> str:
        logs = "".join(
            f"\n--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in self.state.logs.glob("*.log")
        )
        return self.output.read_text()[-3000:] + logs

    def close(self) -> None:
        """End whatever still runs; a supervisor's death ends its services."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        until(lambda: not self.left(), STOP_S, lambda: f"left: {self.left()}")


class MadeKey(NamedTuple):
    """What `cocoon keys create` answered."""

    secret: str
    id: uuid.UUID


class Network:
    """A running `cocoon dev` and what its operator can do: make keys, look into the books."""

    def __init__(self, dev: Dev, facts: dict[str, Any]) -> None:
        self.dev = dev
        self.base_url: str = facts["base_url"]
        self.api_key: str = facts["api_key"]
        self._dsn: str = facts["postgres_dsn"]

    def new_key(self, *options: str) -> MadeKey:
        """A key of a new customer by `cocoon keys create`, once every gateway process knows it."""
        done = self._keys("create", "--customer", f"customer-{uuid.uuid4()}", "--name", "test", *options)
        key = MadeKey(done.stdout.strip(), uuid.UUID(done.stderr.split()[1]))
        self._until_answered(key.secret, 200)
        return key

    def revoke(self, key: MadeKey) -> None:
        """`cocoon keys revoke`, once every gateway process refuses the key."""
        self._keys("revoke", str(key.id))
        self._until_answered(key.secret, 401)

    def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        async def fetch() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self._dsn)
            try:
                return await connection.fetch(query, *arguments)
            finally:
                await connection.close()

        return run_apart(fetch())

    def usage(self, job_id: str) -> asyncpg.Record:
        """The usage row of a request, by its `x-request-id`, once it is settled."""
        return self._until_row("SELECT * FROM usage WHERE job_id = $1", job_id)

    def usage_of(self, key: MadeKey) -> asyncpg.Record:
        """The usage row of the only request of a key, once it is settled."""
        return self._until_row("SELECT * FROM usage WHERE key_id = $1", key.id)

    def _until_row(self, query: str, *arguments: object) -> asyncpg.Record:
        found: list[asyncpg.Record] = []

        def is_there() -> bool:
            found[:] = self.rows(query, *arguments)
            return bool(found)

        until(is_there, KNOWN_S, self.dev.diagnose)
        [row] = found
        return row

    def _keys(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli.main", "keys", *arguments],
            env={**clean_environment(), "COCOON_DATABASE_URL": self._dsn},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    def _until_answered(self, key: str, status: int) -> None:
        streak = 0

        def agreed() -> bool:
            nonlocal streak
            headers = {"authorization": f"Bearer {key}", "connection": "close"}
            streak = streak + 1 if client.get(f"{self.base_url}/models", headers=headers).status_code == status else 0
            return streak == PROCESSES_ASKED

        with httpx.Client(timeout=60, trust_env=False) as client:
            until(agreed, KNOWN_S, self.dev.diagnose)


def clean_environment() -> dict[str, str]:
    """Ours without anybody's Cocoon settings and without traces to a collector elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("COCOON_", "OTEL_"))}


@contextlib.contextmanager
def dev_in_own_folder() -> Iterator[Dev]:
    """A `Dev` that is not started yet; whatever it started ends with the block, and nothing of it stays."""
    # As root, PostgreSQL runs under another account, which cannot pass pytest's own private directory.
    place = Path(tempfile.mkdtemp(prefix="cocoon-dev-"))
    place.chmod(0o711)
    dev = Dev(place)
    try:
        yield dev
    finally:
        dev.close()
        remove_placement(dev.state.root / "postgres")
        shutil.rmtree(place)


def _die_with_parent() -> None:
    # A test run that is killed leaves no network: the supervisor's death ends its services.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def until(condition: Callable[[], object], seconds: float, diagnose: Callable[[], str]) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, diagnose()
        time.sleep(0.05)
