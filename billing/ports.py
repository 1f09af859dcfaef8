"""The `Ledger` port and its values. `billing.memory` and `billing.postgres` implement it; one suite tests both."""

import datetime as dt
import enum
import uuid
from typing import ClassVar, Protocol

import msgspec

from cocoon.errors import CocoonError
from cocoon.money import Amount, Price, ceiling
from cocoon.usage import TokenUsage


class BillingError(CocoonError):
    """The root of billing's operating errors."""

    code: ClassVar[str] = "billing_error"


class InsufficientCreditError(BillingError):
    """The customer's available credit does not cover the request."""

    code: ClassVar[str] = "insufficient_quota"


class UnknownCustomerError(BillingError):
    """There is no such customer."""

    code: ClassVar[str] = "unknown_customer"


class TransferConflictError(BillingError):
    """The id was used before with a different body."""

    code: ClassVar[str] = "transfer_conflict"


class HoldClosedError(BillingError):
    """The hold was resolved otherwise (voided or expired) or never existed."""

    code: ClassVar[str] = "hold_closed"


class LedgerUnavailableError(BillingError):
    """The ledger cannot be reached; nothing is known to have happened."""

    code: ClassVar[str] = "ledger_unavailable"
    transient: ClassVar[bool] = True


class RecordRefusedError(BillingError):
    """The store refused the record: it breaks a constraint of the books."""

    code: ClassVar[str] = "record_refused"


class Outcome(enum.StrEnum):
    """How a relayed attempt ended."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"
    BROKEN = "broken"

    @property
    def chargeable(self) -> bool:
        """What the network or the worker breaks is neither charged nor paid (PROTOCOL §6)."""
        return self is not Outcome.BROKEN


class HoldRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Reserve between `amount_min` and `amount_max`: the most that the customer can afford within them.

    `job_id` (UUIDv7) is the idempotency key. The hold expires `ttl_s` after the database's now.
    """

    job_id: uuid.UUID
    customer_id: uuid.UUID
    amount_min: Amount
    amount_max: Amount
    ttl_s: int


class Hold(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Reserved credit; `amount` lies within what was asked. `lease_id` names the credit lease it came from, if any."""

    job_id: uuid.UUID
    customer_id: uuid.UUID
    amount: Amount
    lease_id: uuid.UUID | None = None


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The end of a relayed attempt; its usage never costs more than the hold.

    `worker_id` None means an upstream without an agent: the whole charge is network revenue.
    """

    job_id: uuid.UUID
    attempt: int
    customer_id: uuid.UUID
    key_id: uuid.UUID
    worker_id: uuid.UUID | None
    model: str
    price: Price
    usage: TokenUsage
    outcome: Outcome
    finish_reason: str
    started_at: dt.datetime
    first_token_at: dt.datetime | None
    ended_at: dt.datetime
    receipt_head: bytes | None = None
    receipt_signature: bytes | None = None

    @property
    def numerator(self) -> int:
        """Exact cost in 10^-6 nano; zero for a broken answer."""
        return self.price.numerator(self.usage) if self.outcome.chargeable else 0

    @property
    def charge_max(self) -> Amount:
        """The most that it can be charged, whatever the customer's cumulative numerator is."""
        return ceiling(self.numerator, self.price.asset)

    @property
    def worker_numerator(self) -> int:
        """What the worker's part is a part of, in 10^-6 nano: the cost before the customer's discount or surcharge."""
        return self.price.worker_numerator(self.usage) if self.outcome.chargeable else 0


class Posted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a settlement moved."""

    charge: Amount
    worker_share: Amount
    fee: Amount


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """A customer's credit.

    `available` can be spent. `held` is reserved: by requests in flight, by the leases of other gateway processes (idle
    ones come back within seconds, or at once when credit runs short), and for a while by what a crashed process had.
    """

    available: Amount
    held: Amount
    spent: Amount


class Ledger(Protocol):
    """Double-entry books. Every method is one transaction and idempotent by its ids.

    All methods raise `LedgerUnavailableError` when the store cannot be reached, `RecordRefusedError` when it refuses
    a record outright, and `MalformedError` for ids that are not UUIDv7.
    """

    async def hold(self, request: HoldRequest) -> Hold:
        """Reserve credit.

        Raises InsufficientCreditError, UnknownCustomerError, TransferConflictError, and HoldClosedError when the
        same hold was granted before and is already resolved.
        """
        ...

    async def settle(self, settlement: Settlement) -> Posted:
        """Post the charge (or void, when broken) and write the usage row, once.

        Raises HoldClosedError, TransferConflictError (other body for the same attempt, or a charge above the hold).
        """
        ...

    async def void(self, job_id: uuid.UUID, customer_id: uuid.UUID) -> None:
        """Release a hold that paid for nothing. Voiding an expired or voided hold is no error.

        Raises HoldClosedError when the hold was posted or never existed.
        """
        ...

    async def expire_due(self, limit: int) -> int:
        """Release up to `limit` holds past their time; returns how many."""
        ...

    async def deposit(self, transfer_id: uuid.UUID, customer_id: uuid.UUID, amount: Amount) -> None:
        """Credit a customer (creating its accounts when new). `transfer_id` is a UUIDv7.

        Raises TransferConflictError.
        """
        ...

    async def balance(self, customer_id: uuid.UUID) -> Balance:
        """Current credit. Raises UnknownCustomerError."""
        ...
