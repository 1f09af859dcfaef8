"""The workers that a client has verified itself, by model, and until when.

`GET /v1/attestation?model=&nonce=` answers with evidence for a nonce that the client chose a moment ago. The gateway's
own opinion of it is not read: every worker is judged here, under the client's policy. No I/O; `transport` fetches.
"""

import contextlib
import datetime as dt
import random
from collections.abc import Mapping
from typing import Final

import msgspec

from attestation.evidence import Endorsements, Evidence
from attestation.judge import Question, judge
from attestation.verdict import Verdict
from cocoon.enrolment import Keyset
from cocoon.errors import MalformedError
from cocoon.receipt import NO_STAKE
from cocoon.sealed import PUBLIC_KEY_BYTES, RECIPIENTS_MAX, Recipient
from cocoon.stakes import named_stake
from cocoon.statement import Beacon, Statement
from cocoon_client.errors import AttestationUnavailableError, NotTrustedError
from cocoon_client.trust import Trust
from cocoon_client.verification.chain import answering_stake

NONCE_BYTES: Final = 32
ATTESTATION_BYTES_MAX: Final = 64 * 1024 * 1024
WORKERS_MAX: Final = 256
MODELS_MAX: Final = 256
MARGIN_S: Final = 120
"""A keyset that ends sooner is not sealed for: the answer has to fit in as well."""
REFRESH_S: Final = 900
"""How long a model's workers are used before newer ones are asked for."""
OwnBlocks = Mapping[Beacon, Beacon]
"""What a chain of one's own has where statements name blocks."""
_NONE: OwnBlocks = {}


class _ShownWorker(msgspec.Struct, frozen=True):
    """What is read of one worker in the answer; what else stands there is the gateway's opinion."""

    evidence: bytes | None = None
    endorsements: bytes | None = None
    stake: bytes | None = None
    name: str = ""


class AttestationAnswer(msgspec.Struct, frozen=True):
    """`GET /v1/attestation`; bytes are base64."""

    model: str
    workers: list[_ShownWorker]


class VerifiedWorker(msgspec.Struct, frozen=True):
    """A worker whose evidence held, with everything that showed it.

    `nonce` is the client's own. `name` is what the gateway calls the worker: an unverified label.
    """

    name: str
    keyset: Keyset
    keyset_bytes: bytes
    evidence: bytes
    endorsements: bytes
    nonce: bytes
    verdict: Verdict

    @property
    def recipient(self) -> Recipient:
        """What a request is sealed for."""
        return Recipient(self.verdict.keyset_digest, self.keyset.hpke_xwing)

    @property
    def usable_until(self) -> int:
        """Unix seconds."""
        return min(self.verdict.valid_until, self.keyset.not_after) - MARGIN_S


class Directory:
    """Judges workers and remembers those that hold. Not thread-safe: callers serialise by model."""

    def __init__(self, trust: Trust, rng: random.Random) -> None:
        self.trust = trust
        self._rng = rng
        self._models: dict[str, tuple[dt.datetime, tuple[VerifiedWorker, ...]]] = {}

    def new_nonce(self) -> bytes:
        """32 bytes that no evidence can know before."""
        return self._rng.randbytes(NONCE_BYTES)

    def known(self, model: str, manifest: bytes | None, at: dt.datetime) -> tuple[VerifiedWorker, ...]:
        """Up to eight verified workers for a request; empty when evidence has to be asked for."""
        judged_at, workers = self._models.get(model, (at, ()))
        if not dt.timedelta() <= at - judged_at < dt.timedelta(seconds=REFRESH_S):
            return ()
        usable = [
            worker
            for worker in workers
            if at.timestamp() < worker.usable_until and manifest in (None, worker.verdict.model_manifest_sha256)
        ]
        return tuple(usable if len(usable) <= RECIPIENTS_MAX else self._rng.sample(usable, RECIPIENTS_MAX))

    def forget(self, model: str) -> None:
        """Ask for evidence again at the next request."""
        self._models.pop(model, None)

    def judge(
        self, model: str, answer: bytes, *, nonce: bytes, manifest: bytes | None, at: dt.datetime,
        own: OwnBlocks = _NONE,
    ) -> None:  # fmt: skip
        """Judge every worker of an answer and remember those that hold.

        `own` has the blocks of the client's own chain where statements name some, if it has one (`named_blocks`).

        Raises:
            AttestationUnavailableError: not an answer, or it names no worker at all.
            NotTrustedError: no worker holds; the message says why, worker by worker.
        """
        shown = _read(answer)
        if shown.model != model or not shown.workers or len(shown.workers) > WORKERS_MAX:
            raise AttestationUnavailableError(f"the gateway shows no attested worker of {model}")
        verified: dict[bytes, VerifiedWorker] = {}
        refusals: list[tuple[str, str, str]] = []
        for worker in shown.workers:
            try:
                held = self._judged(worker, nonce, manifest, at, own)
                verified[held.verdict.keyset_digest] = held
            except _RefusedWorkerError as refusal:
                refusals.append((worker.name, refusal.code, str(refusal)))
        if not verified:
            sentences = "; ".join(f"{name or 'a worker'}: {why} [{code}]" for name, code, why in refusals)
            raise NotTrustedError(f"no worker of {model} is to be trusted: {sentences}", tuple(r[1] for r in refusals))
        if len(self._models) >= MODELS_MAX:
            self._models.clear()
        self._models[model] = (at, tuple(verified.values()))

    def _judged(
        self, shown: _ShownWorker, nonce: bytes, manifest: bytes | None, at: dt.datetime, own: OwnBlocks
    ) -> VerifiedWorker:
        raw, endorsed = shown.evidence or b"", shown.endorsements or b""
        try:
            evidence, endorsements = Evidence.decode(raw), Endorsements.decode(endorsed)
            keyset, named = Keyset.decode(evidence.keyset), Statement.decode(evidence.statement).beacon
        except MalformedError as error:
            raise _RefusedWorkerError("evidence_malformed", f"it shows no evidence: {error}") from error
        question = Question(at=at, deployment=self.trust.deployment, nonce=nonce, beacon=own.get(named))
        verdict = judge(evidence, endorsements, self.trust.policy, question)
        for reason in verdict.reasons:
            raise _RefusedWorkerError(reason.code.value, reason.message)
        if verdict.simulated and not self.trust.allow_simulated:
            raise _RefusedWorkerError("simulated_refused", "its TEE is simulated and that was not allowed")
        if manifest is not None and verdict.model_manifest_sha256 != manifest:
            raise _RefusedWorkerError("manifest_mismatch", "it serves other weights than the pinned manifest names")
        try:
            if named_stake(keyset) != NO_STAKE and shown.stake is not None:
                answering_stake(keyset, shown.stake, self.trust)
        except MalformedError as error:
            raise _RefusedWorkerError("stake_invalid", f"its stake does not answer for it: {error}") from error
        if len(keyset.hpke_xwing) != PUBLIC_KEY_BYTES:
            raise _RefusedWorkerError("no_sealing_key", "its keyset has no key to seal for")
        return VerifiedWorker(
            name=shown.name, keyset=keyset, keyset_bytes=evidence.keyset, evidence=raw,
            endorsements=endorsed, nonce=nonce, verdict=verdict,
        )  # fmt: skip


def named_blocks(answer: bytes) -> set[Beacon]:
    """The blocks that the statements in an answer name; malformed ones name none.

    Raises:
        AttestationUnavailableError: not an answer.
    """
    found: set[Beacon] = set()
    for worker in _read(answer).workers[:RECIPIENTS_MAX]:
        with contextlib.suppress(MalformedError):
            found.add(Statement.decode(Evidence.decode(worker.evidence or b"").statement).beacon)
    return found


def _read(answer: bytes) -> AttestationAnswer:
    try:
        return msgspec.json.decode(answer, type=AttestationAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AttestationUnavailableError("the gateway's answer about its workers cannot be read") from error


class _RefusedWorkerError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
