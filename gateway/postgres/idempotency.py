"""Claims on idempotency keys in Postgres."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from importlib.resources import files

from billing.ports import LedgerUnavailableError, Outcome
from billing.postgres.pool import Connection, Pool, acquired, transaction
from billing.postgres.write_off import GivenUp, write_off
from cocoon.sql import named_statements
from gateway.idempotency import KEEP_S, Claim, Ended, Standing
from gateway.outcomes import Turn

CONNECTIONS_MAX = 3
"""Of the process's pool: charges and leases must not wait for requests with a key."""
CONNECTION_S_MAX = 5.0
TRIES_MAX = 5
"""Somebody who takes or leaves the same key in the same moment makes ours start over."""
_SQL = named_statements(files("gateway.postgres").joinpath("idempotency.sql").read_text(encoding="utf-8"))


class PostgresClaims:
    """A `ClaimStore` on a shared pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connections = asyncio.Semaphore(CONNECTIONS_MAX)

    async def claim(self, turn: Turn, claim_s: float) -> Claim:
        """See `ClaimStore.claim`."""
        ours = (turn.key_tag, turn.body_tag, turn.job_id, turn.customer_id, turn.key_id, claim_s)
        async with self._turn_at_the_pool(), acquired(self._pool) as connection:
            for _ in range(TRIES_MAX):
                row = await connection.fetchrow(_SQL["claim_key"], *ours)
                if row is None:
                    continue
                claim = Claim(
                    job_id=row["job_id"], body_tag=row["body_tag"], standing=Standing(row["state"]),
                    outcome=row["outcome"],
                )  # fmt: skip
                running = claim.standing is Standing.RUNNING
                if not row["expired"] or (running and claim.body_tag != turn.body_tag):
                    return claim
                await _take_over(connection, turn, claim_s)
        raise LedgerUnavailableError("others take and leave the same key")

    async def renew(self, turns: Sequence[Turn], claim_s: float) -> None:
        """See `ClaimStore.renew`."""
        if not turns:
            return
        async with self._turn_at_the_pool(), acquired(self._pool) as connection:
            await connection.execute(_SQL["renew_claims"], *_names(turns), claim_s)

    async def end(self, ends: Sequence[Ended]) -> None:
        """See `ClaimStore.end`."""
        kept = [ended for ended in ends if ended.standing is not None]
        forgotten = [ended.turn for ended in ends if ended.standing is None]
        async with self._turn_at_the_pool(), transaction(self._pool) as connection:
            await connection.fetch(_SQL["lock_claims"], *_names([ended.turn for ended in ends]))
            if kept:
                await connection.execute(
                    _SQL["end_claims"],
                    *_names([ended.turn for ended in kept]),
                    [ended.standing for ended in kept],
                    [ended.outcome for ended in kept],
                    [ended.keep_s for ended in kept],
                )
            if forgotten:
                await connection.execute(_SQL["forget_claims"], *_names(forgotten))

    async def sweep(self, limit: int) -> int:
        """See `ClaimStore.sweep`."""
        async with self._turn_at_the_pool(), acquired(self._pool) as connection:
            done = await connection.execute(_SQL["sweep_claims"], limit, KEEP_S)
        return int(done.rpartition(" ")[2])

    @contextlib.asynccontextmanager
    async def _turn_at_the_pool(self) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(CONNECTION_S_MAX):
                await self._connections.acquire()
        except TimeoutError:
            raise LedgerUnavailableError("too many requests with an idempotency key at once") from None
        try:
            yield
        finally:
            self._connections.release()


async def _take_over(connection: Connection, turn: Turn, claim_s: float) -> None:
    """Make a claim past its time ours, or, when its job was charged after all, say what it ended as."""
    async with connection.transaction():
        row = await connection.fetchrow(_SQL["lock_expired_claim"], turn.key_tag)
        if row is None:
            return
        if row["state"] == Standing.RUNNING:
            charged = await write_off(
                connection,
                GivenUp(
                    job_id=row["job_id"], customer_id=row["customer_id"], key_id=row["key_id"], model=turn.model
                ),
            )  # fmt: skip
            if charged is not None:
                ended = Standing.COMPLETED if charged is Outcome.COMPLETED else Standing.CHARGED
                await connection.execute(_SQL["close_claim"], turn.key_tag, ended, KEEP_S)
                return
        await connection.execute(
            _SQL["take_over_claim"],
            turn.key_tag, turn.body_tag, turn.job_id, turn.customer_id, turn.key_id, claim_s,
        )  # fmt: skip


def _names(turns: Sequence[Turn]) -> tuple[list[bytes], list[object]]:
    return [turn.key_tag for turn in turns], [turn.job_id for turn in turns]
