"""Workers' stakes, from the books to routing: what each is worth, and how much of it this process may dispatch against.

Routing knows nothing of money, and the books nothing of routing; here they meet once a second, and at once when a
request finds too little of the stakes in this process. While the database is
away, what was granted holds until its time is over, and then nothing is dispatched against any stake.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

import structlog

from billing.ports import BillingError
from billing.postgres.covers import CLAIMS_MAX
from billing.stakes import CoverRequest, CoverTerms, Headroom, StakeState
from cocoon.addresses import Address
from cocoon.clock import Clock
from cocoon.receipt import NO_STAKE
from workers.covers import Cover
from workers.registry import Registry

READ_S = 1.0
ASKED_PAUSE_S = 0.05
"""The least between two rounds when somebody asks for one: a stake that is used up must not keep the database busy."""
MARGIN_PART = 0.1
"""Of a cover's time to live: how much earlier than the database this process considers it over."""
log = structlog.get_logger()


class Store(Protocol):
    """What is used of `billing.postgres.covers.Covers`."""

    async def headrooms(self, addresses: Sequence[str]) -> list[Headroom]:
        """What these stakes cover."""
        ...

    async def claim(self, claims: Sequence[CoverRequest]) -> Mapping[str, int]:
        """What is granted of each."""
        ...

    async def give_back(self, addresses: Sequence[str]) -> None:
        """Nothing of these is used any more."""
        ...


class Stakes:
    """One process's covers, kept fresh. A unit of stake, in nano, answers for one request in flight."""

    def __init__(self, store: Store, registry: Registry, clock: Clock, terms: CoverTerms, unit_nano: int) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._terms = terms
        self._unit_nano = unit_nano
        self._covers: dict[bytes, Cover] = {}
        self._asked, self._answered = asyncio.Event(), asyncio.Event()
        self.loaded = asyncio.Event()
        """Set once the stakes of the workers that were known first have been claimed."""

    async def run(self) -> None:
        """Read, claim and apply until cancelled."""
        while True:
            self._asked.clear()
            answered, self._answered = self._answered, asyncio.Event()
            try:
                await self.refresh()
            except BillingError as error:
                log.warning("stakes_not_read", code=error.code)
            finally:
                answered.set()
            await asyncio.sleep(ASKED_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_S - ASKED_PAUSE_S):
                    await self._asked.wait()

    async def claim_now(self) -> None:
        """Have the next round begin at once, and wait for its end; whatever the store said, or did not."""
        self._asked.set()
        await self._answered.wait()

    async def refresh(self) -> None:
        """Look at the stakes of all enrolled workers, and claim of them what is due.

        Raises:
            LedgerUnavailableError: the database is away; what was granted holds for its time.
        """
        named = {worker.stake for worker in self._registry.workers() if worker.stake != NO_STAKE}
        accounts = sorted(named | self._covers.keys())
        seen = await self._store.headrooms([_address(account) for account in accounts]) if accounts else []
        # A cover that is used outlives its worker's enrolment.
        covers = {
            cover.account: cover for cover in map(self._observe, seen) if cover.account in named or cover.used_nano
        }
        left = [_address(account) for account in self._covers.keys() - covers.keys()]
        self._covers = covers
        self._registry.set_covers(covers)
        if left:
            await self._store.give_back(left)
        now = self._clock.monotonic()
        due = iter([cover for cover in covers.values() if cover.is_due(now)])
        while batch := list(islice(due, CLAIMS_MAX)):
            await self._claim(batch)
        self.loaded.set()

    async def close(self) -> None:
        """Give back what is not used, so that others need not wait for its time to pass."""
        idle = [_address(cover.account) for cover in self._covers.values() if not cover.used_nano]
        if not idle:
            return
        try:
            await self._store.give_back(idle)
        except BillingError as error:
            log.warning("stakes_not_given_back", code=error.code)

    def _observe(self, seen: Headroom) -> Cover:
        account = Address.parse(seen.address).account
        cover = self._covers.get(account)
        if cover is None:
            cover = Cover(account, seen.worker_id)
        cover.worker_id = seen.worker_id
        cover.units = seen.headroom_nano / self._unit_nano
        cover.slashed = seen.state is StakeState.SLASHED
        cover.bound(seen.headroom_nano)
        return cover

    async def _claim(self, covers: Iterable[Cover]) -> None:
        sent = self._clock.monotonic()
        claims = [(cover, cover.claim(sent)) for cover in covers]
        granted = await self._store.claim(
            [
                CoverRequest(_address(claim.account), claim.used_nano, claim.kept_nano, claim.wanted_nano)
                for _, claim in claims
            ]
        )
        for cover, claim in claims:
            amount_nano = granted.get(_address(claim.account))
            if amount_nano is not None:
                cover.answered(
                    claim, amount_nano, renews_at=sent + self._terms.ttl_s / 3,
                    ends_at=sent + self._terms.ttl_s * (1 - MARGIN_PART),
                )  # fmt: skip


def _address(account: bytes) -> str:
    return str(Address(0, account))
