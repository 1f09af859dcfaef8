"""StakeEvidence against workers' stakes, as it is kept: each piece whole, as the stake's contract takes it."""

import datetime as dt
import enum
import uuid

import msgspec

from cocoon.contracts.judge import Accused
from cocoon.contracts.stake import EvidenceKind


class EvidenceState(enum.StrEnum):
    """PENDING is to be submitted; TOO_LATE found too little bonded to be worth it, and is pending again with more.

    SLASHED says that the stake is, by this or by other evidence; REFUSED that the contract would refuse it, or did.
    """

    PENDING = "pending"
    SLASHED = "slashed"
    TOO_LATE = "too_late"
    REFUSED = "refused"


class StakeEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker signed and may not: `slot` is its receipt key and the head's number, `boc` the evidence's cell.

    `stake` is the contract (raw address) that the heads name, whatever the worker has enrolled with since.
    """

    stake: str
    worker_id: uuid.UUID
    kind: EvidenceKind
    slot: bytes
    job_id: uuid.UUID
    attempt: int
    boc: bytes


class KeptEvidence(StakeEvidence, frozen=True, kw_only=True):
    """A row of it. `staked_nano` is what was bonded and unbonding when it was submitted, or found too little."""

    id: int
    state: EvidenceState
    detail: str
    staked_nano: int | None
    created_at: dt.datetime
    submitted_at: dt.datetime | None
    closed_at: dt.datetime | None


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """Pending evidence against a stake that is live now, with `staked_nano` in it."""

    evidence: KeptEvidence
    accused: Accused
    staked_nano: int


class Unproven(msgspec.Struct, frozen=True, kw_only=True):
    """How many known misdeeds have no evidence of their own that a contract would take."""

    kind: EvidenceKind
    count: int
