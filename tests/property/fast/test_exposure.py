"""Whatever is leased, charged, signed, settled or closed in whatever order: what is used and not signed stays bounded.

The store in memory; `tests.ceiling_conformance` holds the one in Postgres to the same rules.
"""

import asyncio
import datetime as dt
import random
import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.ceilings import EscrowCredit
from billing.lease_store import JournalRow
from billing.memory_leases import InMemoryLeases
from billing.ports import Posted
from cocoon.clock import ManualClock
from cocoon.money import Amount
from cocoon.usage import TokenUsage
from tests.ceiling_conformance import NANO, escrow
from tests.lease_store_conformance import change, one
from tests.ledger_values import job_id, settlement

UNSIGNED_MAX = 100
DEPOSIT = 1_000


class Scene:
    """One customer, one escrow, and every lease that was ever granted."""

    def __init__(self, rng: random.Random, *, delegated: bool) -> None:
        self.rng = rng
        self.clock = ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))
        self.store = InMemoryLeases(self.clock)
        self.customer = uuid.uuid4()
        self.escrow = escrow(DEPOSIT, signed=None if delegated else 0, allowance_nano=80 if delegated else None)
        self.leases: list[tuple[uuid.UUID, int, int, int]] = []
        self.charged = 0
        self.frozen: int | None = None

    async def start(self) -> None:
        await self.store.deposit(job_id(), self.customer, Amount(DEPOSIT))
        self.show()

    def show(self, **changes: object) -> None:
        fields = {name: getattr(self.escrow, name) for name in EscrowCredit.__struct_fields__}
        self.escrow = EscrowCredit(**{**fields, **changes})
        self.store.set_escrows(self.customer, UNSIGNED_MAX, self.escrow)

    async def step(self) -> None:
        await self.rng.choice(
            [
                self.lease,
                self.lease,
                self.charge,
                self.charge,
                self.give_back,
                self.sign,
                self.settle,
                self.crash,
                self.close,
            ]
        )()

    async def lease(self) -> None:
        least, more = self.rng.randint(1, 60), self.rng.randint(0, 200)
        asked = change(self.customer, need_min_nano=least, need_nano=least + more, headroom_nano=more)
        answer = await one(self.store, asked)
        if answer.fence:
            self.leases.append((asked.lease_id, answer.fence, answer.delta_nano, 1))
            assert self.frozen is None, "a close request freezes admission"

    async def charge(self) -> None:
        if self.leases:
            number = self.rng.randrange(len(self.leases))
            lease_id, fence, amount, seq = self.leases[number]
            nano = self.rng.randint(0, max(0, amount))
            used = settlement(job_id(), self.customer, usage=TokenUsage(prompt=nano), price=NANO)
            [posted] = await self.store.flush([JournalRow(settlement=used, lease_id=lease_id, fence=fence)])
            if isinstance(posted, Posted):
                self.charged += nano
                self.leases[number] = (lease_id, fence, amount - nano, seq)

    async def give_back(self) -> None:
        if self.leases:
            lease_id, _, amount, seq = self.leases.pop(self.rng.randrange(len(self.leases)))
            # One that has expired is lost, and that is an answer too.
            await self.store.change(
                [change(self.customer, lease=lease_id, seq=seq + 1, give_back_nano=amount, close=True)]
            )

    async def sign(self) -> None:
        """The client signs up to what it was charged, never more."""
        if self.escrow.signed_nano is not None:
            most = max(self.escrow.signed_nano, self.charged)
            self.show(signed_nano=self.rng.randint(self.escrow.signed_nano, most))

    async def settle(self) -> None:
        """The operator settles what it may: a voucher, or its own within the allowance, which goes down by as much."""
        due = min(self.escrow.signed_nano if self.escrow.signed_nano is not None else self.charged, DEPOSIT)
        if self.escrow.allowance_nano is not None:
            due = min(due, self.escrow.settled_nano + self.escrow.allowance_nano)
            paid = max(0, due - self.escrow.settled_nano)
            refilled = self.rng.randint(0, 80)
            self.show(
                settled_nano=self.escrow.settled_nano + paid,
                allowance_nano=min(80, self.escrow.allowance_nano - paid + refilled),
            )
        elif due > self.escrow.settled_nano:
            self.show(settled_nano=due)

    async def crash(self) -> None:
        """Every lease of now expires into recovery, or what was there goes back."""
        self.clock.advance(901)
        await self.store.sweep(100, 900)

    async def close(self) -> None:
        if self.rng.random() < 0.1:
            self.show(closing=True)
            self.frozen = self.charged

    async def held(self) -> int:
        return (await self.store.balance(self.customer)).held.nano

    async def check(self) -> None:
        used = self.charged + await self.held()
        covered = self.escrow.settled_nano if self.escrow.signed_nano is None else self.escrow.signed_nano
        bound = 80 if self.escrow.signed_nano is None else UNSIGNED_MAX
        assert used - covered <= bound
        assert used <= DEPOSIT


@given(seed=st.integers(0, 2**32), delegated=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_used_and_not_signed_or_allowed_never_passes_the_bound(seed: int, delegated: bool) -> None:
    async def play() -> None:
        scene = Scene(random.Random(seed), delegated=delegated)
        await scene.start()
        for _ in range(60):
            await scene.step()
            await scene.check()

    asyncio.run(play())
