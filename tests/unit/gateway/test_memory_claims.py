"""The store that unit tests use does what Postgres does."""

import uuid

import pytest

from billing.ports import Outcome
from cocoon.clock import ManualClock
from tests.claim_store_conformance import Charge, ClaimStoreConformance
from tests.memory_claims import MemoryClaims


class TestMemoryClaims(ClaimStoreConformance):
    @pytest.fixture
    def store(self) -> MemoryClaims:
        return MemoryClaims(ManualClock())

    @pytest.fixture
    def charge(self, store: MemoryClaims) -> Charge:
        async def charge(job_id: uuid.UUID, outcome: Outcome) -> None:
            store.charged[job_id] = outcome

        return charge
