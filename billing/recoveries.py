"""What a worker's receipt means for the books: the decision, without a store.

Pure. `billing.postgres.recoveries` reads what the books know, asks here, and writes the answer down. Nothing here ever
changes what is booked: a receipt either agrees, or fills a gap that nobody else can fill any more, or is recorded
beside the books as a discrepancy.

A gap is filled only after the hold has *expired*: an open hold belongs to a gateway that may still settle it, a
released one was judged to have paid for nothing. Holds outlive the longest request and the longest retry of its
settlement, so that an expired one has no owner left. Where a lease stood for the hold, the charge comes out of what
it left in recovery while that lasts (`billing.lease_store`); once the lease is closed its credit is the customer's
again, as after an expired hold.
"""

import enum
import uuid
from collections.abc import Sequence

import msgspec

from billing.ledger import Phase
from billing.ports import Outcome, Settlement
from cocoon.money import ceiling
from cocoon.usage import TokenUsage


class DiscrepancyKind(enum.StrEnum):
    """How a receipt and the books differ."""

    OVER_CLAIM = "over_claim"
    """More than the ticket allowed: cut down to it, and held against the worker."""
    COUNTS_DIFFER = "counts_differ"
    """A completed answer with other counts."""
    CLIENT_LEFT = "client_left"
    """The client left: the gateway charged the last counts it had seen, the worker counted on until it heard."""
    BROKEN = "broken"
    """The answer never arrived whole, so that nobody pays for it (PROTOCOL §6)."""
    OTHER_ATTEMPT = "other_attempt"
    """The job was settled by another attempt, charged or broken; this one is the network's cost."""
    UNKNOWN_HOLD = "unknown_hold"
    """The books know no hold or lease of this customer under the ticket's name; the receipt stays with the worker."""
    HOLD_RELEASED = "hold_released"
    """A gateway released the hold because the request paid for nothing."""
    UNFINISHED = "unfinished"
    """Cut off half way, and no gateway says why: the network may have broken it, so that nobody pays."""
    ABOVE_HOLD = "above_hold"
    """More than the hold had reserved."""
    OPERATOR_LOSS = "operator_loss"
    """Recovered, but the customer's credit did not cover all of it: the operator pays the rest."""
    EQUIVOCATION = "equivocation"
    """Its key has signed another head under the same number: fraud, whatever the numbers say."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """An authentic receipt. `settlement` is what it would settle, within its ticket; `claimed` is what it says.

    `hold_id` is the ticket's lease. An outcome of CLIENT_GONE means that the worker was cut off before its answer was
    whole, which is all that a worker can know.
    """

    settlement: Settlement
    claimed: TokenUsage
    hold_id: uuid.UUID
    ticket: bytes
    receipt_body: bytes

    @property
    def worker_id(self) -> uuid.UUID:
        """Who signed it."""
        assert self.settlement.worker_id is not None, "receipts come from workers"
        return self.settlement.worker_id


class Booked(msgspec.Struct, frozen=True, kw_only=True):
    """What a usage row says; `numerator` is the exact charge in 10^-6 nano."""

    attempt: int
    worker_id: uuid.UUID | None
    usage: TokenUsage
    outcome: Outcome
    numerator: int
    charge_nano: int
    receipt_head: bytes | None


class HoldState(msgspec.Struct, frozen=True, kw_only=True):
    """A hold, or the lease that stood for one: for whom, and how it was resolved (None while it is open).

    `amount_nano` None is a lease, which pays for many requests: the ticket alone bounds this one. A closed lease counts
    as expired; one that is `recovering` pays late claims itself.
    """

    customer_id: uuid.UUID
    amount_nano: int | None
    resolved: Phase | None
    recovering: bool = False


class Action(enum.Enum):
    """What to do about a claim."""

    NOTHING = enum.auto()
    WAIT = enum.auto()
    RECOVER = enum.auto()
    CLAIM = enum.auto()
    """Let the expired lease pay."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, what to record, and the usage row that it was compared with."""

    action: Action
    kinds: tuple[DiscrepancyKind, ...] = ()
    booked: Booked | None = None


def decide(claim: Claim, rows: Sequence[Booked], hold: HoldState | None) -> Decision:
    """Judge a claim by the job's usage rows and the hold that its ticket names."""
    kinds = (DiscrepancyKind.OVER_CLAIM,) if claim.claimed != claim.settlement.usage else ()
    booked = next((row for row in rows if row.attempt == claim.settlement.attempt), None)
    if booked is not None:
        difference = _difference(claim, booked)
        found = kinds if difference is None else (*kinds, difference)
        return Decision(action=Action.NOTHING, kinds=found, booked=booked)
    if not claim.settlement.usage.total:
        return Decision(action=Action.NOTHING, kinds=kinds)
    if rows:
        # A gateway has said how the job ended, also when it says that nobody pays.
        relayed = next((row for row in rows if row.outcome.chargeable), rows[0])
        return Decision(action=Action.NOTHING, kinds=(*kinds, DiscrepancyKind.OTHER_ATTEMPT), booked=relayed)
    return _fill(claim, hold, kinds)


def against_worker(kind: DiscrepancyKind, claim: Claim, booked: Booked | None) -> bool:
    """Whether the worker asked for more than it can be owed."""
    if kind is DiscrepancyKind.COUNTS_DIFFER and booked is not None:
        price = claim.settlement.price
        return price.numerator(claim.settlement.usage) > price.numerator(booked.usage)
    return kind in {DiscrepancyKind.OVER_CLAIM, DiscrepancyKind.EQUIVOCATION}


def _difference(claim: Claim, booked: Booked) -> DiscrepancyKind | None:
    usage = claim.settlement.usage
    if booked.outcome is Outcome.BROKEN:
        # Both say that it came to nothing; or the worker does not know that its answer never arrived.
        return DiscrepancyKind.BROKEN if usage.total else None
    if booked.usage == usage and booked.worker_id == claim.settlement.worker_id:
        return None
    return DiscrepancyKind.CLIENT_LEFT if booked.outcome is Outcome.CLIENT_GONE else DiscrepancyKind.COUNTS_DIFFER


def _fill(claim: Claim, hold: HoldState | None, kinds: tuple[DiscrepancyKind, ...]) -> Decision:
    settlement = claim.settlement
    if hold is None or hold.customer_id != settlement.customer_id:
        return Decision(action=Action.WAIT, kinds=(*kinds, DiscrepancyKind.UNKNOWN_HOLD))
    if hold.resolved is None and not hold.recovering:
        return Decision(action=Action.WAIT)
    if hold.resolved not in {None, Phase.EXPIRE}:
        return Decision(action=Action.NOTHING, kinds=(*kinds, DiscrepancyKind.HOLD_RELEASED))
    if settlement.outcome is not Outcome.COMPLETED:
        return Decision(action=Action.NOTHING, kinds=(*kinds, DiscrepancyKind.UNFINISHED))
    if hold.recovering:
        return Decision(action=Action.CLAIM, kinds=kinds)
    charge = ceiling(settlement.numerator, settlement.price.asset)
    if hold.amount_nano is not None and charge.nano > hold.amount_nano:
        return Decision(action=Action.NOTHING, kinds=(*kinds, DiscrepancyKind.ABOVE_HOLD))
    return Decision(action=Action.RECOVER, kinds=kinds)
