"""The table of workers' stakes: registered by enrolment, filled from the chain by the biller, read by routers."""

import datetime as dt
import uuid

from billing.postgres.pool import Pool, Record, acquired
from billing.postgres.statements import load_statements
from billing.stakes import Stake, StakeSeen, StakeState

CHANNEL = "stakes"
"""Told of every change, with the stake's address."""
_SQL = load_statements("stakes.sql")


class Stakes:
    """Every method raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def register(self, address: str, worker_id: uuid.UUID) -> None:
        """A worker's keyset names the stake at this address (raw form)."""
        async with acquired(self._pool) as connection:
            await connection.execute(_SQL["register_stake"], address, worker_id)

    async def all(self) -> tuple[Stake, ...]:
        """Every stake that was ever named."""
        async with acquired(self._pool) as connection:
            return tuple(_stake(row) for row in await connection.fetch(_SQL["list_stakes"]))

    async def observe(self, address: str, seen: StakeSeen) -> bool:
        """Keep what a block showed; False for an older block than the last."""
        state = StakeState.SLASHED if seen.slashed else StakeState.LIVE
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(
                _SQL["update_stake"], address, seen.owner, seen.staked_key, seen.operator_key, seen.unbond_s,
                state.value, seen.bond_nano, seen.unbonding_nano, seen.unbond_at, seen.seqno, seen.at,
            )  # fmt: skip
        return row is not None

    async def refuse(self, address: str, seqno: int, at: dt.datetime) -> bool:
        """What is there is no stake for this network; False for an older block than the last."""
        async with acquired(self._pool) as connection:
            return await connection.fetchrow(_SQL["refuse_stake"], address, seqno, at) is not None


def _stake(row: Record) -> Stake:
    return Stake(
        address=row["address"],
        worker_id=row["worker_id"],
        state=StakeState(row["state"]),
        bond_nano=row["bond_nano"],
        unbonding_nano=row["unbonding_nano"],
        unbond_at=row["unbond_at"],
        unbond_s=row["unbond_s"],
        owner=row["owner"],
        staked_key=row["staked_key"],
        operator_key=row["operator_key"],
        seen_seqno=row["seen_seqno"],
        seen_at=row["seen_at"],
    )
