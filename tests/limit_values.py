"""Principals with limits, and limiters to try them on."""

import random
import uuid
from typing import Any

from cocoon.clock import Clock, SystemClock
from cocoon.ids import new_job_id
from gateway.auth import Principal, Project
from gateway.limiter import LimitTerms, SlicedLimiter
from gateway.memory_slices import InMemorySpend
from gateway.permits import SlicedPermit
from gateway.slices import SliceStore, SpendBooks

DICE = random.Random(11)
PATIENT = LimitTerms(wait_s=20.0)
"""A busy test machine may be slower than production's patience."""


def a_principal(project: dict[str, Any] | None = None, **limits: Any) -> Principal:
    """A key of its own with these limits, in a project of its own with those."""
    return Principal(
        key_id=uuid.UUID(int=DICE.getrandbits(128)),
        customer_id=uuid.UUID(int=2),
        name="test",
        project=Project(project_id=uuid.UUID(int=DICE.getrandbits(128)), **project) if project else None,
        **limits,
    )


def a_limiter(
    store: SliceStore, clock: Clock | None = None, books: SpendBooks | None = None, **members: Any
) -> SlicedLimiter:
    """A limiter that is not running yet."""
    members = {"terms": PATIENT, **members}
    return SlicedLimiter(store, books or InMemorySpend(), clock or SystemClock(), random.Random(5), **members)


class Caller:
    """One key at one limiter."""

    def __init__(self, limiter: SlicedLimiter, principal: Principal, clock: Clock | None = None) -> None:
        self.limiter = limiter
        self.principal = principal
        self.clock = clock or SystemClock()

    async def acquire(self, tokens: int = 0, nano: int = 0) -> SlicedPermit:
        job_id = new_job_id(self.clock, DICE)
        return await self.limiter.acquire(self.principal, job_id=job_id, tokens=tokens, nano=nano)
