"""Whether a port can be had, asked of the kernel."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.dev.address import PORTS, free_port, is_free
from cli.dev.state import DevError

STAY = "input()"


def someone(program: str) -> subprocess.Popen[str]:
    """A process that lives until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_listening_port_is_taken_whatever_its_options(option: int | None) -> None:
    with socket.socket() as listener:
        if option is not None:
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert is_free(port) is False
        assert free_port(port) != port
    assert is_free(port) is True
    assert free_port(port) == port


def test_a_port_that_nobody_wished_for_is_none_that_outgoing_connections_get() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert free_port() in PORTS
    assert PORTS.stop <= lowest


def test_a_port_that_another_process_was_given_is_not_given_again_before_that_one_ends() -> None:
    asked = f"from cli.dev.address import free_port; print(free_port({{wish}}), flush=True); {STAY}"
    with someone(asked.format(wish=0)) as other:
        port = int(said(other))
        assert is_free(port) is True
        assert free_port(port) != port
        with someone(asked.format(wish=port)) as third:
            assert int(said(third)) != port
    assert free_port(port) == port
    with someone(asked.format(wish=port)) as other:
        assert int(said(other)) != port


def test_a_port_with_only_ended_connections_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server, _ = listener.accept()
            server.close()
            assert client.recv(1) == b""
    assert is_free(port) is True


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(DevError, match=r"192\.0\.2\.1:8080"):
        is_free(8080, "192.0.2.1")
