"""Covers in Postgres: what one process may dispatch against each stake, and what it held when it died."""

import uuid
from collections.abc import Mapping, Sequence

from billing.postgres.pool import Pool, acquired, transaction
from billing.postgres.statements import load_statements
from billing.stakes import CoverRequest, CoverTerms, Exposure, Headroom, StakeState

CLAIMS_MAX = 500
"""Stakes that are claimed in one transaction."""
MARKS_PER_WINDOW = 64
"""How finely earnings are told apart by their age; each is a row of each stake."""
_SQL = load_statements("covers.sql")


class Covers:
    """One holder's claims. Every method raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool, holder: uuid.UUID, terms: CoverTerms) -> None:
        self._pool = pool
        self._holder = holder
        self._terms = terms
        self._seq = 0

    async def headrooms(self, addresses: Sequence[str]) -> list[Headroom]:
        """What those of these stakes cover that were ever registered."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["read_headroom"], addresses)
        return [
            Headroom(
                address=row["address"], worker_id=row["worker_id"], state=StakeState(row["state"]),
                headroom_nano=row["headroom_nano"],
            )
            for row in rows
        ]  # fmt: skip

    async def claim(self, claims: Sequence[CoverRequest]) -> Mapping[str, int]:
        """What is granted of each stake, in nano, what is used included.

        After an error nothing is known but that no less is on record for this holder than it kept.
        """
        assert len(claims) <= CLAIMS_MAX, "the caller bounds a batch"
        self._seq += 1
        addresses, window_s = [claim.address for claim in claims], self._terms.window_s
        async with transaction(self._pool) as connection:
            await connection.fetch(_SQL["lock_stakes"], addresses)
            if await connection.fetch(_SQL["mark_earnings"], addresses, window_s / MARKS_PER_WINDOW):
                await connection.execute(_SQL["forget_earnings"], addresses, window_s)
                await connection.execute(_SQL["forget_covers"], addresses)
            rows = await connection.fetch(
                _SQL["claim_covers"], self._holder, self._seq, addresses,
                [claim.used_nano for claim in claims],
                [claim.kept_nano for claim in claims],
                [claim.wanted_nano for claim in claims],
                self._terms.ttl_s + self._terms.linger_s, window_s,
            )  # fmt: skip
        return {row["address"]: row["amount_nano"] for row in rows}

    async def give_back(self, addresses: Sequence[str]) -> None:
        """Of these stakes this holder uses nothing, and claims nothing again."""
        async with acquired(self._pool) as connection:
            await connection.execute(_SQL["drop_covers"], self._holder, addresses)


async def list_exposures(pool: Pool, window_s: float) -> list[Exposure]:
    """Every stake with what is exposed under it, by the name of its worker."""
    async with acquired(pool) as connection:
        rows = await connection.fetch(_SQL["list_exposures"], window_s)
    return [
        Exposure(
            address=row["address"], worker_id=row["worker_id"], name=row["name"], state=StakeState(row["state"]),
            bond_nano=row["bond_nano"], unbonding_nano=row["unbonding_nano"], headroom_nano=row["headroom_nano"],
            earned_nano=row["earned_nano"], covered_nano=row["covered_nano"],
        )
        for row in rows
    ]  # fmt: skip
