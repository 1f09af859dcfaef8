"""Leases and books in memory: what `billing.leases` is tested with where no Postgres runs. Forgets."""

import asyncio
import datetime as dt
import itertools
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from billing import ledger
from billing.ceilings import Ceiling, EscrowCredit, Withheld, ceiling
from billing.lease_store import (
    JournalRow,
    LeaseActiveError,
    LeaseAnswer,
    LeaseChange,
    LeaseExhaustedError,
    LeaseLostError,
    lease_grant,
)
from billing.ledger import Code, Numerators
from billing.ports import (
    Balance,
    BillingError,
    HoldClosedError,
    Posted,
    Settlement,
    TransferConflictError,
    UnknownCustomerError,
)
from cocoon.clock import Clock
from cocoon.ids import job_day
from cocoon.money import Amount


class _Customer(msgspec.Struct):
    """`before` was spent when there was no escrow."""

    available: int = 0
    spent: int = 0
    numerator: int = 0
    before: int = 0
    escrows: tuple[EscrowCredit, ...] = ()
    unsigned_max: int = 0


class _Lease(msgspec.Struct):
    """`state` is active, recovering or closed."""

    customer_id: uuid.UUID
    fence: int
    expires_at: dt.datetime
    state: str = "active"
    amount: int = 0
    seq: int = 0
    answer: LeaseAnswer | None = None
    answered_at: dt.datetime | None = None


class InMemoryLeases:
    """A `LeaseStore` and its `Books`. Every method decides without awaiting, so that each is atomic."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._customers: dict[uuid.UUID, _Customer] = {}
        self._deposits: dict[uuid.UUID, bytes] = {}
        self._leases: dict[uuid.UUID, _Lease] = {}
        self._fences = itertools.count(1)
        self._posted: dict[tuple[uuid.UUID, int], tuple[bytes, Posted]] = {}
        self._attempts: defaultdict[uuid.UUID, set[int]] = defaultdict(set)
        self._workers: defaultdict[uuid.UUID, int] = defaultdict(int)
        self._revenue = 0
        self._listeners: list[Callable[[uuid.UUID, str], None]] = []
        self._moment = itertools.count(1)
        self.refused: list[tuple[Settlement, str]] = []

    async def change(self, changes: Sequence[LeaseChange]) -> list[LeaseAnswer | BillingError]:
        """See `LeaseStore.change`."""
        answers: list[LeaseAnswer | BillingError] = []
        for change in changes:
            try:
                answers.append(self._change(change))
            except BillingError as error:
                answers.append(error)
        return answers

    def _change(self, change: LeaseChange) -> LeaseAnswer:
        customer = self._customers.get(change.customer_id)
        if customer is None:
            raise UnknownCustomerError
        lease = self._leases.get(change.lease_id)
        if lease is not None and lease.seq == change.seq and lease.answer is not None:
            return lease.answer
        if (lease is None) != (change.seq == 1) or (lease is not None and lease.state != "active"):
            raise LeaseLostError
        room, spendable = None, customer.available
        if customer.escrows:
            room = self._ceiling(customer, change.customer_id)
            spendable = min(spendable, room.room_nano - self._promised(change.customer_id))
        grant = lease_grant(spendable + change.give_back_nano, change)
        short = grant < change.need_min_nano
        withheld: Withheld | None = None
        if short and room is not None and customer.available + change.give_back_nano >= change.need_min_nano:
            lacking = change.need_min_nano - change.give_back_nano - spendable
            withheld = Withheld(ceiling=room, lacking_nano=lacking)
        if lease is None:
            if short:
                return LeaseAnswer(fence=0, delta_nano=0, short=True, alone=self._alone(change), withheld=withheld)
            lease = _Lease(change.customer_id, next(self._fences), self._clock.now())
            self._leases[change.lease_id] = lease
        delta = grant - change.give_back_nano
        customer.available -= delta
        lease.amount += delta
        assert lease.amount >= 0, "nobody gives back what was not leased"
        assert customer.available >= 0, "nobody is granted what is not there"
        lease.seq = change.seq
        lease.expires_at = self._clock.now() + dt.timedelta(seconds=change.ttl_s)
        if change.answers_recall:
            lease.answered_at = self._now()
        if change.close:
            assert lease.amount == 0, "a lease is closed when it is empty"
            lease.state = "closed"
        lease.answer = LeaseAnswer(
            fence=lease.fence, delta_nano=delta, short=short, alone=short and self._alone(change), withheld=withheld
        )
        return lease.answer

    def set_escrows(self, customer_id: uuid.UUID, unsigned_max_nano: int, *escrows: EscrowCredit) -> None:
        """What the customer's credit comes from, the oldest first; what it had spent before is none of theirs."""
        customer = self._customers[customer_id]
        if not customer.escrows:
            customer.before = customer.spent
        customer.escrows, customer.unsigned_max = escrows, unsigned_max_nano

    def _promised(self, customer_id: uuid.UUID) -> int:
        return sum(lease.amount for lease in self._leases.values() if lease.customer_id == customer_id)

    def _ceiling(self, customer: _Customer, customer_id: uuid.UUID) -> Ceiling:
        charged = sum(escrow.charged_nano for escrow in customer.escrows)
        unattributed = customer.spent - customer.before - charged
        left = sum(escrow.deposited_nano for escrow in customer.escrows) - charged - unattributed
        return ceiling(
            customer.escrows,
            unattributed_nano=unattributed,
            other_nano=customer.available + self._promised(customer_id) - max(0, left),
            unsigned_max_nano=customer.unsigned_max,
        )

    def _alone(self, change: LeaseChange) -> bool:
        return not any(
            lease.state == "active"
            and lease.customer_id == change.customer_id
            and lease.amount > 0
            and lease_id != change.lease_id
            and (change.recalled_at is None or lease.answered_at is None or lease.answered_at < change.recalled_at)
            for lease_id, lease in self._leases.items()
        )

    async def flush(self, rows: Sequence[JournalRow]) -> list[Posted | BillingError]:
        """See `LeaseStore.flush`."""
        answers: list[Posted | BillingError] = []
        for row in rows:
            try:
                answers.append(self._post(row))
            except BillingError as error:
                if not isinstance(error, LeaseActiveError):
                    self.refused.append((row.settlement, error.code))
                answers.append(error)
        return answers

    def _post(self, row: JournalRow) -> Posted:
        settlement = row.settlement
        digest = ledger.body_digest(settlement)
        known = self._posted.get((settlement.job_id, settlement.attempt))
        if known is not None:
            if known[0] != digest:
                raise TransferConflictError
            return known[1]
        if self._attempts[settlement.job_id]:
            raise HoldClosedError
        lease = self._paying_lease(row)
        customer = self._customers[settlement.customer_id]
        worker = settlement.worker_id
        before = Numerators(
            customer=customer.numerator, worker=self._workers[worker] if worker else 0, revenue=self._revenue
        )
        charge = ledger.charge(settlement, before)
        if charge.posted.charge.nano > lease.amount:
            raise LeaseExhaustedError
        lease.amount -= charge.posted.charge.nano
        customer.numerator, self._revenue = charge.after.customer, charge.after.revenue
        customer.spent += charge.posted.charge.nano
        if worker is not None:
            self._workers[worker] = charge.after.worker
        self._posted[settlement.job_id, settlement.attempt] = (digest, charge.posted)
        self._attempts[settlement.job_id].add(settlement.attempt)
        return charge.posted

    def _paying_lease(self, row: JournalRow) -> _Lease:
        lease = self._leases.get(row.lease_id)
        if lease is None or lease.customer_id != row.settlement.customer_id or lease.state == "closed":
            raise LeaseLostError
        if row.fence is None and lease.state == "active":
            raise LeaseActiveError
        if row.fence is not None and row.fence != lease.fence:
            raise LeaseLostError
        return lease

    async def find(self, job_id: uuid.UUID, attempt: int) -> tuple[bytes, Posted] | None:
        """See `LeaseStore.find`."""
        return self._posted.get((job_id, attempt))

    async def recall(self, customer_ids: Sequence[uuid.UUID], holder: str) -> dt.datetime:
        """See `LeaseStore.recall`."""
        asked = self._now()
        for customer_id in customer_ids:
            for heard in list(self._listeners):
                heard(customer_id, holder)
        return asked

    async def follow_recalls(self, heard: Callable[[uuid.UUID, str], None]) -> None:
        """See `LeaseStore.follow_recalls`."""
        self._listeners.append(heard)
        try:
            await asyncio.Event().wait()
        finally:
            self._listeners.remove(heard)

    async def sweep(self, limit: int, recovery_s: float) -> int:
        """See `LeaseStore.sweep`."""
        now = self._clock.now()
        due = [lease for lease in self._leases.values() if lease.state != "closed" and lease.expires_at <= now]
        for lease in due[:limit]:
            if lease.state == "active":
                lease.state, lease.expires_at = "recovering", now + dt.timedelta(seconds=recovery_s)
            else:
                self._customers[lease.customer_id].available += lease.amount
                lease.state, lease.amount = "closed", 0
        return len(due[:limit])

    async def expire_due(self, limit: int) -> int:  # noqa: ARG002  the port's
        """There are no holds beside leases here."""
        return 0

    async def deposit(self, transfer_id: uuid.UUID, customer_id: uuid.UUID, amount: Amount) -> None:
        """See `Ledger.deposit`."""
        assert amount.nano > 0, "a deposit adds something"
        job_day(transfer_id)
        digest = ledger.movement_digest(Code.DEPOSIT, customer_id, amount)
        known = self._deposits.setdefault(transfer_id, digest)
        if known != digest:
            raise TransferConflictError
        if known is not digest:
            return
        self._customers.setdefault(customer_id, _Customer()).available += amount.nano

    async def balance(self, customer_id: uuid.UUID) -> Balance:
        """See `Ledger.balance`."""
        customer = self._customers.get(customer_id)
        if customer is None:
            raise UnknownCustomerError
        held = sum(lease.amount for lease in self._leases.values() if lease.customer_id == customer_id)
        return Balance(available=Amount(customer.available), held=Amount(held), spent=Amount(customer.spent))

    def _now(self) -> dt.datetime:
        """The store's time, never the same twice: a clock that stands still must not make an answer look old."""
        return self._clock.now() + dt.timedelta(microseconds=next(self._moment))
