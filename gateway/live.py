"""The exchanges that a process is in the middle of: counted for the limit, waited for and cancelled at its end."""

import asyncio


class LiveExchanges:
    """Tasks of running exchanges."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self, task: asyncio.Task[None]) -> None:
        """An exchange began."""
        self._tasks.add(task)
        self._idle.clear()

    def leave(self, task: asyncio.Task[None]) -> None:
        """It ended, however it ended."""
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    def cancel(self) -> None:
        """Break off whatever still runs; each exchange settles on its way out."""
        for task in tuple(self._tasks):
            task.cancel()

    async def wait_idle(self) -> None:
        """Return once none is left."""
        await self._idle.wait()
