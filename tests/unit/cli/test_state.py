"""What the development network keeps between runs."""

import json
import random
import stat
import subprocess
from pathlib import Path

import pytest

from cli.dev.state import AlreadyRunningError, DevError, DevFile, Ports, StateDirectory
from cocoon.ids import is_secret_key


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    state = StateDirectory(tmp_path / "nested" / ".cocoon")
    state.open()
    return state


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def dev_file(**pids: int) -> DevFile:
    return DevFile(
        base_url="http://127.0.0.1:1/v1",
        api_key="sk",
        admin_key="ak",
        console_url=None,
        models=("m",),
        postgres_dsn="postgresql://",
        redis_url="redis://",
        liteserver_config=None,
        chain_control_url=None,
        pids=pids,
    )


def test_secrets_are_made_once_and_private(state: StateDirectory) -> None:
    first = state.secrets(random.Random(1))
    second = state.secrets(random.Random(2))
    assert first == second
    assert mode(state.root / "secrets.json") == 0o600
    assert all(is_secret_key(key) for key in (first.api_key, first.admin_key, first.worker_key))
    assert len(bytes.fromhex(first.network_secret)) == 32
    assert first.api_key not in repr(first)


def test_a_secret_that_an_older_version_lacked_is_added_and_the_others_stay(state: StateDirectory) -> None:
    first = state.secrets(random.Random(1))
    path = state.root / "secrets.json"
    kept = json.loads(path.read_text())
    del kept["admin_key"]
    path.write_text(json.dumps(kept))
    second = state.secrets(random.Random(2))
    assert second.api_key == first.api_key
    assert second.admin_key != first.admin_key
    assert state.secrets(random.Random(3)) == second


@pytest.mark.parametrize("content", ["", "{", "[]", '{"api_key": 1}'])
def test_damaged_secrets_stop_the_start_and_are_not_replaced(state: StateDirectory, content: str) -> None:
    path = state.root / "secrets.json"
    path.write_text(content)
    with pytest.raises(DevError, match="damaged"):
        state.secrets(random.Random(1))
    assert path.read_text() == content


def test_ports_are_remembered_and_damage_only_forgets_them(state: StateDirectory) -> None:
    assert state.ports() == Ports()
    state.keep_ports(Ports(postgres=5, redis=6))
    assert state.ports() == Ports(postgres=5, redis=6)
    (state.root / "ports.json").write_text("nonsense")
    assert state.ports() == Ports()


def test_the_dev_file_has_the_agreed_members_and_nulls_for_what_does_not_exist(state: StateDirectory) -> None:
    state.write_dev_file(dev_file(gateway=7))
    path = state.root / "dev.json"
    assert mode(path) == 0o600
    assert json.loads(path.read_text()) == {
        "base_url": "http://127.0.0.1:1/v1",
        "api_key": "sk",
        "admin_key": "ak",
        "console_url": None,
        "models": ["m"],
        "postgres_dsn": "postgresql://",
        "redis_url": "redis://",
        "liteserver_config": None,
        "chain_control_url": None,
        "pids": {"gateway": 7},
    }
    state.remove_dev_file()
    state.remove_dev_file()
    assert [entry.name for entry in state.root.iterdir()] == ["logs"]


def test_a_shell_reads_the_environment_file_whatever_is_in_a_value(state: StateDirectory) -> None:
    value = """a 'b' "c" $HOME `id` \\ é"""
    state.write_environment({"COCOON_ONE": value, "COCOON_TWO": "2"})
    assert mode(state.root / "env") == 0o600
    said = subprocess.run(
        ["sh", "-c", '. "$0" && printf %s:%s "$COCOON_ONE" "$COCOON_TWO"', state.root / "env"],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert said.stdout == f"{value}:2"


def test_a_second_holder_is_told_where_the_first_one_serves(state: StateDirectory) -> None:
    state.lock("http://127.0.0.1:1/v1")
    second = StateDirectory(state.root)
    with pytest.raises(AlreadyRunningError, match=r"http://127\.0\.0\.1:1/v1 \(pid \d+"):
        second.lock("http://127.0.0.1:2/v1")
    state.unlock()
    second.lock("http://127.0.0.1:2/v1")
    second.unlock()


def test_a_lock_file_left_by_a_crash_holds_nobody_up(state: StateDirectory) -> None:
    (state.root / "lock").write_text('{"pid": 1, "base_url": "http://127.0.0.1:1/v1"}')
    state.lock("http://127.0.0.1:2/v1")
    state.unlock()


def test_an_existing_directory_keeps_its_mode(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    root.chmod(0o750)
    StateDirectory(root).open()
    assert mode(root) == 0o750


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DevError, match="COCOON_STATE_DIR"):
        StateDirectory(tmp_path / "file" / ".cocoon").open()


def test_logs_are_kept_for_one_more_run(state: StateDirectory) -> None:
    state.rotate_log("gateway").write_text("first")
    state.rotate_log("gateway").write_text("second")
    assert (state.logs / "gateway.log").read_text() == "second"
    assert (state.logs / "gateway.log.1").read_text() == "first"
    assert mode(state.logs) == 0o700
