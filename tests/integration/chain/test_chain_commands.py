"""`cocoon chain` as people use it, on a chain of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.wallet import read_wallet

pytestmark = pytest.mark.timeout(300)

SECONDS_MAX = 60.0
SOMEBODY = f"0:{'ab' * 32}"


def cocoon(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", "chain", *words],
        env={**os.environ, "COCOON_STATE_DIR": str(state)},
        check=False, capture_output=True, text=True, timeout=SECONDS_MAX,
    )  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """The state directory of a chain that `cocoon chain up` runs."""
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.main", "chain", "up"],
            env={**os.environ, "COCOON_STATE_DIR": str(tmp_path)},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    deadline = time.monotonic() + SECONDS_MAX
    try:
        while not (tmp_path / "chain" / "control.json").exists():
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.05)
        yield tmp_path
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(SECONDS_MAX)
    assert status == 0, (tmp_path / "output").read_text()


def test_the_commands_find_the_chain_and_say_that_it_is_simulated(state: Path) -> None:
    given = cocoon(state, "faucet", SOMEBODY, "1.000000001")
    moved = cocoon(state, "advance", "86400")
    shown = cocoon(state, "info")
    facts = json.loads(cocoon(state, "info", "--json").stdout)

    assert given.returncode == 0, given.stderr
    assert given.stdout.startswith(f"1.000000001 TON (simulated) to {SOMEBODY} in block ")
    assert moved.returncode == 0, moved.stderr
    assert "SIMULATED, global id -3" in shown.stdout
    assert "1 with 1.000000001 TON" in shown.stdout
    assert "moved by 86400 s" in shown.stdout
    assert (facts["global_id"], facts["total_nano"], facts["simulated"]) == (-3, "1000000001", True)
    assert "SIMULATED" in (state / "output").read_text()


def test_faults_are_set_and_shown(state: Path) -> None:
    assert "drop            2" in cocoon(state, "faults", "drop=2").stdout
    assert "drop            2" in cocoon(state, "faults").stdout
    refused = cocoon(state, "faults", "drop=many")
    assert (refused.returncode, "drop is a number" in refused.stderr) == (1, True)
    assert "drop            0" in cocoon(state, "faults", "clear=true").stdout


def test_a_wallet_is_made_with_coins_and_its_words_are_never_replaced(state: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    made = cocoon(state, "wallet", str(words), "30")
    wallet = read_wallet(words, -3)
    again = cocoon(state, "wallet", str(words), "30")
    nowhere = cocoon(state, "wallet", str(tmp_path / "missing" / "words"), "30")

    assert made.returncode == 0, made.stderr
    assert f"30 TON (simulated) to {wallet.address}" in made.stdout
    assert (again.returncode, "never replaced" in again.stderr) == (2, True)
    assert (nowhere.returncode, "cannot be written" in nowhere.stderr) == (1, True)
    assert read_wallet(words, -3).address == wallet.address
    assert "1 with 30 TON" in cocoon(state, "info").stdout


def test_without_a_chain_the_commands_say_how_to_get_one(tmp_path: Path) -> None:
    for words in (("info",), ("faucet", SOMEBODY, "1"), ("advance", "1")):
        done = cocoon(tmp_path, *words)
        assert (done.returncode, "make dev" in done.stderr) == (1, True)


@pytest.mark.parametrize("address", ["nonsense", f"0:{'0' * 63}", "EQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAM9d"])
def test_a_mistyped_address_gets_nothing(tmp_path: Path, address: str) -> None:
    done = cocoon(tmp_path, "faucet", address, "1")

    assert done.returncode == 2
    assert "address" in done.stderr
