"""What the biller has asked the outbox for: a purpose is asked for again only when it had no effect for a while."""

from collections.abc import Collection

import msgspec

from billing.postgres.pool import Pool, acquired
from billing.postgres.statements import load_statements
from billing.ton.outbox import ATTEMPTS_MAX
from cocoon.addresses import Address

EFFECT_S = 60.0
"""What was executed is not asked for again for so long: its messages take some blocks to arrive."""
_SQL = load_statements("biller.sql")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """How often something was asked for, and whether that is still under way.

    The wallet has sent it `delivered` times, first at the logical time `first_lt`, last `delivered_ago_s` seconds ago.
    """

    times: int
    is_open: bool
    delivered: int
    first_lt: int
    delivered_ago_s: float | None

    @property
    def is_over(self) -> bool:
        """Whether all of it has had its effect by now, if it ever will."""
        return not self.is_open and (self.delivered_ago_s is None or self.delivered_ago_s >= EFFECT_S)


class AskedFor:
    """Reads the intents of one wallet."""

    def __init__(self, pool: Pool, wallet: Address) -> None:
        self._pool = pool
        self._wallet = str(wallet)

    async def __call__(self, purposes: Collection[str]) -> dict[str, Asked]:
        """What became of each of these purposes; those that were never asked for are absent."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["asked"], self._wallet, list(purposes), ATTEMPTS_MAX)
        return {
            row["purpose"]: Asked(
                times=row["times"], is_open=bool(row["still_open"]), delivered=row["delivered"],
                first_lt=row["first_lt"], delivered_ago_s=row["delivered_ago_s"],
            )
            for row in rows
        }  # fmt: skip
