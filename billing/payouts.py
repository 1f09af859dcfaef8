"""Epochs and payouts: who is paid how much under the next root, and what the chain shows of it. Pure.

Money flow of a worker's earnings (debit -> credit; PROTOCOL §6)::

    claim      worker_payable    -> payout_in_flight   an epoch's leaf: the wallet may claim it from the contract
    paid       payout_in_flight  -> payout_asset       the contract paid the wallet
    returned   payout_asset      -> payout_in_flight   the wallet refused it: owed again
    withdrawal network_revenue   -> payout_asset       the operator took its fee

A leaf is the cumulative earnings of one wallet: whole nano, because each share was rounded down on the cumulative
value. An epoch pays no more than the payout contract has received less the highest fee. What is earned beyond it stays
payable and comes with a later epoch; until then everybody's new earnings are paid in proportion.
"""

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import ClassVar

import msgspec

from billing.escrows import ChainContradictionError, Movement, MovementKind
from billing.ports import BillingError


class PayoutError(BillingError):
    """The root of errors about epochs and payouts."""

    code: ClassVar[str] = "payout_error"


class OtherPayoutError(PayoutError):
    """The books belong to another payout contract."""

    code: ClassVar[str] = "other_payout_contract"


class EpochUnknownError(PayoutError):
    """There is no such epoch."""

    code: ClassVar[str] = "epoch_unknown"


class PayoutSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What the payout contract's data said at a masterchain block; amounts in nano, in all since it was deployed.

    A pending root whose time has come is the active one. `pending_epoch` 0 is none.
    """

    seqno: int
    at: dt.datetime
    received_nano: int
    paid_nano: int
    fee_withdrawn_nano: int
    fee_max_nano: int
    active_epoch: int
    active_root: bytes
    active_total_nano: int
    pending_epoch: int
    pending_root: bytes
    anchor_count: int
    anchor_size: int
    anchor_root: bytes


class PayeeSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What a wallet's child of the payout contract said at a masterchain block."""

    seqno: int
    at: dt.datetime
    claimed_nano: int
    owed_nano: int
    in_flight_nano: int

    @property
    def net_nano(self) -> int:
        """What has been paid and was not refused."""
        return self.claimed_nano - self.owed_nano - self.in_flight_nano


class Payee(msgspec.Struct, frozen=True, kw_only=True):
    """A wallet that epochs pay. `leaf_nano` is its cumulative earnings under the last epoch; None counts as 0."""

    payee_id: uuid.UUID
    wallet: str
    account: str | None
    claimed_nano: int
    owed_nano: int
    paid_nano: int
    returned_nano: int
    leaf_nano: int
    seen_seqno: int | None


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """An epoch as it was fixed; `earned_nano` is everything that was ever earned by those who have a wallet."""

    epoch: int
    root: bytes
    total_nano: int
    earned_nano: int
    created_at: dt.datetime
    posted_at: dt.datetime | None = None
    active_at: dt.datetime | None = None


def funded(due: Mapping[uuid.UUID, int], budget_nano: int) -> dict[uuid.UUID, int]:
    """What each worker gets of `budget_nano` when together they are due more: its part, rounded down.

    What rounding leaves goes nano by nano to the first in the order of ids, so that all of the budget is used.
    """
    assert budget_nano >= 0, "nothing is taken back"
    total = sum(due.values())
    if total <= budget_nano:
        return {worker: nano for worker, nano in due.items() if nano}
    given = {worker: nano * budget_nano // total for worker, nano in due.items()}
    rest = budget_nano - sum(given.values())
    for worker in sorted(due):
        if not rest:
            break
        if given[worker] < due[worker]:
            given[worker] += 1
            rest -= 1
    return {worker: nano for worker, nano in given.items() if nano}


def payee_movements(payee: Payee, seen: PayeeSeen) -> tuple[Movement, ...]:
    """What an observation of a child moves; nothing when the books have seen a later block.

    Raises:
        ChainContradictionError: more was claimed than any epoch gave, or less than before.
    """
    if payee.seen_seqno is not None and seen.seqno < payee.seen_seqno:
        return ()
    if not payee.claimed_nano <= seen.claimed_nano <= payee.leaf_nano or seen.net_nano < 0:
        raise ChainContradictionError(f"{payee.wallet} claimed {seen.claimed_nano} of {payee.leaf_nano} nano")
    assert payee.account is not None, "an observed child has an address"
    grown = seen.net_nano - (payee.paid_nano - payee.returned_nano)
    if not grown:
        return ()
    kind, before = (MovementKind.PAID, payee.paid_nano) if grown > 0 else (MovementKind.RETURNED, payee.returned_nano)
    return (
        Movement(
            subject=payee.account, kind=kind, cumulative_nano=before + abs(grown), amount_nano=abs(grown),
            seqno=seen.seqno,
        ),
    )  # fmt: skip
