"""Ports of this machine: whether one can be had, and which one is free."""

import errno
import socket

from cli.dev.state import DevError

LOOPBACK = "127.0.0.1"


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
    """`wish` when it can be had on the loopback address, else any free port."""
    if wish and is_free(wish):
        return wish
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
