"""What an enrolment shows for itself, judged before anything of it is stored."""

import uuid

import structlog

from cocoon.enrolment import EnrolRequest
from gateway.services import Services
from workers.errors import EvidenceJudgedError, EvidenceRefusedError
from workers.judgement import Judged, Outcome
from workers.targets import Worker

log = structlog.get_logger()


async def judged_for(services: Services, key_id: uuid.UUID, asked: EnrolRequest, worker: Worker) -> Judged | None:
    """The judgement of a worker's evidence; None for a worker without any, where that is allowed.

    Raises:
        EvidenceRefusedError: there is no policy to judge by, or evidence is required and none is shown.
        ChallengeUnknownError: the evidence answers no open challenge of this key.
        EvidenceJudgedError: the evidence is refused; the message has every reason.
    """
    attestor = services.attestor
    if not asked.evidence:
        if services.settings.attestation.required:
            raise EvidenceRefusedError("this network takes no workers without evidence")
        return None
    if not attestor.judges:
        raise EvidenceRefusedError("this gateway has no policy to judge evidence by")
    evidence, nonce = attestor.read(asked.evidence)
    await services.attestations.take(key_id, nonce)
    judged = await attestor.judge(evidence, asked.evidence, keyset=asked.keyset, nonce=nonce)
    if judged.outcome is Outcome.REFUSED:
        log.warning(
            "worker_refused", worker=worker.name, worker_id=str(worker.worker_id), tee_type=judged.verdict.tee_type,
            reasons=[f"{reason.message} [{reason.code}]" for reason in judged.reasons],
        )  # fmt: skip
        await services.attestations.note_refusal(worker, judged.verdict.tee_type, judged.reasons)
        raise EvidenceJudgedError("; ".join(f"{reason.message} [{reason.code}]" for reason in judged.reasons))
    return judged
