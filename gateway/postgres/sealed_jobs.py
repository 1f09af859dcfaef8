"""The ids of sealed jobs in Postgres, asked for in batches."""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from importlib.resources import files
from typing import Self

import structlog

from billing.lane import Lane
from billing.ports import BillingError
from billing.postgres.pool import Pool, acquired
from cocoon.sql import named_statements
from gateway.sealed import JOB_KEPT_S

BATCH_MAX = 256
QUEUE_MAX = 10_000
SWEEP_S = 60.0
SWEEP_MAX = 5_000
CLOSE_S_MAX = 1.0
_SQL = named_statements(files("gateway.postgres").joinpath("sealed_jobs.sql").read_text(encoding="utf-8"))

log = structlog.get_logger()


class PostgresJobBook:
    """A `JobBook` on a shared pool; an async context manager that owns its tasks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # Two lanes: who gives back does not wait for who takes.
        self._takes: Lane[uuid.UUID, bool] = Lane("sealed jobs", self._take, batch_max=BATCH_MAX, queue_max=QUEUE_MAX)
        self._returns: Lane[uuid.UUID, None] = Lane(
            "sealed returns", self._give_back, batch_max=BATCH_MAX, queue_max=QUEUE_MAX
        )
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._tasks = [
            self._group.create_task(lane.serve(), name="sealed jobs") for lane in (self._takes, self._returns)
        ]
        self._tasks.append(self._group.create_task(self._keep_house(), name="sealed sweep"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._takes.close()
        self._returns.close()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(self._tasks[:2], timeout=CLOSE_S_MAX)
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    async def take(self, job_id: uuid.UUID) -> bool:
        """See `JobBook.take`."""
        return await self._takes.ask(job_id)

    async def give_back(self, job_id: uuid.UUID) -> None:
        """See `JobBook.give_back`."""
        with contextlib.suppress(BillingError):
            await self._returns.ask(job_id)

    async def _take(self, jobs: Sequence[uuid.UUID]) -> list[bool | BillingError]:
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["take_sealed_jobs"], list(set(jobs)))
        new = {row["job_id"] for row in rows}
        # Of two that ask for one id in the same batch, the first has it.
        answers: list[bool | BillingError] = []
        for job in jobs:
            answers.append(job in new)
            new.discard(job)
        return answers

    async def _give_back(self, jobs: Sequence[uuid.UUID]) -> list[BillingError | None]:
        async with acquired(self._pool) as connection:
            await connection.execute(_SQL["give_back_sealed_jobs"], list(jobs))
        return [None] * len(jobs)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                async with acquired(self._pool) as connection:
                    await connection.execute(_SQL["sweep_sealed_jobs"], JOB_KEPT_S, SWEEP_MAX)
            except BillingError as error:
                log.warning("sealed_jobs_not_swept", code=error.code)
