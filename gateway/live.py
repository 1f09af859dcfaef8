"""The exchanges that a process is in the middle of: counted for the limit, waited for and cancelled at its end."""

import asyncio


class LiveExchanges:
    """Tasks of running exchanges."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self, task: asyncio.Task[None]) -> None:
        """An exchange began. Whatever begins after `cancel` is broken off as well."""
        self._tasks.add(task)
        self._idle.clear()
        if self._cancelled:
            task.cancel()

    def leave(self, task: asyncio.Task[None]) -> None:
        """It ended, however it ended."""
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    def cancel(self) -> None:
        """Break off whatever still runs; each exchange settles on its way out."""
        self._cancelled = True
        for task in tuple(self._tasks):
            task.cancel()

    async def wait_idle(self) -> None:
        """Return once none is left."""
        await self._idle.wait()
