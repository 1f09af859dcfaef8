"""Ports of this machine: whether one can be had, and which one is free."""

import errno
import fcntl
import functools
import os
import socket
import tempfile
from pathlib import Path

from cli.dev.state import DevError
from cocoon.clock import system_random

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)
"""Below what Linux gives to outgoing connections (32768 and up): a client that retries a server which is just down
could be given the server's own port there, connect to itself, and keep the server from coming back."""
ATTEMPTS_MAX = 200
_given = set[int]()
"""To this process, by `free_port`."""


class PortTakenError(DevError):
    """A port that was asked for is in use."""

    code = "port_taken"
    exit_code = 2


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port now.

    Raises:
        DevError: the address is not one of this machine's, or the port is reserved.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of an earlier run in TIME_WAIT do not count; listeners do, those with SO_REUSEPORT too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise DevError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return True


def free_port(wish: int = 0) -> int:
    """`wish` when it can be had on the loopback address, else any free port of `PORTS`.

    Nobody else who asks here gets it while this process lives: its server may take a while until it listens.

    Raises:
        DevError: none is free.
    """
    if wish and is_free(wish) and (wish in _given or _reserve(wish)):
        return wish
    rng = system_random()
    for _ in range(ATTEMPTS_MAX):
        port = rng.choice(PORTS)
        if port not in _given and is_free(port) and _reserve(port):
            return port
    raise DevError(f"no free port between {PORTS.start} and {PORTS.stop - 1}")


def _reserve(port: int) -> bool:
    """Whether no other process of this user has it: one byte of a file each, locked until its process ends."""
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    _given.add(port)
    return True


@functools.cache
def _reservations() -> int:
    """The file, opened once: closing it anywhere in a process gives back all that the process has."""
    path = Path(tempfile.gettempdir()) / f"cocoon-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
