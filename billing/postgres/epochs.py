"""Epochs for whoever wants to see them: the books' own leaves, fixed before their root was sent."""

from billing.payouts import EpochUnknownError
from billing.postgres.pool import Pool, acquired
from billing.postgres.statements import load_statements
from cocoon.contracts.epochs import EpochLeaves, Leaf

_SQL = load_statements("payouts.sql")


class Epochs:
    """Every method is one read and raises `LedgerUnavailableError` when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def leaves(self, epoch: int | None = None) -> EpochLeaves:
        """The leaves of an epoch, of the last one without a number.

        Raises:
            EpochUnknownError: there is none, or not yet.
        """
        async with acquired(self._pool) as connection:
            found = await connection.fetchrow(_SQL["find_epoch"], epoch)
            if found is None:
                raise EpochUnknownError
            rows = await connection.fetch(_SQL["leaves"], found["epoch"])
        return EpochLeaves(
            payout=found["payout"],
            epoch=found["epoch"],
            root=found["root"].hex(),
            total_nano=int(found["total_nano"]),
            leaves=tuple(Leaf(row["wallet"], row["cumulative_nano"]) for row in rows),
        )
