"""The local chain as a server of ours: a SIMULATED TON of one machine (contracts/localchain), run by Node.js."""

import signal
from pathlib import Path
from typing import ClassVar

from cli.chain_control import ChainControl, ChainControlError
from cli.dev.address import LOOPBACK, free_port
from cli.dev.embedded import EmbeddedServer
from cli.dev.state import DevError
from cli.node import NodeError, find_node
from cli.process import Launch, StopStep

PROJECT = Path(__file__).parents[2] / "contracts"
PROGRAM = PROJECT / "localchain" / "main.mjs"
STOP_SECONDS = 10.0
PROBE_SECONDS = 0.5
BLOCK_MS = 200
TICK_MS = 3_000
"""Below what pytoniq's block updater survives without a block (10 s)."""


class EmbeddedChain(EmbeddedServer):
    """One chain; everything it knows is in `directory`, and it goes on from there.

    Ports of 0 take free ones at the first start and keep them. `block_ms` is the time between blocks while messages
    are on their way, `tick_ms` otherwise. The liteserver and the control port are on loopback only.
    """

    name: ClassVar[str] = "chain"

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        control_port: int = 0,
        block_ms: int = BLOCK_MS,
        tick_ms: int = TICK_MS,
        marker: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(directory, port)
        self.control_port = control_port
        self._pace = (block_ms, tick_ms)
        self._environment = {"PATH": "/usr/bin:/bin", "TZ": "UTC"} | (dict([marker]) if marker else {})
        self._node: Path | None = None

    @property
    def config(self) -> Path:
        """The chain as clients are told of it, in the form of TON's global.config.json; there when it is ready."""
        return self.directory / "liteserver.json"

    @property
    def control_url(self) -> str:
        """Address of the control port; a port must have been chosen."""
        assert self.control_port, "no port yet"
        return f"http://{LOOPBACK}:{self.control_port}"

    @property
    def control(self) -> ChainControl:
        """The control port, ready to be asked."""
        return ChainControl(self.control_url)

    def prepare(self) -> None:
        """Find Node.js, bring its packages (once), choose ports."""
        if not PROGRAM.exists():
            raise DevError(f"the local chain is part of a checkout only, and {PROGRAM} is missing")
        try:
            node = find_node()
            node.install(PROJECT)
        except NodeError as error:
            raise DevError(str(error)) from error
        self._node = node.program
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        self.control_port = self.control_port or free_port()

    def launch(self) -> Launch:
        """Node in the foreground; SIGTERM ends it after the block in the making."""
        assert self._node is not None, "not prepared"
        block_ms, tick_ms = self._pace
        return Launch(
            argv=(
                *(str(self._node), str(PROGRAM), "--state", str(self.directory)),
                *("--port", str(self.port), "--control-port", str(self.control_port)),
                *("--block-ms", str(block_ms), "--tick-ms", str(tick_ms)),
            ),
            env=self._environment,
            cwd=str(self.directory),
            stop=(StopStep(signal.SIGTERM, STOP_SECONDS),),
        )

    def is_ready(self, pid: int) -> bool:
        """Whether the process `pid`, and no stranger on its port, says how far the chain is."""
        try:
            return self.control.info(PROBE_SECONDS).pid == pid and self.config.exists()
        except ChainControlError:
            return False
