"""What workers' receipts brought to light: contradictions with the books, and charges recovered from them."""

import datetime as dt
import uuid
from typing import NamedTuple

import msgspec

from billing.postgres.pool import Pool, acquired
from billing.postgres.statements import load_statements
from billing.recoveries import DiscrepancyKind
from cocoon.ids import job_day

_SQL = load_statements("discrepancies.sql")


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a discrepancy: tokens, and what they cost in nano."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    nano: int


class Discrepancy(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt that says something else than the books; `booked` is None where they say nothing."""

    day: dt.date
    job_id: uuid.UUID
    attempt: int
    kind: DiscrepancyKind
    worker_id: uuid.UUID
    customer_id: uuid.UUID
    against_worker: bool
    booked_attempt: int | None
    booked: Counts | None
    claimed: Counts
    created_at: dt.datetime


class RecoveredCharge(msgspec.Struct, frozen=True, kw_only=True):
    """A charge that came from a receipt: what the customer covered and what the operator lost, in nano."""

    day: dt.date
    job_id: uuid.UUID
    attempt: int
    worker_id: uuid.UUID
    customer_id: uuid.UUID
    drawn_nano: int
    lost_nano: int
    created_at: dt.datetime


class Place(NamedTuple):
    """Where a page of discrepancies ended."""

    job_id: uuid.UUID
    attempt: int
    kind: DiscrepancyKind


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows are asked for; None is any."""

    kind: DiscrepancyKind | None = None
    worker_id: uuid.UUID | None = None
    customer_id: uuid.UUID | None = None
    against_worker: bool = False


async def list_discrepancies(pool: Pool, about: About, *, after: Place | None, limit: int) -> list[Discrepancy]:
    """Discrepancies, newest first.

    Raises:
        MalformedError: the place is not one of a UUIDv7.
        LedgerUnavailableError: the database is away.
    """
    place = (None,) * 4 if after is None else (job_day(after.job_id), after.job_id, after.attempt, after.kind.value)
    kind = None if about.kind is None else about.kind.value
    async with acquired(pool) as connection:
        rows = await connection.fetch(
            _SQL["list_discrepancies"], kind, about.worker_id, about.customer_id, about.against_worker, *place, limit
        )
    return [
        Discrepancy(
            day=row["day"],
            job_id=row["job_id"],
            attempt=row["attempt"],
            kind=DiscrepancyKind(row["kind"]),
            worker_id=row["worker_id"],
            customer_id=row["customer_id"],
            against_worker=row["against_worker"],
            booked_attempt=row["booked_attempt"],
            booked=None
            if row["booked_nano"] is None
            else Counts(
                prompt_tokens=row["booked_prompt_tokens"],
                cached_tokens=row["booked_cached_tokens"],
                completion_tokens=row["booked_completion_tokens"],
                nano=row["booked_nano"],
            ),
            claimed=Counts(
                prompt_tokens=row["claimed_prompt_tokens"],
                cached_tokens=row["claimed_cached_tokens"],
                completion_tokens=row["claimed_completion_tokens"],
                nano=int(row["claimed_nano"]),
            ),
            created_at=row["created_at"],
        )
        for row in rows
    ]


async def list_recoveries(pool: Pool, about: About, *, after: uuid.UUID | None, limit: int) -> list[RecoveredCharge]:
    """Recovered charges, newest first; of `about` only worker and customer count.

    Raises:
        MalformedError: `after` is not a UUIDv7.
        LedgerUnavailableError: the database is away.
    """
    day = None if after is None else job_day(after)
    async with acquired(pool) as connection:
        rows = await connection.fetch(_SQL["list_recoveries"], about.worker_id, about.customer_id, day, after, limit)
    return [RecoveredCharge(**{name: row[name] for name in RecoveredCharge.__struct_fields__}) for row in rows]
