"""What the ledger decides, without a store: grants, charges, ids and the legs that move money.

Pure. `billing.memory` and `billing.postgres` read the locked values, ask here, and write the answer down; neither
decides anything about money itself.

Money flow of one job (PROTOCOL §6)::

    hold     customer_available -> customer_leased   pending, the granted amount
    resolve  customer_available -> customer_leased   post of the charge, or void when broken
    charge   customer_leased    -> rounding          what the customer's cumulative numerator rounds up to
    share    rounding           -> worker_payable    what the worker's cumulative share rounds down to
    fee      rounding           -> network_revenue   the same for the network

A job whose hold expired before it was settled is charged from its receipt (`billing.recoveries`)::

    recovered  customer_available -> customer_leased   what the customer can cover of the charge
    loss       operator_loss      -> customer_leased   the rest
    charge, share and fee as above

The rounding account keeps what has been charged and is not yet anybody's: less than one nano for each party.
"""

import datetime as dt
import enum
import hashlib
import uuid
from collections.abc import Iterable

import msgspec

from billing.ports import (
    Hold,
    HoldRequest,
    InsufficientCreditError,
    Posted,
    RecordRefusedError,
    Settlement,
    TransferConflictError,
)
from cocoon.ids import job_day
from cocoon.money import BASIS_POINTS, Amount, charge_nano, share_nano

HOLD_TTL_SECONDS_MAX = 24 * 3600
ATTEMPT_MAX = 255
"""An attempt is one byte in a ticket (PROTOCOL §2)."""
_RESOLUTION_VERSION = 8
_DERIVED_VERSION = 8


class AccountKind(enum.StrEnum):
    """The chart of accounts, as far as requests and the chain move money (`billing.escrows`)."""

    CUSTOMER_AVAILABLE = "customer_available"
    CUSTOMER_LEASED = "customer_leased"
    LEASE_RECOVERY = "lease_recovery"
    WORKER_PAYABLE = "worker_payable"
    NETWORK_REVENUE = "network_revenue"
    ROUNDING = "rounding"
    SUSPENSE = "suspense"
    OPERATOR_LOSS = "operator_loss"
    ESCROW_ASSET = "escrow_asset"
    PAYOUT_ASSET = "payout_asset"
    PAYOUT_IN_FLIGHT = "payout_in_flight"


class Phase(enum.StrEnum):
    """What a transfer does: move at once, reserve, or resolve a reservation."""

    SINGLE = "single"
    PENDING = "pending"
    POST = "post"
    VOID = "void"
    EXPIRE = "expire"


class Code(enum.StrEnum):
    """Why a transfer exists."""

    HOLD = "hold"
    LEASE = "lease"
    RECOVERY = "recovery"
    CHARGE = "charge"
    SHARE = "share"
    FEE = "fee"
    DEPOSIT = "deposit"
    CREDIT = "credit"
    REVERSAL = "reversal"
    RECOVERED = "recovered"
    LOSS = "loss"
    SETTLE = "settle"
    REFUND = "refund"
    FORGONE = "forgone"
    CLAIM = "claim"
    PAID = "paid"
    RETURNED = "returned"
    WITHDRAWAL = "withdrawal"


class Numerators(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulative numerators: the customer's in 10^-6 nano, the worker's and the network's in 10^-10 nano."""

    customer: int = 0
    worker: int = 0
    revenue: int = 0


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What one settlement moves, and the cumulative numerators after it."""

    posted: Posted
    after: Numerators


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a hold that paid for nothing."""

    job_id: uuid.UUID
    customer_id: uuid.UUID


def require_sound_hold(request: HoldRequest) -> dt.date:
    """The day of a hold request.

    Raises:
        MalformedError: the job id is not a UUIDv7.
    """
    assert 0 <= request.amount_min.nano <= request.amount_max.nano, "a hold lies between a minimum and a maximum"
    assert request.amount_min.asset is request.amount_max.asset, "a hold has one asset"
    assert 0 < request.ttl_s <= HOLD_TTL_SECONDS_MAX, "a hold ends some day"
    return job_day(request.job_id)


def require_sound_settlement(settlement: Settlement) -> dt.date:
    """The day of a settlement.

    Raises:
        MalformedError: the job id is not a UUIDv7.
    """
    assert 0 <= settlement.attempt <= ATTEMPT_MAX, "an attempt is one byte"
    first = settlement.first_token_at
    assert first is None or first.tzinfo is not None, "records carry aware moments"
    assert settlement.started_at.tzinfo is not None, "records carry aware moments"
    assert settlement.ended_at.tzinfo is not None, "records carry aware moments"
    return job_day(settlement.job_id)


def grant(available_nano: int, request: HoldRequest) -> Amount:
    """What a customer with `available_nano` gets: as much of the request as it affords.

    Raises:
        InsufficientCreditError: less than the minimum is there.
    """
    if available_nano < request.amount_min.nano:
        raise InsufficientCreditError(
            f"{Amount(available_nano, request.amount_min.asset)} available, {request.amount_min} needed"
        )
    return Amount(min(available_nano, request.amount_max.nano), request.amount_max.asset)


def require_covered(settlement: Settlement, hold: Hold) -> None:
    """Check a settlement against the hold that pays for it.

    Raises:
        TransferConflictError: another customer or asset, or a charge that could exceed the hold.
    """
    if settlement.customer_id != hold.customer_id or settlement.price.asset is not hold.amount.asset:
        raise TransferConflictError("the hold belongs to another customer or asset")
    # Against the charge rounded for itself, which is never below the cumulative one: the verdict must not depend on
    # what else the customer bought.
    if charge_nano(0, settlement.numerator) > hold.amount.nano:
        raise TransferConflictError("the charge exceeds the hold")


def charge(settlement: Settlement, before: Numerators) -> Charge:
    """What a covered settlement moves, given the numerators before it.

    Charge, share and fee are differences of rounded cumulative values, the charge rounded up and the others down, so
    that `shares + fees <= charges` at every moment and no party is ever wrong by a whole nano.
    """
    numerator = settlement.numerator
    worker_bps = settlement.price.share_bps if settlement.worker_id is not None else 0
    for_worker = settlement.worker_numerator * worker_bps
    for_revenue = numerator * BASIS_POINTS - for_worker
    assert for_revenue >= 0, "no discount goes below the worker's part"
    asset = settlement.price.asset
    return Charge(
        posted=Posted(
            charge=Amount(charge_nano(before.customer, numerator), asset),
            worker_share=Amount(share_nano(before.worker, for_worker), asset),
            fee=Amount(share_nano(before.revenue, for_revenue), asset),
        ),
        after=Numerators(
            customer=before.customer + numerator,
            worker=before.worker + for_worker,
            revenue=before.revenue + for_revenue,
        ),
    )


def multiplied(settlement: Settlement) -> tuple[int | None, int | None]:
    """What a usage row says of the customer's multiplier: basis points and the worker's numerator, None without one."""
    customer_bps = settlement.price.customer_bps
    return (None, None) if customer_bps == BASIS_POINTS else (customer_bps, settlement.worker_numerator)


def body_digest(body: HoldRequest | Settlement | tuple[str, uuid.UUID, Amount]) -> bytes:
    """Identifies a body: the same id with another digest is a conflict, never an overwrite.

    Raises:
        RecordRefusedError: a text in it is not Unicode.
    """
    try:
        return hashlib.sha256(msgspec.msgpack.encode(body)).digest()
    except UnicodeEncodeError as error:
        raise RecordRefusedError("a text is not valid Unicode") from error


def movement_digest(code: Code, customer_id: uuid.UUID, amount: Amount) -> bytes:
    """The body digest of a deposit, a credit or a reversal."""
    return body_digest((code.value, customer_id, amount))


def resolution_id(job_id: uuid.UUID) -> uuid.UUID:
    """The id of the one transfer that resolves a job's hold: the job's own with UUID version 8."""
    return _versioned(job_id.int, _RESOLUTION_VERSION)


def batch_digest(members: Iterable[tuple[uuid.UUID, int]]) -> bytes:
    """Identifies a set of (job, attempt) that is posted together; the same set has the same digest."""
    hasher = hashlib.sha256()
    for job_id, attempt in sorted(members):
        hasher.update(job_id.bytes + attempt.to_bytes(1, "big"))
    return hasher.digest()


def leg_id(batch: bytes, code: Code, account_id: int) -> uuid.UUID:
    """The id of an aggregated leg: posting the same batch twice collides instead of paying twice."""
    raw = hashlib.sha256(batch + code.encode() + b"\x00" + account_id.to_bytes(8, "big")).digest()
    return _versioned(int.from_bytes(raw[:16], "big"), _DERIVED_VERSION)


def lease_transfer_id(lease_id: uuid.UUID, version: int, phase: Phase) -> uuid.UUID:
    """The id of a lease's transfer: its `version`-th pending one, the one that ends it, or a move out of recovery."""
    kind = "pending" if phase is Phase.PENDING else "single" if phase is Phase.SINGLE else "end"
    raw = hashlib.sha256(b"lease " + kind.encode() + lease_id.bytes + version.to_bytes(8, "big")).digest()
    return _versioned(int.from_bytes(raw[:16], "big"), _DERIVED_VERSION)


def derived_id(digest: bytes) -> uuid.UUID:
    """A transfer's id from the SHA-256 of what it is for."""
    return _versioned(int.from_bytes(digest[:16], "big"), _DERIVED_VERSION)


def _versioned(value: int, version: int) -> uuid.UUID:
    return uuid.UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | version << 76 | 0x2 << 62)
