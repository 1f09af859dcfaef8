"""The real local chain for tests: Node.js on loopback, a SIMULATED TON of one machine.

`local_chain` is shared by all tests of a process: what a test sends stays there. Tests that stop it, break it or move
its clock far ask for `own_chain`. Processes are ended by their ids.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.chain_control import ChainInfo, Reached
from cli.dev.chain import EmbeddedChain

BLOCK_MS = 20
TICK_MS = 1_000


class LocalChain:
    """One chain. `config` is the liteserver's (the form of global.config.json) as a file; amounts are nano."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="cocoon-chain-"))
        self.server = EmbeddedChain(self._root / "chain", block_ms=BLOCK_MS, tick_ms=TICK_MS)

    @property
    def config(self) -> Path:
        return self.server.config

    @property
    def control_url(self) -> str:
        return self.server.control_url

    def info(self) -> ChainInfo:
        return self.server.control.info()

    def faucet(self, address: object, amount_nano: int) -> Reached:
        """Coins out of nothing; they are there when this returns, in the block that it names."""
        return self.server.control.faucet(str(address), amount_nano)

    def advance(self, seconds: int) -> Reached:
        """Move the clock; the returned block has the new time."""
        return self.server.control.advance(seconds)

    def fault(self, **faults: object) -> dict[str, object]:
        """Set faults, `clear=True` first of all removes them; names in docs/chain.md."""
        return self.server.control.faults(**faults)

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.server.kill()

    def restart(self, *, kill: bool = False) -> None:
        """The same chain, state and addresses again; faults are gone."""
        (self.kill if kill else self.stop)()
        self.start()

    def close(self) -> None:
        self.server.stop()
        shutil.rmtree(self._root)


def _running() -> Iterator[LocalChain]:
    chain = LocalChain()
    try:
        chain.start()
        yield chain
    finally:
        chain.close()


@pytest.fixture(scope="session")
def local_chain() -> Iterator[LocalChain]:
    """The shared chain of this test process. Do not stop it: ask for `own_chain` instead."""
    yield from _running()


@pytest.fixture
def own_chain() -> Iterator[LocalChain]:
    """A running chain of its own, which a test may stop, break, and move in time."""
    yield from _running()
