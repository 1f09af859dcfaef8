"""Idempotent outcomes in Postgres."""

import uuid
from importlib.resources import files

from billing.postgres.pool import Pool, acquired
from cocoon.sql import named_statements
from gateway.idempotency import Claim, Standing

_SQL = named_statements(files("gateway.postgres").joinpath("idempotency.sql").read_text(encoding="utf-8"))


class PostgresOutcomes:
    """An `OutcomeStore` on a pool; each method is one short transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim(
        self, customer_id: uuid.UUID, key_sha256: bytes, body_sha256: bytes, job_id: uuid.UUID, running_s: float
    ) -> Claim:
        """See `OutcomeStore.claim`."""
        async with acquired(self._pool) as connection:
            while True:
                taken = await connection.fetchval(
                    _SQL["claim_key"], customer_id, key_sha256, body_sha256, job_id, running_s
                )
                if taken is not None:
                    return Claim(standing=Standing.NEW, job_id=job_id, body_sha256=body_sha256)
                row = await connection.fetchrow(_SQL["read_claim"], customer_id, key_sha256)
                if row is None:
                    continue  # forgotten between the two statements
                standing = Standing(row["state"])
                if standing is Standing.RUNNING and row["expired"]:
                    # Its process died, and it was charged: there is nothing to replay and nothing to repeat.
                    standing = Standing.CHARGED
                return Claim(
                    standing=standing,
                    job_id=row["job_id"],
                    body_sha256=row["body_sha256"],
                    outcome=row["outcome"],
                )

    async def keep(
        self, customer_id: uuid.UUID, key_sha256: bytes, job_id: uuid.UUID, outcome: bytes | None, keep_s: float
    ) -> None:
        """See `OutcomeStore.keep`."""
        async with acquired(self._pool) as connection:
            await connection.execute(_SQL["end_claim"], customer_id, key_sha256, job_id, outcome, keep_s)

    async def forget(self, customer_id: uuid.UUID, key_sha256: bytes, job_id: uuid.UUID) -> None:
        """See `OutcomeStore.forget`."""
        async with acquired(self._pool) as connection:
            await connection.execute(_SQL["forget_claim"], customer_id, key_sha256, job_id)

    async def sweep(self) -> None:
        """Delete what is over."""
        async with acquired(self._pool) as connection:
            await connection.execute(_SQL["sweep_claims"])
