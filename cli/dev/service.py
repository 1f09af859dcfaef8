"""One supervised process: start, become ready, come back after death, stop.

The whole life of the process is one coroutine, `Keeper.keep`; everything else only asks. So there is no moment at
which a process runs and nobody is responsible for it.
"""

import asyncio
import contextlib
import datetime as dt
import enum
import os
import signal
import subprocess
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from cli.dev.embedded import open_log, tail
from cli.dev.state import DevError
from cli.process import Launch, StopStep, popen_options
from cocoon.clock import Clock

POLL_SECONDS = 0.1
BACKOFF_SECONDS_MIN = 0.2
BACKOFF_SECONDS_MAX = 5.0
STEADY_SECONDS = 30.0
"""A process that lived this long starts again without a longer wait."""
FIRST_ATTEMPTS_MAX = 3
"""A process that never became ready is given up after so many attempts: the fault is in its set-up."""
HURRY_SECONDS = 1.0


class State(enum.StrEnum):
    """Where a process is in its life."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class ServiceFailedError(DevError):
    """A process could not be brought up."""

    code = "service_failed"


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What to keep running. `stage` orders the stop: the highest first, equal ones together.

    `prepare` blocks and runs in a thread before every start; `is_ready` is asked again and again for `ready_s`.
    """

    name: str
    address: Callable[[], str]
    launch: Callable[[], Launch]
    is_ready: Callable[[int], Awaitable[bool]]
    stage: int
    prepare: Callable[[], None] | None = None
    ready_s: float = 60.0


class Keeper:
    """Keeps one service running; `changed` is called after every change of state."""

    def __init__(self, service: Service, *, log: Path, clock: Clock, changed: Callable[[], None]) -> None:
        self.service = service
        self.state = State.STARTING
        self.since: dt.datetime = clock.now()
        self.pid: int | None = None
        self.restarts = 0
        self.reason = ""
        self._log = log
        self._clock = clock
        self._changed = changed
        self._failure: ServiceFailedError | None = None
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ended = asyncio.Event()
        self._was_ready = False

    async def wait_ready(self) -> None:
        """Wait until the service has been ready once.

        Raises:
            ServiceFailedError: it was given up, with its last words.
        """
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Ask it to stop and wait until it has; bounded by the steps of its `Launch`."""
        self._stopping.set()
        await self._ended.wait()

    def hurry(self) -> None:
        """Cut the waits of the stop short."""
        self._hurry.set()

    async def keep(self) -> None:
        """Run the service until `stop`, or until it is given up."""
        attempts = 0
        delay = BACKOFF_SECONDS_MIN
        try:
            while not self._stopping.is_set():
                if self.state is not State.STARTING:
                    self._enter(State.STARTING)
                born = self._clock.monotonic()
                await self._live_once()
                if self._stopping.is_set():
                    break
                attempts += 1
                if not self._was_ready and attempts >= FIRST_ATTEMPTS_MAX:
                    self._failure = ServiceFailedError(
                        f"{self.service.name} does not start: {self.reason}. {self._log}: {tail(self._log)}"
                    )
                    break
                self.restarts += 1
                steady = self._clock.monotonic() - born >= STEADY_SECONDS
                delay = BACKOFF_SECONDS_MIN if steady else min(delay * 2, BACKOFF_SECONDS_MAX)
                self._enter(State.RESTARTING)
                await _first_of(self._stopping.wait(), seconds=delay)
        finally:
            self._enter(State.FAILED if self._failure else State.STOPPED)
            self._settled.set()
            self._ended.set()

    async def _live_once(self) -> None:
        try:
            if self.service.prepare is not None:
                await asyncio.to_thread(self.service.prepare)
            launch = self.service.launch()
            process = await start(launch, self._log)
        except (DevError, OSError) as error:
            self.reason = str(error)
            return
        self.pid = process.pid
        self._changed()
        try:
            if await self._becomes_ready(process):
                self._was_ready = True
                self._enter(State.READY)
                self._settled.set()
                await _first_of(process.wait(), self._stopping.wait())
            late = process.returncode is None
            if late:
                if self._stopping.is_set():
                    self._enter(State.STOPPING)
                await end(process, launch.stop, self._hurry)
        finally:
            kill_group(process)
            self.pid = None
        if not self._stopping.is_set():
            ready_s = self.service.ready_s
            self.reason = f"it was not ready after {ready_s:g} s" if late else f"it ended with {process.returncode}"

    async def _becomes_ready(self, process: Process) -> bool:
        deadline = self._clock.monotonic() + self.service.ready_s
        while process.returncode is None and not self._stopping.is_set():
            if await self.service.is_ready(process.pid):
                return True
            if self._clock.monotonic() > deadline:
                return False
            await _first_of(process.wait(), self._stopping.wait(), seconds=POLL_SECONDS)
        return False

    def _enter(self, state: State) -> None:
        self.state = state
        self.since = self._clock.now()
        self._changed()


async def all_ready(*keepers: Keeper) -> None:
    """Wait until each has been ready once; the first that fails ends the wait.

    Raises:
        ServiceFailedError: one was given up.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for keeper in keepers:
                group.create_task(keeper.wait_ready())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures


async def start(launch: Launch, log: Path) -> Process:
    """Start a process with both outputs appended to `log`. Call it on the main thread, whose death ends the process."""
    with open_log(log) as output:
        return await asyncio.create_subprocess_exec(
            *launch.argv, stdout=output, stderr=subprocess.STDOUT, **popen_options(launch)
        )


async def end(process: Process, steps: tuple[StopStep, ...], hurry: asyncio.Event) -> None:
    """Stop a process step by step, by SIGKILL at last; with `hurry` set every wait shrinks to a second."""
    for step in steps:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(step.number)
            await _first_of(process.wait(), hurry.wait(), seconds=step.seconds)
            await _first_of(process.wait(), seconds=HURRY_SECONDS)
    if process.returncode is None:
        kill_group(process)
        await process.wait()


def kill_group(process: Process) -> None:
    """SIGKILL a living process and all of its group; one that has ended is left alone, with its number."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def run_once(launch: Launch, log: Path, seconds: float) -> int:
    """Run a command to its end and return its exit status; SIGKILL (-9) after `seconds` or on cancellation."""
    process = await start(launch, log)
    try:
        await _first_of(process.wait(), seconds=seconds)
    finally:
        kill_group(process)
        status = await process.wait()
    return status


async def _first_of(*awaited: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Return when one of them is done or the time is over; the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in awaited]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
