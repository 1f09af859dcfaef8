"""Keeps a set of services running until it is told to stop, then stops them in order.

Knows nothing about what they are: `boot` starts them. A first SIGINT, SIGTERM or SIGHUP stops, a second one hurries.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from itertools import groupby

from cli.dev.embedded import tail
from cli.dev.service import Keeper, Service, ServiceFailedError, State, run_once
from cli.dev.state import StateDirectory
from cli.process import Launch, processes_marked, send
from cocoon.clock import Clock

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MARKER = "COCOON_DEV_STATE"
"""The environment variable by which processes of one state directory know, and show, whose they are."""
SWEEP_TERM_SECONDS = 5.0
"""A gateway may still try to settle; its database died with the supervisor, so that there is little to wait for."""
SWEEP_KILL_SECONDS = 5.0
SWEEP_POLL_SECONDS = 0.05


class Supervisor:
    """One run. `changed` is called after every change of any service's state."""

    def __init__(self, state: StateDirectory, clock: Clock, changed: Callable[[], None]) -> None:
        self.keepers: list[Keeper] = []
        self.stopping = False
        self._state = state
        self._clock = clock
        self._changed = changed
        self._stop_asked = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._failure: Exception | None = None

    async def run(self, boot: Callable[["Supervisor"], Awaitable[None]]) -> None:
        """Boot, keep everything running until a signal or `ask_stop`, stop in order.

        Raises:
            Exception: what `boot` raised, after everything was stopped.
        """
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                booting = group.create_task(self._boot(boot))
                await self._stop_asked.wait()
                self.stopping = True
                booting.cancel()
                await self._stop_all()
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure

    def ask_stop(self) -> None:
        """Begin the orderly stop."""
        self._stop_asked.set()

    def start(self, service: Service) -> Keeper:
        """Start a service and keep it running from now on."""
        assert self._group is not None, "only while running"
        log = self._state.rotate_log(service.name)
        keeper = Keeper(service, log=log, clock=self._clock, changed=self._changed)
        self.keepers.append(keeper)
        self._group.create_task(keeper.keep())
        return keeper

    async def complete(self, name: str, launch: Launch, seconds: float) -> None:
        """Run a command that ends by itself, within `seconds`.

        Raises:
            ServiceFailedError: it failed, with its last words.
        """
        log = self._state.rotate_log(name)
        status = await run_once(launch, log, seconds)
        if status != 0:
            raise ServiceFailedError(f"{name} failed with {status}. {log}: {tail(log)}")

    def all_ready(self) -> bool:
        """Whether every service started so far serves."""
        return all(keeper.state is State.READY for keeper in self.keepers)

    def pids(self) -> dict[str, int]:
        """The main process of every service that runs, and this one."""
        return {"supervisor": os.getpid()} | {
            keeper.service.name: keeper.pid for keeper in self.keepers if keeper.pid is not None
        }

    async def _boot(self, boot: Callable[["Supervisor"], Awaitable[None]]) -> None:
        try:
            await boot(self)
        except Exception as error:  # noqa: BLE001  a task's top frame; everything is stopped before it is raised again
            self._failure = error
            self.ask_stop()

    async def _stop_all(self) -> None:
        ordered = sorted(self.keepers, key=lambda keeper: -keeper.service.stage)
        for _, stage in groupby(ordered, key=lambda keeper: keeper.service.stage):
            async with asyncio.TaskGroup() as group:
                for keeper in stage:
                    group.create_task(keeper.stop())

    def _on_signal(self) -> None:
        if self._stop_asked.is_set():
            for keeper in self.keepers:
                keeper.hurry()
        self.ask_stop()


def sweep(mark: str, clock: Clock) -> list[int]:
    """End every process that carries `mark`, as a crashed run leaves behind for a moment; returns who was found.

    Blocks. The kernel has already told them to end when their supervisor died, so they get time before SIGKILL.
    """
    found = processes_marked(MARKER, mark)
    for number, seconds in ((signal.SIGTERM, SWEEP_TERM_SECONDS), (signal.SIGKILL, SWEEP_KILL_SECONDS)):
        deadline = clock.monotonic() + seconds
        for pid in processes_marked(MARKER, mark):
            send(pid, number)
        while processes_marked(MARKER, mark) and clock.monotonic() < deadline:
            time.sleep(SWEEP_POLL_SECONDS)
    return found
