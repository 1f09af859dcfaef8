"""Workers' standing in Postgres: recent claims against them, and suspensions."""

import datetime as dt
import uuid
from importlib.resources import files

import msgspec

from billing.postgres.audit import SYSTEM_ACTOR, Change, record
from billing.postgres.pool import Pool, acquired, transaction
from cocoon.enrolment import ServedModel
from cocoon.sql import named_statements
from gateway.errors import GatewayError
from gateway.standing import HALF_LIFE_S, SUSPEND_JOBS, WINDOW_S, Record, Suspended

LISTED_MAX = 1000
_SQL = named_statements(files("gateway.postgres").joinpath("standing.sql").read_text(encoding="utf-8"))


class NotSuspendedError(GatewayError):
    """This worker is not suspended."""

    code = "worker_not_suspended"


class Held(msgspec.Struct, frozen=True):
    """What is held against one worker, for the operator to read; `suspended_at` None while it is in rotation."""

    worker_id: uuid.UUID
    name: str | None
    jobs: int
    claimed_nano: int
    booked_nano: int
    last_at: dt.datetime | None
    suspended_at: dt.datetime | None
    wallet: str | None = None


class Listed(msgspec.Struct, frozen=True):
    """One worker as it last enrolled; `wallet` is the address of whoever proved it for the key, if somebody did."""

    worker_id: uuid.UUID
    name: str
    url: str
    models: tuple[str, ...]
    tee_type: str
    enrolled_at: dt.datetime
    wallet: str | None
    state: str


class StandingStore:
    """Every method is one statement, and raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def suspend_offenders(self) -> list[Suspended]:
        """Suspend who has offended too often; those who were not suspended before, once over all processes."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["suspend_offenders"], WINDOW_S, SUSPEND_JOBS)
        return [Suspended(row["worker_id"], row["offences"]) for row in rows]

    async def read(self) -> Record:
        """Recent offences, decayed, and who is suspended."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["read_standing"], WINDOW_S, HALF_LIFE_S)
        return Record(
            offences={row["worker_id"]: float(row["weight"]) for row in rows if row["weight"]},
            suspended=frozenset(row["worker_id"] for row in rows if row["suspended"]),
        )

    async def held(self) -> list[Held]:
        """Everything that is held against workers: suspensions first, then the latest claims."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["list_held"], WINDOW_S, LISTED_MAX)
        return [
            Held(
                worker_id=row["worker_id"], name=row["name"], jobs=row["jobs"], claimed_nano=int(row["claimed_nano"]),
                booked_nano=int(row["booked_nano"]), last_at=row["last_at"], suspended_at=row["suspended_at"],
                wallet=row["wallet"],
            )
            for row in rows
        ]  # fmt: skip

    async def workers(self) -> list[Listed]:
        """Workers that have enrolled, the last to enrol first, at most `LISTED_MAX`."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["list_workers"], LISTED_MAX)
        return [
            Listed(
                worker_id=row["worker_id"], name=row["name"], url=row["url"],
                models=tuple(one.id for one in msgspec.json.decode(row["models"], type=tuple[ServedModel, ...])),
                tee_type=row["tee_type"], enrolled_at=row["enrolled_at"], wallet=row["wallet"],
                state=row["state"] if row["suspended_at"] is None else "suspended",
            )
            for row in rows
        ]  # fmt: skip

    async def lift(self, worker_id: uuid.UUID, reason: str) -> None:
        """Let a worker back into rotation, with a line in the audit log; what it did before counts no more.

        Raises:
            NotSuspendedError: it is not suspended.
        """
        async with transaction(self._pool) as connection:
            if await connection.fetchval(_SQL["lift_suspension"], worker_id, reason) is None:
                raise NotSuspendedError
            change = Change(
                actor=SYSTEM_ACTOR, action="worker.reinstated", customer_id=None, subject_id=worker_id,
                detail={"reason": reason},
            )  # fmt: skip
            await record(connection, change)
