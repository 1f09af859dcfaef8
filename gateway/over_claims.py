"""Answers that came with more tokens than their tickets allowed: recorded apart from the requests that they ended.

What is charged is cut down to the ticket in any case; the record is what makes it count against the worker, whether or
not the worker delivers the receipt in which it says so.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from billing.ports import BillingError, Settlement
from cocoon.usage import TokenUsage

WAITING_MAX = 1000
"""Records that wait while the database is away; a worker that makes more is known by these."""
TOGETHER_MAX = 100
RETRY_S = 1.0
log = structlog.get_logger()

Noter = Callable[[Sequence[tuple[Settlement, TokenUsage]]], Awaitable[None]]


class OverClaims:
    """One process's records on their way to the books."""

    def __init__(self, record: Noter) -> None:
        self._record = record
        self._waiting: deque[tuple[Settlement, TokenUsage]] = deque()
        self._wake = asyncio.Event()

    def note(self, settlement: Settlement, claimed: TokenUsage) -> None:
        """An attempt that is settled for less than its worker claimed, because its ticket allows no more."""
        log.warning(
            "over_claimed", job_id=str(settlement.job_id), worker_id=str(settlement.worker_id),
            prompt=claimed.prompt, completion=claimed.completion,
        )  # fmt: skip
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append((settlement, claimed))
            self._wake.set()

    async def run(self) -> None:
        """Write down what is noted, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                together = [self._waiting[at] for at in range(min(TOGETHER_MAX, len(self._waiting)))]
                try:
                    await self._record(together)
                except BillingError as error:
                    log.warning("over_claims_not_recorded", code=error.code, waiting=len(self._waiting))
                    await asyncio.sleep(RETRY_S)
                    continue
                for _ in together:
                    self._waiting.popleft()
