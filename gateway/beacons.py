"""The chain as attestation needs it: the last block, kept at hand for agents, and the blocks that statements name.

Nothing of it is on the way of a request: the last block is asked for every few seconds, and a named one is looked up
while evidence is judged, once. A chain that is away takes nothing away but what it would have shown.
"""

import asyncio
from typing import Final

import structlog

from billing.ton.beacons import beacon_of, own_beacon
from billing.ton.chain import Chain, ChainError
from cocoon.clock import Clock
from cocoon.statement import Beacon

REFRESH_S: Final = 5.0
FORGOTTEN_S: Final = 30.0
"""A last block that nobody has confirmed for so long is handed to nobody."""
LOOK_UP_S_MAX: Final = 2.0
"""An enrolment waits no longer for the chain, and a customer's question neither."""
FOUND_MAX: Final = 1024
"""Blocks that were seen or found and are not looked up again; workers name those that they were told of here."""
log = structlog.get_logger()


class Beacons:
    """Blocks of `chain`; without one there are none."""

    def __init__(self, chain: Chain | None, clock: Clock) -> None:
        self._chain = chain
        self._clock = clock
        self._head: Beacon | None = None
        self._seen_at = 0.0
        self._found: set[Beacon] = set()

    @property
    def head(self) -> Beacon | None:
        """The last block, as of a few seconds ago; None without a chain, and while it is away."""
        fresh = self._clock.monotonic() - self._seen_at < FORGOTTEN_S
        return self._head if fresh else None

    async def run(self) -> None:
        """Ask for the last block, for ever."""
        chain = self._chain
        while chain is not None:
            try:
                self._head = beacon_of(await chain.head())
                self._seen_at = self._clock.monotonic()
                self._remember(self._head)
            except ChainError as error:
                log.warning("head_not_read", code=error.code, reason=str(error))
            await asyncio.sleep(REFRESH_S)
        await asyncio.Event().wait()

    async def own(self, named: Beacon) -> Beacon | None:
        """What our chain has where a statement names a block (`own_beacon`); None also where it does not answer now."""
        if self._chain is None or named in self._found:
            return None if self._chain is None else named
        try:
            async with asyncio.timeout(LOOK_UP_S_MAX):
                found = await own_beacon(self._chain, named)
        except (ChainError, TimeoutError) as error:
            log.warning("beacon_not_read", seqno=named.seqno, reason=str(error) or type(error).__name__)
            return None
        if found == named:
            self._remember(named)
        return found

    def _remember(self, beacon: Beacon) -> None:
        if len(self._found) >= FOUND_MAX:
            self._found.clear()
        self._found.add(beacon)
