"""The steps about the worker: its hardware, how fresh its evidence is, and the weights it serves."""

import datetime as dt
import hashlib
import hmac

import msgspec

from attestation.evidence import Endorsements, Evidence
from attestation.findings import Finding
from attestation.judge import Question, judge
from attestation.verdict import Verdict
from cocoon.bundle import ReceiptBundle
from cocoon.enrolment import Keyset
from cocoon.errors import MalformedError
from cocoon.openai import ModelRequest
from cocoon.statement import Beacon, Statement
from cocoon_client.opening import Opening
from cocoon_client.trust import Trust
from cocoon_client.verification.receipts import Facts
from cocoon_client.verification.steps import Step, failed, held, not_shown

JUDGED_AFTER_S = 60
"""Saved evidence without a time of its own is judged as of a minute after the block that its statement names."""


class Shown(msgspec.Struct, frozen=True):
    """Evidence to judge: the client's own where it kept some, else the bundle's.

    `nonce` is the client's own, None where the gateway chose. `at` is the time that it is judged as of.
    """

    evidence: Evidence
    endorsements: Endorsements
    nonce: bytes | None
    at: dt.datetime


def shown_evidence(bundle: ReceiptBundle, opening: Opening | None) -> Shown | None:
    """What there is to judge.

    Raises:
        MalformedError: it is not in its format.
    """
    if opening is not None and opening.evidence:
        evidence = Evidence.decode(opening.evidence)
        endorsements = Endorsements.decode(opening.endorsements)
        return Shown(evidence, endorsements, opening.nonce or None, _moment(opening.judged_at))
    if not bundle.evidence or not bundle.endorsements:
        return None
    evidence = Evidence.decode(bundle.evidence)
    statement, keyset = Statement.decode(evidence.statement), Keyset.decode(evidence.keyset)
    seconds = max(statement.beacon.gen_utime, keyset.not_before) + JUDGED_AFTER_S
    return Shown(evidence, Endorsements.decode(bundle.endorsements), None, _moment(seconds))


def keyset_bytes(bundle: ReceiptBundle, shown: Shown | None) -> bytes | None:
    """The keyset that everything is checked against: the one in the evidence, if there is any."""
    return bundle.keyset if shown is None else shown.evidence.keyset


def hardware(shown: Shown | None, facts: Facts, trust: Trust) -> tuple[Step, Verdict | None]:
    """The worker's TEE under the verifier's policy, whatever the freshness of its evidence."""
    name = "evidence"
    if shown is None:
        return not_shown(name, "there is no evidence: the worker ran without a TEE, or the gateway shows none"), None
    if shown.evidence.keyset != facts.bundle.keyset:
        return failed(name, "the evidence is about another keyset than the receipt's"), None
    lenient = msgspec.structs.replace(trust.policy, freshness=("nonce", "own-liteserver", "unproven"))
    verdict = judge(shown.evidence, shown.endorsements, lenient, Question(at=shown.at, deployment=trust.deployment))
    if not verdict.accepted:
        hint = "; this client allows no simulated evidence" if verdict.simulated and not trust.allow_simulated else ""
        return failed(name, f"the evidence is refused: {_said(verdict.reasons)}{hint}"), verdict
    if verdict.simulated:
        return held(name, "SIMULATED: the evidence holds, no hardware stands behind it, and you allowed that"), verdict
    what = verdict.tee_type + (f" with {verdict.gpus} GPUs ({verdict.gpu_binding})" if verdict.gpus else "")
    notes = f"; note: {_said(verdict.notes)}" if verdict.notes else ""
    return held(name, f"{what}, release {verdict.release}, holds under policy {verdict.policy}{notes}"), verdict


def freshness(shown: Shown | None, verdict: Verdict | None, trust: Trust, own: Beacon | None = None) -> Step:
    """Whether the evidence was made for this verifier, after a block that it has seen, or some time in a keyset's life.

    `own` is the block that a chain of the verifier's own has where the statement names one, None where none was asked.
    """
    name = "freshness"
    if shown is None or verdict is None or not verdict.accepted:
        return not_shown(name, "there is no accepted evidence whose freshness could be judged")
    strict = judge(
        shown.evidence, shown.endorsements, trust.policy,
        Question(at=shown.at, deployment=trust.deployment, nonce=shown.nonce, beacon=own),
    )  # fmt: skip
    if shown.nonce is not None:
        if not strict.accepted:
            return failed(name, f"the evidence was not made for this client now: {_said(strict.reasons)}")
        return held(name, "the evidence carries the nonce that this client had just chosen, before it asked")
    if not strict.accepted:
        return not_shown(name, f"nobody but the gateway chose the nonce: {_said(strict.reasons)}")
    if strict.freshness == "own-liteserver":
        return held(name, "the evidence names a block of your own liteserver's chain, and is younger [own-liteserver]")
    sentence = (
        "nobody but the gateway chose the nonce; your policy accepts that, and the keyset lived six hours at most"
    )
    return not_shown(name, sentence, required=False)


def manifest(facts: Facts, opening: Opening | None, trust: Trust) -> Step:
    """The weights: the same digest in keyset and receipt, and the pinned one where one is pinned."""
    name = "manifest"
    keyset, named = facts.keyset, facts.body.model_manifest_sha256
    pin = _pin(opening, trust)
    if keyset is None or not hmac.compare_digest(keyset.model_manifest_sha256, named):
        return failed(name, "keyset and receipt name different model manifests")
    if not named:
        return not_shown(
            name, "the worker names no model manifest: which weights answered is not known", required=bool(pin)
        )
    if pin is not None and not hmac.compare_digest(pin, named):
        return failed(name, "the weights are not the pinned ones")
    document = facts.bundle.manifest
    if document is not None and hashlib.sha256(document).digest() != named:
        return failed(name, "the manifest that is shown has another digest")
    pinned = "the one that is pinned" if pin is not None else "none is pinned"
    return held(name, f"keyset and receipt name the weights {named.hex()[:16]}; {pinned}")


def _moment(seconds: int) -> dt.datetime:
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise MalformedError("the evidence is of an impossible time") from error


def _pin(opening: Opening | None, trust: Trust) -> bytes | None:
    if opening is None:
        return None
    if opening.manifest is not None:
        return opening.manifest
    try:
        return trust.manifests.get(msgspec.json.decode(opening.request, type=ModelRequest).model)
    except msgspec.DecodeError:
        return None


def _said(findings: tuple[Finding, ...]) -> str:
    return "; ".join(f"{finding.message} [{finding.code}]" for finding in findings)
