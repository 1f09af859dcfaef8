"""Who changed what: rows written in the transaction of the change itself, and never changed."""

import datetime as dt
import uuid

import msgspec

from billing.postgres.pool import Connection, Pool, acquired
from billing.postgres.statements import load_statements

ACTOR_CHARACTERS_MAX = 160
SYSTEM_ACTOR = "system"
"""Whoever has no name: the programs themselves."""
_SQL = load_statements("audit.sql")

Detail = dict[str, str | int | bool | list[str] | None]
"""What was set; names and limits, never a secret."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change by `actor` (a key's id or an account of the machine). `customer_id` is the organisation concerned."""

    actor: str
    action: str
    customer_id: uuid.UUID | None
    subject_id: uuid.UUID
    detail: Detail


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """A change as recorded; `id` grows with time."""

    id: int
    created_at: dt.datetime
    actor: str
    action: str
    customer_id: uuid.UUID | None
    subject_id: uuid.UUID
    detail: Detail


async def record(connection: Connection, change: Change) -> None:
    """Write a change down; the caller's transaction makes both happen or neither."""
    await connection.execute(
        _SQL["insert_audit"],
        change.actor[:ACTOR_CHARACTERS_MAX],
        change.action,
        change.customer_id,
        change.subject_id,
        msgspec.json.encode(change.detail).decode(),
    )


async def list_changes(pool: Pool, customer_id: uuid.UUID | None, *, before: int | None, limit: int) -> list[AuditRow]:
    """Changes, newest first, of one organisation or (None) of all; `before` is the id where the last page ended."""
    async with acquired(pool) as connection:
        rows = await connection.fetch(_SQL["list_audit"], customer_id, before, limit)
    return [
        AuditRow(
            id=row["id"],
            created_at=row["created_at"],
            actor=row["actor"],
            action=row["action"],
            customer_id=row["customer_id"],
            subject_id=row["subject_id"],
            detail=msgspec.json.decode(row["detail"], type=Detail),
        )
        for row in rows
    ]
