"""Keeps vendors' collateral at hand: shared between replicas, refreshed before it ends, served on while it cannot be.

Nothing here judges: whether collateral still holds is decided where a verdict is made, with the policy's grace.
"""

import asyncio
import random
from typing import Protocol

import structlog

from attestation.tdx.collateral import Collateral, CollateralCache, CollateralSource, Family, Validity, validity_of
from cocoon.errors import CocoonError

log = structlog.get_logger()


class Store(Protocol):
    """What is used of `gateway.postgres.collateral.CollateralStore`."""

    async def put(self, family: Family, collateral: Collateral, validity: Validity) -> None:
        """Keep what was fetched."""
        ...

    async def load(self) -> list[tuple[Family, Collateral]]:
        """Everything that is here."""
        ...


class SharedSource:
    """A source whose answers are kept for the other replicas."""

    def __init__(self, source: CollateralSource, store: Store) -> None:
        self._source = source
        self._store = store

    async def fetch(self, family: Family) -> Collateral:
        """Current collateral of a family.

        Raises:
            CocoonError: it cannot be had now.
        """
        collateral = await self._source.fetch(family)
        validity = validity_of(collateral)
        if validity.fmspc.upper() == family.fmspc:
            try:
                await self._store.put(family, collateral, validity)
            except CocoonError as error:
                log.warning("collateral_not_kept", fmspc=family.fmspc, ca=family.ca, code=error.code)
        return collateral


class CollateralKeeper:
    """One process's cache, kept equal to the store and fresh; every `interval_s` (seconds) and at the start."""

    def __init__(self, cache: CollateralCache, store: Store, rng: random.Random, interval_s: float) -> None:
        self._cache = cache
        self._store = store
        self._rng = rng
        self._interval_s = interval_s

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            # Replicas take turns: who comes second finds what the first one fetched.
            await asyncio.sleep(self._interval_s * (0.5 + self._rng.random() / 2))

    async def refresh(self) -> None:
        """Take over what others fetched, then fetch what ends soon."""
        try:
            for family, collateral in await self._store.load():
                self._take(family, collateral)
        except CocoonError as error:
            log.warning("collateral_not_loaded", code=error.code)
        for family in self._cache.due():
            try:
                await self._cache.refresh(family)
                log.info("collateral_refreshed", fmspc=family.fmspc, ca=family.ca)
            except CocoonError as error:
                # What is here is served on: the judge says for how long that is good.
                log.warning(
                    "collateral_not_refreshed", fmspc=family.fmspc, ca=family.ca, code=error.code, reason=str(error)
                )

    def _take(self, family: Family, collateral: Collateral) -> None:
        if self._cache.held(family) == collateral:
            return
        try:
            self._cache.put(family, collateral)
        except CocoonError as error:
            log.debug("collateral_older", fmspc=family.fmspc, ca=family.ca, code=error.code)
