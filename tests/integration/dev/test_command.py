"""`cocoon dev` where it must not start: a taken port, a directory in use, settings that make no sense."""

import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.dev.address import free_port
from cli.dev.state import StateDirectory
from cli.main import main


def dev(root: Path, **variables: str) -> Result:
    return CliRunner().invoke(main, ["dev"], env={"COCOON_STATE_DIR": str(root), **variables})


def test_a_taken_port_is_named_with_the_variable_that_changes_it_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = dev(tmp_path / ".cocoon", COCOON_PORT=str(port))
    assert result.exit_code == 2
    assert f"port {port} on 127.0.0.1 is taken" in result.output
    assert "COCOON_PORT=" in result.output
    assert sorted(entry.name for entry in (tmp_path / ".cocoon").iterdir()) == ["lock", "logs"]


def test_a_second_run_in_the_same_directory_is_told_about_the_first(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / ".cocoon")
    first.open()
    first.lock("http://127.0.0.1:4711/v1")
    try:
        result = dev(tmp_path / ".cocoon", COCOON_PORT=str(free_port()))
    finally:
        first.unlock()
    assert result.exit_code == 1
    assert f"already runs here: http://127.0.0.1:4711/v1 (pid {os.getpid()}" in result.output


def test_a_dev_file_of_a_crashed_run_does_not_outlive_the_next_start(tmp_path: Path) -> None:
    root = tmp_path / ".cocoon"
    root.mkdir()
    (root / "dev.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert dev(root, COCOON_PORT=str(taken.getsockname()[1])).exit_code == 2
    assert not (root / "dev.json").exists()


@pytest.mark.parametrize(("name", "value"), [("COCOON_PORT", "eighty"), ("COCOON_DRAIN_S", "-1")])
def test_a_malformed_variable_is_named(tmp_path: Path, name: str, value: str) -> None:
    result = dev(tmp_path / ".cocoon", **{name: value})
    assert result.exit_code == 1
    assert name in result.output
    assert not (tmp_path / ".cocoon").exists()
