"""What keys and projects have spent in a day or a month: sums over the daily rollups, never over usage rows."""

from collections.abc import Sequence
from importlib.resources import files

from billing.ports import BillingError
from billing.postgres.pool import Pool, acquired
from cocoon.sql import named_statements
from gateway.slices import SpendAsk, SpendUnavailableError

_SQL = named_statements(files("gateway.postgres").joinpath("spend.sql").read_text(encoding="utf-8"))


class PostgresSpend:
    """See `gateway.slices.SpendBooks`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def spent(self, asks: Sequence[SpendAsk]) -> list[int]:
        """See `gateway.slices.SpendBooks.spent`: one query, whatever the number of asks."""
        columns = [list(column) for column in zip(*asks, strict=True)]
        try:
            async with acquired(self._pool) as connection:
                rows = await connection.fetch(_SQL["spent"], *columns)
        except BillingError as error:
            raise SpendUnavailableError(error.code) from error
        return [int(row["nano"]) for row in rows]
