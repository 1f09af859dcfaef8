"""A real server as a child of this process: start, wait until ready, stop, kill, start again.

`EmbeddedPostgres` and `EmbeddedRedis` say how. This module drives them with plain blocking calls, which is what a
test fixture wants; the supervisor uses only `prepare`, `launch` and `is_ready`, under its own event loop.
"""

import abc
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

from cli.dev.state import DevError
from cli.process import Launch, popen_options
from cocoon.clock import SystemClock

POLL_SECONDS = 0.02
START_SECONDS = 60.0
TAIL_BYTES = 4096


class EmbeddedServer(abc.ABC):
    """One server with its data in one directory. `start` from the main thread: its death ends the server too."""

    name: ClassVar[str]

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory.absolute()
        self.port = port
        self.log = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def prepare(self) -> None:
        """Blocking work before every start: files, leftovers of a crashed run.

        Raises:
            DevError: the server cannot be started.
        """

    @abc.abstractmethod
    def launch(self) -> Launch:
        """How to start and stop it; call `prepare` first."""

    @abc.abstractmethod
    def is_ready(self, pid: int) -> bool:
        """Whether the process `pid` serves. Never blocks for longer than a moment."""

    @property
    def pid(self) -> int:
        """Of the server's main process; it must have been started."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, timeout_s: float = START_SECONDS) -> None:
        """Start and wait until it serves.

        Raises:
            DevError: it ended or was not ready in time; the message ends with its last words.
        """
        assert self._process is None or self._process.poll() is not None, "already started"
        clock = SystemClock()
        deadline = clock.monotonic() + timeout_s
        self.prepare()
        process = self._process = popen(self.launch(), self.log)
        while not self.is_ready(process.pid):
            if process.poll() is not None:
                raise DevError(f"{self.name} ended at start with {process.returncode}: {tail(self.log)}")
            if clock.monotonic() > deadline:
                self.kill()
                raise DevError(f"{self.name} was not ready after {timeout_s:g} s: {tail(self.log)}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop in the server's own way, by force where that takes too long. Stopping twice is no error."""
        process = self._process
        if process is None:
            return
        for step in self.launch().stop:
            if process.poll() is None:
                process.send_signal(step.number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(step.seconds)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, as a fault would, and reap."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def popen(launch: Launch, log: Path) -> subprocess.Popen[bytes]:
    """Start a process with both outputs appended to `log`."""
    with open_log(log) as output:
        return subprocess.Popen(launch.argv, stdout=output, stderr=subprocess.STDOUT, **popen_options(launch))


def open_log(path: Path) -> BinaryIO:
    """A log to append to, readable by its owner alone."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)


def tail(path: Path, lines: int = 8) -> str:
    """The last lines of a log, joined for an error message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return f"(no log at {path})"
    return " | ".join(text.strip().splitlines()[-lines:]) or "(it said nothing)"
