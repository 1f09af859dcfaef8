"""Launches an engine as a child process that cannot outlive the agent, and brings it back when it dies."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

import structlog

from cocoon.clock import Clock
from workers.agent.engines.ports import EngineStartError

_log: structlog.stdlib.BoundLogger = structlog.get_logger()

START_ATTEMPTS_MAX = 3
"""Failures before the engine was ever ready: more would not help, and the operator should see it."""
BACKOFF_S_FIRST = 0.5
BACKOFF_S_MAX = 30.0
STEADY_S = 60.0
"""A run at least this long earns a fresh backoff."""
STOP_S = 5.0
PROBE_EVERY_S = 0.05
_LINE_BYTES_MAX = 4096
_STDERR = 2


class Child:
    """A running engine process in a session of its own, tethered to the agent's life."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def spawn(
        cls, argv: list[str], *, environ: Mapping[str, str], stdin: bytes = b"", reports: bool = False
    ) -> "Child":
        """Start `argv` behind the tether. `stdin` is what it may read; `reports`: its stdout is ours to read.

        Raises:
            EngineStartError: it cannot be executed.
        """
        command = [sys.executable, "-m", "workers.agent.engines.tether", str(os.getpid()), *argv]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if reports else _STDERR,
                env=dict(environ),
                start_new_session=True,
                limit=_LINE_BYTES_MAX,
            )
        except OSError as error:
            raise EngineStartError("the engine cannot be executed") from error
        assert process.stdin is not None, "asked for a pipe"
        # Small enough for the pipe's buffer: nothing to wait for, so a cancellation here cannot orphan the child.
        process.stdin.write(stdin)
        process.stdin.close()
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process id, which is also its session's and group's."""
        return self._process.pid

    async def line(self) -> bytes:
        """Its next line on stdout; b"" when it has closed it."""
        assert self._process.stdout is not None, "spawned with reports"
        try:
            return await self._process.stdout.readline()
        except ValueError:  # longer than the limit: not our protocol
            return b""

    async def wait(self) -> int:
        """Its exit status."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End it and whatever it started: politely, then not. Idempotent."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            # The group may hold grandchildren after the leader has gone.
            self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Supervisor:
    """Keeps one child running: `spawn` starts it, `healthy` says, asked again and again, whether it answers."""

    def __init__(
        self,
        clock: Clock,
        *,
        spawn: Callable[[], Awaitable[Child]],
        healthy: Callable[[Child], Awaitable[bool]],
        start_s: float,
    ) -> None:
        self._clock = clock
        self._spawn = spawn
        self._healthy = healthy
        self._start_s = start_s
        self.ready = False
        self.pid: int | None = None

    async def run(self) -> None:
        """Until cancelled; then the child is stopped.

        Raises:
            EngineStartError: it failed `START_ATTEMPTS_MAX` times without ever having been ready.
        """
        failures = 0
        was_ready = False
        while True:
            began = self._clock.monotonic()
            became_ready, status = await self._once()
            was_ready = was_ready or became_ready
            failures = 1 if self._clock.monotonic() - began > STEADY_S else failures + 1
            _log.warning("engine_exited", status=status, was_ready=became_ready, failures=failures)
            if not was_ready and failures >= START_ATTEMPTS_MAX:
                raise EngineStartError("the engine does not start; its own output says why")
            await asyncio.sleep(min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2 ** (failures - 1)))

    async def _once(self) -> tuple[bool, int | None]:
        child = await self._spawn()
        self.pid = child.pid
        became_ready = False
        try:
            if await self._until_healthy(child):
                self.ready = became_ready = True
                _log.info("engine_ready", pid=child.pid)
                return became_ready, await child.wait()
            return became_ready, None
        finally:
            self.ready = False
            self.pid = None
            await child.stop()

    async def _until_healthy(self, child: Child) -> bool:
        """Whether it became healthy in time; False at once when it exits."""
        healthy = False
        async with asyncio.TaskGroup() as group:

            async def watch() -> None:
                await child.wait()
                asking.cancel()

            async def ask() -> None:
                nonlocal healthy
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._start_s):
                        healthy = await self._healthy(child)
                        while not healthy:
                            await asyncio.sleep(PROBE_EVERY_S)
                            healthy = await self._healthy(child)
                watching.cancel()

            asking = group.create_task(ask())
            watching = group.create_task(watch())
        return healthy
