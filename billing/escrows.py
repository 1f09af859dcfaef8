"""Customers' escrows in the books: what the chain says of one, and what that moves. Pure.

An escrow's amounts in the books change together with their transfers, each by what the contract's cumulative amount has
grown::

    deposit   escrow_asset       -> customer_available   `deposited` grew
    settle    payout_asset       -> escrow_asset         `settled` grew: the payout contract has it, or is owed it
    refund    customer_available -> escrow_asset         the escrow closed and paid back what was not settled
    forgone   operator_loss      -> escrow_asset         the part of it that was spent: never settled in time

(debit -> credit; assets grow by debits). The customer's charges are given to its escrows in the order in which they
were registered (`attribute`); that is the most that an escrow owes, and what the operator's own vouchers say.
"""

import datetime as dt
import enum
import uuid
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from billing.ports import BillingError

ESCROWS_PER_CUSTOMER_MAX = 16
"""Registered or not finished: each is read from the chain again and again."""


class EscrowError(BillingError):
    """The root of errors about escrows and vouchers."""

    code: ClassVar[str] = "escrow_error"


class UnknownEscrowError(EscrowError):
    """There is no such escrow, or it is another customer's."""

    code: ClassVar[str] = "unknown_escrow"


class EscrowConflictError(EscrowError):
    """The escrow was registered by another customer, or there are too many."""

    code: ClassVar[str] = "escrow_conflict"


class CloseNotAgreedError(EscrowError):
    """The operator cannot sign what this escrow owes: it has no operator's key, no deposit, or is closed."""

    code: ClassVar[str] = "close_not_agreed"


class CloseAgreedError(EscrowError):
    """The operator has signed what the escrow owes: that cannot be taken back."""

    code: ClassVar[str] = "close_agreed"


class StaleVoucherError(EscrowError):
    """The voucher says no more than one that is there."""

    code: ClassVar[str] = "stale_voucher"


class ChainContradictionError(EscrowError):
    """The chain says less than it said before: its state was lost, or a liteserver lies. Nothing was booked."""

    code: ClassVar[str] = "chain_contradiction"


class EscrowState(enum.StrEnum):
    """REGISTERED until a deposit is seen on the chain; only OPEN counts as credit for new work; CLOSED is the last."""

    REGISTERED = "registered"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class VoucherSigner(enum.StrEnum):
    """Whose key signed: the client's session key, or the operator's under the client's allowance."""

    SESSION = "session"
    OPERATOR = "operator"


class MovementKind(enum.StrEnum):
    """What the chain did; rows of `chain_movements`."""

    DEPOSIT = "deposit"
    SETTLE = "settle"
    REFUND = "refund"
    FORGONE = "forgone"
    PAID = "paid"
    RETURNED = "returned"
    FEE = "fee"


class EscrowTerms(msgspec.Struct, frozen=True, kw_only=True):
    """An escrow as it is deployed.

    `config` is the bag of cells that `address` (raw form) is hashed from; the other fields repeat what is in it. Keys
    are 32 bytes, None where the escrow has none. Seconds are the chain's.
    """

    address: str
    code_hash: bytes
    config: bytes
    client: str
    epoch: int
    voucher_key: bytes | None
    operator_key: bytes | None
    challenge_s: int
    allow_max_nano: int
    allow_rate_nano: int


class Escrow(msgspec.Struct, frozen=True, kw_only=True):
    """An escrow in the books; amounts in nano as they were booked, times in Unix seconds of the chain (0: never).

    `charged_nano` is what the customer was charged under it; nothing is served on it any more from `close_asked_at` on,
    when its client asked the operator to agree on what it owes. `seen_seqno` is the masterchain block of the last
    observation and `seen_at` that block's time; None before the first.
    """

    escrow_id: uuid.UUID
    customer_id: uuid.UUID
    terms: EscrowTerms
    state: EscrowState
    deposited_nano: int
    settled_nano: int
    owed_nano: int
    refunded_nano: int
    charged_nano: int
    allow_at_nano: int
    allow_time: int
    close_requested_at: int
    usage_root: bytes
    seen_seqno: int | None = None
    seen_at: dt.datetime | None = None
    close_asked_at: dt.datetime | None = None
    agreed: "AgreedClose | None" = None

    def allowance_nano(self, now: int) -> int:
        """What the operator's own vouchers may still take at `now` (PROTOCOL §6); it stops filling at a close."""
        until = min(now, self.close_requested_at) if self.close_requested_at else now
        filled = self.allow_at_nano + self.terms.allow_rate_nano * max(until - self.allow_time, 0)
        return min(self.terms.allow_max_nano, filled)

    @property
    def challenge_ends_at(self) -> int:
        """When anybody may finalize a close that was requested."""
        return self.close_requested_at + self.terms.challenge_s

    @property
    def refund_due_nano(self) -> int:
        """What a closed escrow paid back and the books do not have yet."""
        if self.state is not EscrowState.CLOSED:
            return 0
        return self.deposited_nano - self.settled_nano - self.refunded_nano


class AgreedClose(msgspec.Struct, frozen=True, kw_only=True):
    """What an escrow owes in all, and the operator's signature under that: good for ever, so nothing more is due."""

    cumulative_nano: int
    signature: bytes


class EscrowSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What the contract's data said at a masterchain block. `state` is never REGISTERED."""

    seqno: int
    at: dt.datetime
    state: EscrowState
    deposited_nano: int
    settled_nano: int
    owed_nano: int
    allow_at_nano: int
    allow_time: int
    close_requested_at: int
    usage_root: bytes


class Voucher(msgspec.Struct, frozen=True, kw_only=True):
    """A signed promise of `cumulative_nano` in all; `signature` is over the voucher cell's hash."""

    signer: VoucherSigner
    cumulative_nano: int
    usage_root: bytes
    signature: bytes


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """A contract's cumulative amount has reached `cumulative_nano`, `amount_nano` more than the books had."""

    subject: str
    kind: MovementKind
    cumulative_nano: int
    amount_nano: int
    seqno: int


def movements(escrow: Escrow, seen: EscrowSeen) -> tuple[Movement, ...]:
    """What an observation moves, refunds apart; nothing when the books have seen a later block.

    Raises:
        ChainContradictionError: an amount is smaller than before, or a closed escrow is not closed any more.
    """
    if is_old(escrow, seen):
        return ()
    if seen.deposited_nano < escrow.deposited_nano or seen.settled_nano < escrow.settled_nano:
        raise ChainContradictionError(f"{escrow.terms.address} has less than it had")
    if not 0 <= seen.owed_nano <= seen.settled_nano <= seen.deposited_nano:
        raise ChainContradictionError(f"{escrow.terms.address} has settled more than it holds")
    if escrow.state is EscrowState.CLOSED and seen.state is not EscrowState.CLOSED:
        raise ChainContradictionError(f"{escrow.terms.address} was closed")
    grown = (
        (MovementKind.DEPOSIT, escrow.deposited_nano, seen.deposited_nano),
        (MovementKind.SETTLE, escrow.settled_nano, seen.settled_nano),
    )
    return tuple(
        Movement(
            subject=escrow.terms.address, kind=kind, cumulative_nano=after, amount_nano=after - before, seqno=seen.seqno
        )
        for kind, before, after in grown
        if after > before
    )


def is_old(escrow: Escrow, seen: EscrowSeen) -> bool:
    """Whether the books have seen a later block than this observation's (a lagging liteserver)."""
    return escrow.seen_seqno is not None and seen.seqno < escrow.seen_seqno


def state_after(escrow: Escrow, seen: EscrowSeen) -> EscrowState:
    """A contract without a deposit stays registered, however it is deployed."""
    return seen.state if seen.deposited_nano or escrow.state is not EscrowState.REGISTERED else EscrowState.REGISTERED


def attribute(unattributed_nano: int, escrows: Sequence[Escrow]) -> dict[uuid.UUID, int]:
    """What each escrow is charged of a customer's new charges, in the order given; those that get nothing are absent.

    Closed escrows, and those whose end is agreed, are charged nothing more. What remains is charged to credit that came
    otherwise.
    """
    given: dict[uuid.UUID, int] = {}
    for escrow in escrows:
        if escrow.state not in {EscrowState.OPEN, EscrowState.CLOSING} or escrow.agreed is not None:
            continue
        nano = min(unattributed_nano, escrow.deposited_nano - escrow.charged_nano)
        if nano > 0:
            given[escrow.escrow_id] = nano
            unattributed_nano -= nano
    return given
