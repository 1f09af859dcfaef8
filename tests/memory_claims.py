"""A `ClaimStore` in memory, for tests that open no sockets. One suite holds it to what Postgres does."""

import uuid
from collections.abc import Sequence

from billing.ports import BillingError, Outcome
from cocoon.clock import Clock
from gateway.idempotency import KEEP_S, Claim, Ended, Standing
from gateway.outcomes import Turn


class Row:
    """One claim; `expires_at` is monotonic."""

    def __init__(self, turn: Turn, expires_at: float) -> None:
        self.body_tag = turn.body_tag
        self.job_id = turn.job_id
        self.standing = Standing.RUNNING
        self.outcome: bytes | None = None
        self.expires_at = expires_at


class MemoryClaims:
    """Set `away` to have every method fail; put what the books charged into `charged`."""

    def __init__(self, clock: Clock) -> None:
        self.rows: dict[bytes, Row] = {}
        self.charged: dict[uuid.UUID, Outcome] = {}
        self.written_off: set[uuid.UUID] = set()
        self.away: BillingError | None = None
        self.asked = 0
        self._clock = clock

    async def claim(self, turn: Turn, claim_s: float) -> Claim:
        self._require()
        self.asked += 1
        now = self._clock.monotonic()
        row = self.rows.get(turn.key_tag)
        if row is not None and row.expires_at <= now:
            row = self._taken_over(row, turn, now)
        if row is None:
            row = self.rows[turn.key_tag] = Row(turn, now + claim_s)
        return Claim(
            job_id=row.job_id,
            body_tag=row.body_tag,
            standing=row.standing,
            outcome=row.outcome if row.body_tag == turn.body_tag else None,
        )

    async def renew(self, turns: Sequence[Turn], claim_s: float) -> None:
        self._require()
        for turn in turns:
            row = self.rows.get(turn.key_tag)
            if row is not None and row.job_id == turn.job_id and row.standing is Standing.RUNNING:
                row.expires_at = self._clock.monotonic() + claim_s

    async def end(self, ends: Sequence[Ended]) -> None:
        self._require()
        for ended in ends:
            row = self.rows.get(ended.turn.key_tag)
            if row is None or row.job_id != ended.turn.job_id:
                continue
            if ended.standing is None:
                del self.rows[ended.turn.key_tag]
                continue
            row.standing, row.outcome = ended.standing, ended.outcome
            row.expires_at = self._clock.monotonic() + ended.keep_s

    async def sweep(self, limit: int) -> int:
        self._require()
        now = self._clock.monotonic()
        due = [
            tag
            for tag, row in self.rows.items()
            if row.expires_at <= now - (KEEP_S if row.standing is Standing.RUNNING else 0)
        ][:limit]
        for tag in due:
            del self.rows[tag]
        return len(due)

    def _taken_over(self, row: Row, turn: Turn, now: float) -> Row | None:
        if row.standing is not Standing.RUNNING:
            return None
        if row.body_tag != turn.body_tag:
            return row
        charged = self.charged.get(row.job_id)
        if charged is None:
            self.written_off.add(row.job_id)
            return None
        row.standing = Standing.COMPLETED if charged is Outcome.COMPLETED else Standing.CHARGED
        row.expires_at = now + KEEP_S
        return row

    def _require(self) -> None:
        if self.away is not None:
            raise self.away
