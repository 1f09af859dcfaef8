"""The ledger in memory: the model that the real one is tested against, and the fake of other packages' tests."""

import datetime as dt
import enum
import uuid
from collections import defaultdict

import msgspec

from billing import ledger
from billing.ledger import Code, Numerators
from billing.ports import (
    Balance,
    Hold,
    HoldClosedError,
    HoldRequest,
    Posted,
    Settlement,
    TransferConflictError,
    UnknownCustomerError,
)
from cocoon.clock import Clock, SystemClock
from cocoon.ids import job_day
from cocoon.money import Amount


class _State(enum.Enum):
    OPEN = enum.auto()
    POSTED = enum.auto()
    RELEASED = enum.auto()


class _OpenHold(msgspec.Struct):
    hold: Hold
    digest: bytes
    expires_at: dt.datetime
    state: _State = _State.OPEN


class _Customer(msgspec.Struct):
    available: int = 0
    held: int = 0
    spent: int = 0
    numerator: int = 0


class InMemoryLedger:
    """A `Ledger` that forgets. Every method decides without awaiting, so that each is atomic."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._customers: dict[uuid.UUID, _Customer] = {}
        self._holds: dict[uuid.UUID, _OpenHold] = {}
        self._deposits: dict[uuid.UUID, bytes] = {}
        self._usage: dict[tuple[uuid.UUID, int], tuple[bytes, Posted]] = {}
        self._worker_numerators: defaultdict[uuid.UUID, int] = defaultdict(int)
        self._revenue_numerator = 0
        self.worker_payable: defaultdict[uuid.UUID, int] = defaultdict(int)
        self.revenue = 0
        self.rounding = 0

    async def hold(self, request: HoldRequest) -> Hold:
        """See `Ledger.hold`."""
        ledger.require_sound_hold(request)
        digest = ledger.body_digest(request)
        known = self._holds.get(request.job_id)
        if known is not None or request.job_id in self._deposits:
            if known is None or known.digest != digest:
                raise TransferConflictError
            if known.state is not _State.OPEN:
                raise HoldClosedError
            return known.hold
        customer = self._customer(request.customer_id)
        amount = ledger.grant(customer.available, request)
        hold = Hold(job_id=request.job_id, customer_id=request.customer_id, amount=amount)
        expires_at = self._clock.now() + dt.timedelta(seconds=request.ttl_s)
        self._holds[request.job_id] = _OpenHold(hold=hold, digest=digest, expires_at=expires_at)
        customer.available -= amount.nano
        customer.held += amount.nano
        return hold

    async def settle(self, settlement: Settlement) -> Posted:
        """See `Ledger.settle`."""
        ledger.require_sound_settlement(settlement)
        digest = ledger.body_digest(settlement)
        attempt = (settlement.job_id, settlement.attempt)
        if attempt in self._usage:
            seen, posted = self._usage[attempt]
            if seen != digest:
                raise TransferConflictError
            return posted
        record = self._holds.get(settlement.job_id)
        if record is None or record.state is not _State.OPEN:
            raise HoldClosedError
        ledger.require_covered(settlement, record.hold)
        posted = self._post(settlement)
        self._resolve(record, posted.charge.nano, posted=settlement.outcome.chargeable)
        self._usage[attempt] = (digest, posted)
        return posted

    async def void(self, job_id: uuid.UUID, customer_id: uuid.UUID) -> None:
        """See `Ledger.void`."""
        job_day(job_id)
        record = self._holds.get(job_id)
        if record is None or record.hold.customer_id != customer_id or record.state is _State.POSTED:
            raise HoldClosedError
        if record.state is _State.OPEN:
            self._resolve(record, 0, posted=False)

    async def expire_due(self, limit: int) -> int:
        """See `Ledger.expire_due`."""
        now = self._clock.now()
        due = [r for r in self._holds.values() if r.state is _State.OPEN and r.expires_at <= now]
        due.sort(key=lambda record: record.expires_at)
        for record in due[:limit]:
            self._resolve(record, 0, posted=False)
        return len(due[:limit])

    async def deposit(self, transfer_id: uuid.UUID, customer_id: uuid.UUID, amount: Amount) -> None:
        """See `Ledger.deposit`."""
        assert amount.nano > 0, "a deposit adds something"
        job_day(transfer_id)
        digest = ledger.movement_digest(Code.DEPOSIT, customer_id, amount)
        if transfer_id in self._deposits or transfer_id in self._holds:
            if self._deposits.get(transfer_id) != digest:
                raise TransferConflictError
            return
        self._deposits[transfer_id] = digest
        self._customers.setdefault(customer_id, _Customer()).available += amount.nano

    async def balance(self, customer_id: uuid.UUID) -> Balance:
        """See `Ledger.balance`."""
        customer = self._customer(customer_id)
        return Balance(available=Amount(customer.available), held=Amount(customer.held), spent=Amount(customer.spent))

    def _customer(self, customer_id: uuid.UUID) -> _Customer:
        customer = self._customers.get(customer_id)
        if customer is None:
            raise UnknownCustomerError
        return customer

    def _post(self, settlement: Settlement) -> Posted:
        customer = self._customers[settlement.customer_id]
        worker_id = settlement.worker_id
        charge = ledger.charge(
            settlement,
            Numerators(
                customer=customer.numerator,
                worker=self._worker_numerators[worker_id] if worker_id is not None else 0,
                revenue=self._revenue_numerator,
            ),
        )
        customer.numerator = charge.after.customer
        self._revenue_numerator = charge.after.revenue
        if worker_id is not None:
            self._worker_numerators[worker_id] = charge.after.worker
            self.worker_payable[worker_id] += charge.posted.worker_share.nano
        self.revenue += charge.posted.fee.nano
        self.rounding += charge.posted.charge.nano - charge.posted.worker_share.nano - charge.posted.fee.nano
        assert self.rounding >= 0, "nobody is paid what was not charged"
        return charge.posted

    def _resolve(self, record: _OpenHold, charge: int, *, posted: bool) -> None:
        customer = self._customers[record.hold.customer_id]
        customer.held -= record.hold.amount.nano
        customer.available += record.hold.amount.nano - charge
        customer.spent += charge
        record.state = _State.POSTED if posted else _State.RELEASED
