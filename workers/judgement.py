"""From a verdict about evidence to a worker's standing: admitted, quarantined or refused.

Pure. A worker is refused for what it showed, and quarantined for what somebody else has to bring: collateral that is
not at hand, a machine or GPU that is taken, a release on its way out. A quarantined worker is enrolled, gets no
requests, and shows fresh evidence often; it leaves as soon as that is accepted.
"""

import datetime as dt
import enum
import hmac
from typing import Final

import msgspec

from attestation.evidence import Endorsements, Evidence
from attestation.findings import Code, Finding
from attestation.judge import Question, judge
from attestation.policy import Policy
from attestation.verdict import Verdict
from workers.targets import EvidenceLevel

QUARANTINE_RETRY_S: Final = 15.0
"""How often a quarantined worker shows fresh evidence."""
REATTEST_PART: Final = 0.5
"""Part of its evidence's remaining time after which a worker shows fresh evidence: half of it is the overlap."""
WAITING: Final = frozenset({
    Code.COLLATERAL_MISSING, Code.COLLATERAL_STALE, Code.TCB_EVALUATION_OLD, Code.CRL_MISSING, Code.RIM_MISSING,
    Code.GPU_IN_USE, Code.PLATFORM_FULL, Code.RELEASE_DRAINING,
})  # fmt: skip
"""Reasons that somebody else than the worker can remove."""


class Outcome(enum.StrEnum):
    """What becomes of an enrolment."""

    ADMITTED = "admitted"
    QUARANTINED = "quarantined"
    REFUSED = "refused"


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A judgement with everything it rests on; `evidence` and `endorsements` are the carried bytes.

    `reasons` go beyond the verdict's: a machine that is taken is no fault of the evidence.
    """

    outcome: Outcome
    verdict: Verdict
    reasons: tuple[Finding, ...]
    evidence: bytes
    endorsements: bytes
    nonce: bytes | None

    @property
    def level(self) -> EvidenceLevel:
        """What routing may conclude. SEV-SNP is accepted and shown, and is no `tdx`."""
        return level_of(self.verdict)

    @property
    def hardware_id(self) -> bytes:
        """The machine, as its vendor numbers it; empty where nothing was proven."""
        return self.verdict.ppid or self.verdict.chip_id

    def held_back(self, *reasons: Finding) -> "Judged":
        """The same, quarantined for these reasons besides."""
        if self.outcome is Outcome.REFUSED or not reasons:
            return self
        return msgspec.structs.replace(self, outcome=Outcome.QUARANTINED, reasons=(*self.reasons, *reasons))

    def reattest_s(self, now: dt.datetime) -> float:
        """In how many seconds fresh evidence is wanted."""
        if self.outcome is not Outcome.ADMITTED:
            return QUARANTINE_RETRY_S
        return (self.verdict.valid_until - now.timestamp()) * REATTEST_PART


def judge_evidence(
    evidence: Evidence, endorsements: Endorsements, policy: Policy, question: Question, *, keyset: bytes, raw: bytes
) -> Judged:
    """Judge the evidence of a worker that enrols with the bytes `keyset`; `raw` is the evidence as carried."""
    verdict = judge(evidence, endorsements, policy, question)
    reasons = verdict.reasons
    if verdict.accepted and not hmac.compare_digest(evidence.keyset, keyset):
        reasons = (Finding(Code.KEYSET_MISMATCH, "the evidence is about another keyset than the worker enrols with"),)
    outcome = Outcome.ADMITTED
    if reasons:
        waits = all(reason.code in WAITING for reason in reasons)
        outcome = Outcome.QUARANTINED if waits else Outcome.REFUSED
    judged = Judged(
        outcome=outcome, verdict=verdict, reasons=reasons, evidence=raw, endorsements=endorsements.encode(),
        nonce=question.nonce,
    )  # fmt: skip
    if any(release.draining and release.name == verdict.release for release in policy.releases):
        message = f"release {verdict.release} is on its way out: the worker gets requests again with a newer image"
        judged = judged.held_back(Finding(Code.RELEASE_DRAINING, message))
    return judged


def level_of(verdict: Verdict) -> EvidenceLevel:
    """What an accepted verdict is worth to `provider.require`; nothing where it is not accepted."""
    if not verdict.accepted or not verdict.tee_type.startswith("tdx"):
        return "none"
    return "tdx+gpu" if verdict.gpus else "tdx"
