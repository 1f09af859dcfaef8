"""The biller's alarms: rows and log lines, raised once and cleared when their reason is gone."""

import datetime as dt

import msgspec
import structlog

from billing.postgres.pool import Pool, acquired
from billing.postgres.statements import load_statements

ALARMS_MAX = 1000
DETAIL_CHARS_MAX = 1024
_SQL = load_statements("biller.sql")
log = structlog.get_logger()


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has to know of now."""

    kind: str
    subject: str
    detail: str
    raised_at: dt.datetime


class Alarms:
    """Every method raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def set(self, kind: str, raised: dict[str, str]) -> None:
        """Have exactly these alarms of a kind, by subject; each with its detail."""
        async with acquired(self._pool) as connection:
            for subject, detail in sorted(raised.items()):
                if await connection.fetchval(_SQL["raise_alarm"], kind, subject, detail[:DETAIL_CHARS_MAX]):
                    log.error("biller_alarm_raised", kind=kind, subject=subject, detail=detail)
            for row in await connection.fetch(_SQL["clear_alarms"], kind, list(raised)):
                log.info("biller_alarm_cleared", kind=kind, subject=row["subject"])

    async def open(self) -> list[Alarm]:
        """Every open alarm, the oldest first."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["open_alarms"], ALARMS_MAX)
        return [
            Alarm(kind=row["kind"], subject=row["subject"], detail=row["detail"], raised_at=row["raised_at"])
            for row in rows
        ]
