"""What workers are held to: claims for more than they are owed cost them requests, and in the end all of them.

The books record each such claim (`discrepancies` with `against_worker`). Here they meet routing, which knows nothing of
money: every process reads every few seconds what is recent, makes the worker dearer by it, and leaves out of rotation
who is suspended. A suspension ends only when the operator lifts it.
"""

import asyncio
import uuid
from collections.abc import Mapping
from typing import Protocol

import msgspec
import structlog

from billing.ports import BillingError

READ_S = 5.0
WINDOW_S = 24 * 3600
"""Older claims are forgotten."""
HALF_LIFE_S = 6 * 3600
SUSPEND_JOBS = 3
"""Claims about this many different jobs within the window, since the last suspension was lifted, suspend a worker."""
log = structlog.get_logger()


class Suspended(msgspec.Struct, frozen=True):
    """A worker that has just been suspended, and for how many jobs."""

    worker_id: uuid.UUID
    jobs: int


class Record(msgspec.Struct, frozen=True):
    """What is held against workers: decayed counts of recent claims, and who is suspended."""

    offences: Mapping[uuid.UUID, float]
    suspended: frozenset[uuid.UUID]


class Store(Protocol):
    """What is used of `gateway.postgres.standing.StandingStore`."""

    async def suspend_offenders(self) -> list[Suspended]:
        """Suspend who has offended too often; those who were not suspended before."""
        ...

    async def read(self) -> Record:
        """The record as it is now."""
        ...


class Routing(Protocol):
    """What is used of `workers.registry.Registry`."""

    def set_standing(self, offences: Mapping[uuid.UUID, float], suspended: frozenset[uuid.UUID]) -> None:
        """Route by this from now on."""
        ...


class Standing:
    """One process's view, kept fresh. While the database is away the last one holds."""

    def __init__(self, store: Store, routing: Routing) -> None:
        self._store = store
        self._routing = routing
        self._suspended: frozenset[uuid.UUID] = frozenset()

    async def run(self) -> None:
        """Read and apply until cancelled."""
        while True:
            try:
                await self.refresh()
            except BillingError as error:
                log.warning("standing_not_read", code=error.code)
            await asyncio.sleep(READ_S)

    async def refresh(self) -> None:
        """Suspend who has earned it, and apply what holds now.

        Raises:
            LedgerUnavailableError: the database is away; nothing changes.
        """
        for one in await self._store.suspend_offenders():
            # The one line that an operator should be woken by: it appears once, in whichever process saw it first.
            log.error("worker_suspended", worker_id=str(one.worker_id), jobs=one.jobs)
        record = await self._store.read()
        for worker_id in self._suspended - record.suspended:
            log.info("worker_reinstated", worker_id=str(worker_id))
        self._suspended = record.suspended
        self._routing.set_standing(record.offences, record.suspended)
