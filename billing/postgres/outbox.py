"""The outbox in Postgres: one wallet's intents and signed bodies (`billing.ton.outbox` says what they mean).

Constraints keep what matters even against two processes at once: one open body for a wallet, no second body of a seqno
that was executed, and an intent in one open body at most.
"""

from collections.abc import Sequence

import msgspec

from billing.ports import RecordRefusedError
from billing.postgres.pool import Pool, acquired, transaction
from billing.postgres.statements import load_statements
from billing.ton.outbox import ATTEMPTS_MAX, Delivery, Intent, StoredBody
from billing.ton.wallet_messages import Transfer
from cocoon.addresses import Address
from cocoon.cells import BAG_CELLS_MAX, read_boc, write_boc

KEY_CHARS_MAX = 200
_SQL = load_statements("outbox.sql")


class IntentState(msgspec.Struct, frozen=True):
    """How far an intent is. `delivered_lt` is the wallet's transaction that sent it; stuck ones need somebody."""

    in_body: bool
    delivered_lt: int | None
    attempts: int

    @property
    def is_stuck(self) -> bool:
        """Whether it was tried so often without being sent that it is not tried any more."""
        return not self.in_body and self.delivered_lt is None and self.attempts >= ATTEMPTS_MAX


class PostgresOutbox:
    """The `OutboxStore` of one wallet."""

    def __init__(self, pool: Pool, wallet: Address) -> None:
        self._pool = pool
        self._wallet = str(wallet)

    async def enqueue(self, intents: Sequence[Intent]) -> None:
        """Keep intents; a key that is there already is left as it is."""
        async with transaction(self._pool) as connection:
            for one in intents:
                message = write_boc(one.transfer.encode())
                await connection.execute(_SQL["add_intent"], self._wallet, one.key, message)

    async def pending(self) -> StoredBody | None:
        """The body whose fate is open."""
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_SQL["open_body"], self._wallet)
            if row is None:
                return None
            intents = await connection.fetch(_SQL["intents_of_body"], row["id"])
        return StoredBody(
            body_id=row["id"], seqno=row["seqno"], valid_until=row["valid_until"], boc=row["boc"],
            intents=tuple(_intent(one["key"], one["message"]) for one in intents),
        )  # fmt: skip

    async def queued(self, limit: int) -> list[Intent]:
        """The oldest intents that are in no open body, are not delivered, and were not tried too often."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(_SQL["queued_intents"], self._wallet, ATTEMPTS_MAX, limit)
        return [_intent(row["key"], row["message"]) for row in rows]

    async def last_seqno(self) -> int | None:
        """The largest seqno of a body that was executed."""
        async with acquired(self._pool) as connection:
            seqno: int | None = await connection.fetchval(_SQL["last_seqno"], self._wallet)
        return seqno

    async def keep(self, *, seqno: int, valid_until: int, boc: bytes, keys: Sequence[str]) -> None:
        """Store a body with its intents, as the open one.

        Raises:
            RecordRefusedError: another body is open, one of this seqno was executed, or an intent is not queued.
        """
        async with transaction(self._pool) as connection:
            body_id: int = await connection.fetchval(_SQL["add_body"], self._wallet, seqno, valid_until, boc)
            taken = await connection.fetch(_SQL["take_intents"], self._wallet, body_id, list(keys))
            if len(taken) != len(keys):
                raise RecordRefusedError("an intent is not queued any more")

    async def settle(self, delivery: Delivery) -> None:
        """Close a body: mark what was delivered, and queue the rest again. Once more is no more than once."""
        async with transaction(self._pool) as connection:
            closed = await connection.fetchval(_SQL["close_body"], delivery.body_id, delivery.lt)
            if closed is None:
                return
            if delivery.lt is not None:
                keys = sorted(delivery.delivered)
                await connection.execute(_SQL["deliver_intents"], delivery.body_id, delivery.lt, keys)
            await connection.execute(_SQL["release_intents"], delivery.body_id)

    async def state(self, key: str) -> IntentState | None:
        """How far an intent is; None where there is none of that key."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(_SQL["intent_state"], self._wallet, key)
        if row is None:
            return None
        return IntentState(row["body_id"] is not None, row["delivered_lt"], row["attempts"])


def _intent(key: str, message: bytes) -> Intent:
    return Intent(key, Transfer.decode(read_boc(message, cells_max=BAG_CELLS_MAX)))
