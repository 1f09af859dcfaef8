"""What a process does beside answering requests: endless tasks that end with it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

import structlog

RESTART_S = 1.0
log = structlog.get_logger()


class Background:
    """Endless tasks; one that fails is logged and started again, the others go on."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have this work done until the end, under this name."""
        self._tasks.append(self._group.create_task(self._for_ever(name, work), name=name))

    async def _for_ever(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception:
                log.exception("background_task_failed", task=name)
            await asyncio.sleep(RESTART_S)
