"""The outbox's store in memory: what `billing.postgres.outbox` does, for tests that kill it thousands of times."""

from collections.abc import Sequence

from billing.ports import RecordRefusedError
from billing.ton.outbox import ATTEMPTS_MAX, Delivery, Intent, StoredBody


class MemoryOutbox:
    """One wallet's intents and bodies."""

    def __init__(self) -> None:
        self._intents: dict[str, Intent] = {}
        self._attempts: dict[str, int] = {}
        self._waiting: list[str] = []
        self._delivered: dict[str, int] = {}
        self._open: StoredBody | None = None
        self._executed: set[int] = set()
        self._bodies = 0

    async def enqueue(self, intents: Sequence[Intent]) -> None:
        for one in intents:
            if one.key not in self._intents:
                self._intents[one.key] = one
                self._waiting.append(one.key)

    async def pending(self) -> StoredBody | None:
        return self._open

    async def queued(self, limit: int) -> list[Intent]:
        tried = [key for key in self._waiting if self._attempts.get(key, 0) < ATTEMPTS_MAX]
        return [self._intents[key] for key in sorted(tried, key=list(self._intents).index)][:limit]

    async def last_seqno(self) -> int | None:
        return max(self._executed, default=None)

    async def keep(self, *, seqno: int, valid_until: int, boc: bytes, keys: Sequence[str]) -> None:
        if self._open is not None or seqno in self._executed:
            raise RecordRefusedError
        if any(key not in self._waiting for key in keys):
            raise RecordRefusedError("an intent is not queued any more")
        self._bodies += 1
        for key in keys:
            self._waiting.remove(key)
            self._attempts[key] = self._attempts.get(key, 0) + 1
        self._open = StoredBody(self._bodies, seqno, valid_until, boc, tuple(self._intents[key] for key in keys))

    async def settle(self, delivery: Delivery) -> None:
        body = self._open
        if body is None or body.body_id != delivery.body_id:
            return
        self._open = None
        if delivery.lt is not None:
            self._executed.add(body.seqno)
        for one in body.intents:
            if delivery.lt is not None and one.key in delivery.delivered:
                self._delivered[one.key] = delivery.lt
            else:
                self._waiting.append(one.key)

    async def delivered(self) -> dict[str, int]:
        """Keys of what was delivered, with the transaction's time."""
        return dict(self._delivered)
