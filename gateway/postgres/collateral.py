"""Collateral in PostgreSQL, for all replicas."""

from importlib.resources import files

from attestation.tdx.collateral import Collateral, Family, Validity
from billing.postgres.pool import Pool, acquired
from cocoon import canonical
from cocoon.sql import named_statements

_SQL = named_statements(files("gateway.postgres").joinpath("collateral.sql").read_text(encoding="utf-8"))


class CollateralStore:
    """Every method is one statement, and raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(self, family: Family, collateral: Collateral, validity: Validity) -> None:
        """Keep what was fetched, unless what is here is newer."""
        async with acquired(self._pool) as connection:
            await connection.execute(
                _SQL["put_collateral"], family.fmspc, family.ca, canonical.encode(collateral), validity.evaluation,
                validity.start, validity.end,
            )  # fmt: skip

    async def load(self) -> list[tuple[Family, Collateral]]:
        """Everything that is here.

        Raises:
            MalformedError: a row is not what this release writes.
        """
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["load_collateral"])
        return [
            (Family(fmspc=row["fmspc"], ca=row["ca"]), canonical.decode(row["content"], Collateral)) for row in rows
        ]
