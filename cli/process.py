"""Processes that do not outlive their parent, and what can be known about a process from outside.

Nothing here decides when a process starts or stops; it only starts one as described, and looks.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import msgspec

_LINUX = sys.platform == "linux"
_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1
# Loaded before any fork: between fork and exec nothing may be imported.
_LIBC = ctypes.CDLL(None, use_errno=True) if _LINUX else None


def die_with_parent(number: signal.Signals, parent_pid: int) -> None:
    """Have the kernel send this process `number` when its parent dies (Linux; elsewhere nothing happens).

    `parent_pid` is who the parent is believed to be: one that died before this call can send nothing any more, so
    the signal is then delivered here. The setting survives exec and is lost on a change of user: call it after that.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


class Account(msgspec.Struct, frozen=True):
    """The user and group that a process runs under."""

    uid: int
    gid: int


class StopStep(msgspec.Struct, frozen=True):
    """Send `number` and give the process `seconds` to end."""

    number: signal.Signals
    seconds: float


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How to start a process, and how to end it: `stop` step by step, SIGKILL at last.

    `account` None keeps the current user. `death_signal` is what it gets when its parent dies.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None = None
    account: Account | None = None
    death_signal: signal.Signals = signal.SIGTERM
    stop: tuple[StopStep, ...] = (StopStep(signal.SIGTERM, 10.0),)


class PopenOptions(TypedDict):
    """Keyword arguments of `subprocess.Popen` and `asyncio.create_subprocess_exec`."""

    env: Mapping[str, str]
    cwd: str | None
    stdin: int
    process_group: int
    preexec_fn: Callable[[], None]
    user: int | None
    group: int | None
    extra_groups: list[int] | None


def popen_options(launch: Launch) -> PopenOptions:
    """Options for a process in a group of its own, so that a terminal's Ctrl-C reaches the supervisor alone."""
    parent_pid = os.getpid()
    account = launch.account
    return {
        "env": launch.env,
        "cwd": launch.cwd,
        "stdin": subprocess.DEVNULL,
        "process_group": 0,
        "preexec_fn": lambda: die_with_parent(launch.death_signal, parent_pid),
        "user": account.uid if account else None,
        "group": account.gid if account else None,
        "extra_groups": [] if account else None,
    }


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs; a zombie does not."""
    if _LINUX:
        fields = _stat_fields(pid)
        return fields is not None and fields[0] not in {"Z", "X"}
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process; one that is gone is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def working_directory(pid: int) -> Path | None:
    """The directory a process works in, None when it is gone, not ours to ask, or this is not Linux."""
    try:
        return (_PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None


def processes_in(directory: Path) -> list[int]:
    """Living processes that work in `directory` (Linux; elsewhere none are found)."""
    wanted = directory.resolve()
    return [pid for pid in _pids() if working_directory(pid) == wanted and is_alive(pid)]


def processes_marked(name: str, value: str) -> list[int]:
    """Living processes started with `name=value` in their environment, this one and its ancestors left out."""
    marker = f"{name}={value}".encode()
    return [
        pid for pid in _pids() if marker in _environment(pid).split(b"\0") and is_alive(pid) and pid not in _own_line()
    ]


def _own_line() -> set[int]:
    line = {os.getpid()}
    parent: int | None = os.getppid()
    while parent and parent not in line:
        line.add(parent)
        fields = _stat_fields(parent)
        parent = int(fields[1]) if fields else None
    return line


def _pids() -> Iterator[int]:
    if _LINUX:
        yield from (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal())


def _environment(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def _stat_fields(pid: int) -> list[str] | None:
    """State, parent and what follows in /proc/PID/stat (proc(5)); the command before them may contain anything."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
