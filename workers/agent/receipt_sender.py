"""Delivers receipts to the gateway, again and again until each has a final verdict.

A receipt is due some seconds after its job: in the ordinary case the gateway has settled by then and only says so.
"""

import asyncio
import random
from typing import Protocol

import msgspec
import structlog

from cocoon.receipt_batch import RECEIPTS_PATH, ReceiptVerdicts, Verdict
from workers.agent.receipt_store import DueReceipts, ReceiptStore

BATCH_MAX = 200
"""Well below what the gateway takes (500): a batch holds its event loop for a few milliseconds."""
PENDING_S_FIRST = 5.0
PENDING_S_MAX = 300.0
"""A pending receipt waits for its hold to expire: about a quarter of an hour."""
BACKOFF_S_FIRST = 0.5
BACKOFF_S_MAX = 60.0
_OK = 200

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Link(Protocol):
    """What is used of the standing with the gateway (`GatewayLink`; tests bring their own)."""

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """POST with the token of the current enrolment; status 0 when there was no answer or is no enrolment."""
        ...


class ReceiptSender:
    """One agent's deliveries."""

    def __init__(self, store: ReceiptStore, link: Link, rng: random.Random, *, grace_s: float) -> None:
        self._store = store
        self._link = link
        self._rng = rng
        self._grace_s = grace_s
        self._failures = 0

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            due = await self._store.due(BATCH_MAX)
            if due is None:
                await asyncio.sleep(min(self._grace_s, 1.0))
            elif not await self.deliver(due):
                backoff = min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2 ** min(self._failures - 1, 10))
                await asyncio.sleep(backoff * self._rng.uniform(0.5, 1.0))

    async def deliver(self, due: DueReceipts) -> bool:
        """Send one batch and note what was said; False when there was no usable answer, and nothing is noted."""
        status, raw = await self._link.post(RECEIPTS_PATH, msgspec.json.encode(due.batch))
        verdicts = _read_verdicts(raw, len(due.ids)) if status == _OK else None
        if verdicts is None:
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:
                _log.warning("receipts_not_delivered", status=status, failures=self._failures, count=len(due.ids))
            return False
        self._failures = 0
        await self._note(due, verdicts)
        return True

    async def _note(self, due: DueReceipts, verdicts: tuple[Verdict, ...]) -> None:
        final = [(row, verdict) for row, verdict in zip(due.ids, verdicts, strict=True) if verdict.final]
        waiting = [
            (row, tries) for row, tries, verdict in zip(due.ids, due.tries, verdicts, strict=True) if not verdict.final
        ]
        if final:
            await self._store.acknowledge([row for row, _ in final], [verdict for _, verdict in final])
        if waiting:
            first = min(PENDING_S_FIRST, self._grace_s)
            waits = [min(PENDING_S_MAX, first * 2 ** min(tries, 10)) for _, tries in waiting]
            await self._store.postpone([row for row, _ in waiting], waits)
        words = [verdict.value for verdict in verdicts]
        _log.info("receipts_judged", **{word: words.count(word) for word in sorted(set(words))})


def _read_verdicts(raw: bytes, count: int) -> tuple[Verdict, ...] | None:
    try:
        answer = msgspec.json.decode(raw, type=ReceiptVerdicts)
    except msgspec.DecodeError:
        return None
    return answer.verdicts if len(answer.verdicts) == count else None
