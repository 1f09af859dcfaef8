"""How much may be charged to a customer whose credit comes from escrows (PROTOCOL §6). Pure.

A deposit is credit in the books, but the operator is paid only what vouchers say. So beside the balance there is a
ceiling: for an escrow with a session key, what its client has signed and `unsigned_max` more; for a delegated one,
what was settled and what the client's allowance lets the operator take; never more than was deposited. Charges go to
escrows in the order in which those were registered (`billing.escrows.attribute`), so that credit of another kind is
touched only when every escrow is used up. A customer without an escrow has no ceiling.

Whoever promises credit (`billing.postgres.leases`, `billing.memory_leases`) asks under the customer's account lock:
`charged + leased + recovery + grant <= ceiling`.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from billing.ports import InsufficientCreditError

RETRY_S_MAX = 3600
"""The longest that a customer is told to wait; an allowance that does not fill says it too."""


class VoucherRequiredError(InsufficientCreditError):
    """The customer has credit, but the client has not signed for what was used: sign `cumulative_nano` and repeat.

    Where that is signed already, what runs now takes all that may be unsigned, or the request alone is more than that.
    """

    code: ClassVar[str] = "voucher_required"

    def __init__(self, demand: "VoucherDemand") -> None:
        super().__init__(f"a voucher for {demand.cumulative_nano} nano is needed from the client's session key")
        self.demand = demand


class AllowanceExhaustedError(InsufficientCreditError):
    """The customer has credit, but its allowance lets the operator settle no more of it for `retry_after_s`."""

    code: ClassVar[str] = "allowance_exhausted"
    transient: ClassVar[bool] = True

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("the client's allowance to the operator is used up")
        self.retry_after_s = retry_after_s


class EscrowClosingError(InsufficientCreditError):
    """The client asked for its escrow back: nothing new is served on it."""

    code: ClassVar[str] = "escrow_closing"


class VoucherDemand(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is asked to sign: the escrow's address (raw), its epoch, and what it was charged in all (nano)."""

    escrow: str
    epoch: int
    cumulative_nano: int
    usage_root: bytes


class EscrowCredit(msgspec.Struct, frozen=True, kw_only=True):
    """An escrow with a deposit that is not closed; amounts in nano.

    `signed_nano` is its highest session voucher (None: it has no session key), `allowance_nano` what the operator's own
    vouchers may take beyond `settled_nano` as of the last block that was looked at (None: it has no operator key).
    """

    address: str
    epoch: int
    closing: bool
    deposited_nano: int
    settled_nano: int
    charged_nano: int
    signed_nano: int | None
    allowance_nano: int | None
    allow_rate_nano: int

    def cap_nano(self, unsigned_max_nano: int) -> int:
        """What may be charged under it in all; a close request leaves what is charged."""
        if self.closing:
            return self.charged_nano
        caps = [0]
        if self.signed_nano is not None:
            caps.append(self.signed_nano + unsigned_max_nano)
        if self.allowance_nano is not None:
            caps.append(self.settled_nano + self.allowance_nano)
        return min(self.deposited_nano, max(caps))


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """How much more may be charged, leases and recovery included, and which escrow says so.

    `escrow` None: every escrow is used up or may be, and the balance is the limit.
    """

    room_nano: int
    escrow: EscrowCredit | None = None
    usage_root: bytes = bytes(32)

    def refusal(self, lacking_nano: int) -> InsufficientCreditError:
        """Why this much more is not granted."""
        escrow = self.escrow
        assert escrow is not None, "a ceiling that refuses is an escrow's"
        if escrow.closing:
            return EscrowClosingError("the escrow is being closed; open another one")
        if escrow.signed_nano is not None:
            return VoucherRequiredError(demand_of(escrow, self.usage_root))
        if not escrow.allow_rate_nano:
            return AllowanceExhaustedError(RETRY_S_MAX)
        wait_s = math.ceil(lacking_nano / escrow.allow_rate_nano)
        return AllowanceExhaustedError(min(RETRY_S_MAX, max(1, wait_s)))


def demand_of(escrow: EscrowCredit, usage_root: bytes) -> VoucherDemand:
    """What the client of an escrow should sign now; no less than it has signed."""
    return VoucherDemand(
        escrow=escrow.address,
        epoch=escrow.epoch,
        cumulative_nano=max(escrow.charged_nano, escrow.signed_nano or 0),
        usage_root=usage_root,
    )


class Withheld(msgspec.Struct, frozen=True, kw_only=True):
    """What a ceiling did not grant, though the balance had it."""

    ceiling: Ceiling
    lacking_nano: int

    def error(self) -> InsufficientCreditError:
        """For one request: a new one each time, as raised errors are not shared."""
        return self.ceiling.refusal(self.lacking_nano)


def attributed(escrows: Sequence[EscrowCredit], unattributed_nano: int) -> list[EscrowCredit]:
    """The escrows, the oldest first, with what they will be charged of charges that none has yet."""
    found: list[EscrowCredit] = []
    for escrow in escrows:
        given = max(0, min(unattributed_nano, escrow.deposited_nano - escrow.charged_nano))
        unattributed_nano -= given
        found.append(msgspec.structs.replace(escrow, charged_nano=escrow.charged_nano + given))
    return found


def ceiling(
    escrows: Sequence[EscrowCredit], *, unattributed_nano: int, other_nano: int, unsigned_max_nano: int,
    usage_root: bytes = bytes(32),
) -> Ceiling:  # fmt: skip
    """The ceiling over a customer's escrows, the oldest first.

    `unattributed_nano` was charged and is not in any escrow's `charged_nano` yet; `other_nano` is credit that no escrow
    brought, as it would be once those charges are given to the escrows.
    """
    room = 0
    for escrow in attributed(escrows, unattributed_nano):
        cap = escrow.cap_nano(unsigned_max_nano)
        room += max(0, cap - escrow.charged_nano)
        if cap < escrow.deposited_nano:
            return Ceiling(room_nano=room, escrow=escrow, usage_root=usage_root)
    return Ceiling(room_nano=room + max(0, other_nano))
