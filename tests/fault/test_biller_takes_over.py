"""Two real `cocoon biller` processes: the one that has the turn dies or freezes, and the other goes on in its place.

How long that takes follows from constants (docs/settlement.md); here only that it happens is asserted. `-s` shows it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.postgres.pool import connect
from cli.private_files import write_private
from tests.fixtures_chain import LocalChain
from tests.settlement_chain import GLOBAL_ID, key

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0
POLL_S = 0.05
HOLDERS = (
    "SELECT count(*) FROM pg_locks AS held JOIN pg_database AS here ON held.database = here.oid"
    " WHERE held.locktype = 'advisory' AND held.granted AND here.datname = current_database()"
)
TAKEN, LOST, STANDS_BY = '"biller_turn_taken"', '"biller_turn_lost"', '"biller_stands_by"'


class BillerProcess:
    """One process; its log is a file."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "biller"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], **environment}, cwd=ROOT,
            )  # fmt: skip

    def says(self, event: str) -> int:
        """How often, so far."""
        return self._log.read_text().count(event)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def until(holds: Callable[[], object], what: str) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < DEADLINE_S, f"not in time: {what}"
        time.sleep(POLL_S)
    return time.monotonic() - began


@pytest.fixture
def billers(database_url: str, local_chain: LocalChain, tmp_path: Path) -> Iterator[list[BillerProcess]]:
    """The first has the turn, the second waits for it."""
    wallet = tmp_path / "operator.key"
    write_private(wallet, key("takes over").private_bytes_raw().hex().encode())
    environment = {
        "COCOON_ENV": "development", "COCOON_DATABASE_URL": database_url, "COCOON_GLOBAL_ID": str(GLOBAL_ID),
        "COCOON_LITESERVERS": str(local_chain.config), "COCOON_PAYOUT_CONTRACT": "0:" + "a1" * 32,
        "COCOON_BILLER_WALLET_KEY_FILE": str(wallet), "COCOON_BILLER_INTERVAL_S": "0.2",
    }  # fmt: skip
    made: list[BillerProcess] = []
    try:
        for name in ("first", "second"):
            made.append(BillerProcess(name, tmp_path, environment))
            until(lambda: any(one.says(TAKEN) for one in made), "the first turn")
        until(lambda: made[1].says(STANDS_BY), "that the second one asks")
        yield made
    finally:
        for one in made:
            one.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_a_biller_that_dies_or_freezes_is_replaced_and_one_that_thaws_has_lost_its_turn(
    billers: list[BillerProcess], database_url: str, number: signal.Signals
) -> None:
    first, second = billers
    assert (first.says(TAKEN), second.says(TAKEN)) == (1, 0)
    first.signal(number)
    took_s = until(lambda: second.says(TAKEN), "the second one's turn")
    sys.stdout.write(f"{number.name}: taken over after {took_s:.2f} s\n")
    if number is signal.SIGSTOP:
        first.signal(signal.SIGCONT)
        until(lambda: first.says(LOST), "that the first one hears of it")
        assert first.says(TAKEN) == 1
    async with connect(database_url, application="test") as connection:
        assert await connection.fetchval(HOLDERS) == 1
