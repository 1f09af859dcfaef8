"""What can go wrong with workers as a whole: enrolling them, hearing from them, choosing one."""

from typing import ClassVar

from cocoon.errors import CocoonError


class WorkersError(CocoonError):
    """The root of the gateway's operating errors about workers."""

    code: ClassVar[str] = "workers_error"


class ModelNotFoundError(WorkersError):
    """Nobody here serves this model, now or earlier."""

    code: ClassVar[str] = "model_not_found"


class EndpointUnsupportedError(WorkersError):
    """The model is served, but not at this endpoint."""

    code: ClassVar[str] = "model_not_found"


class NoWorkerError(WorkersError):
    """No worker that serves this model can be used at the moment."""

    code: ClassVar[str] = "no_worker"
    transient: ClassVar[bool] = True


class ManifestUnservedError(NoWorkerError):
    """No worker that is here now serves this model from the manifest that the request pins."""

    code: ClassVar[str] = "model_manifest_unavailable"


class WorkersBusyError(WorkersError):
    """Every worker that serves this model is at its capacity. `retry_after_s` is when asking again makes sense."""

    code: ClassVar[str] = "workers_busy"
    transient: ClassVar[bool] = True

    def __init__(self, retry_after_s: float) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


class CoverMissedError(WorkersBusyError):
    """The stakes of the workers that have room cover no more requests of this process at the moment."""


class EnrolmentRefusedError(WorkersError):
    """The worker cannot be enrolled as it asks to be."""

    code: ClassVar[str] = "enrolment_refused"


class KeysetRefusedError(EnrolmentRefusedError):
    """The keyset is malformed or its keys cannot be used."""

    code: ClassVar[str] = "keyset_invalid"


class KeysetLifetimeError(EnrolmentRefusedError):
    """The keyset is expired, not valid yet, or valid for too long."""

    code: ClassVar[str] = "keyset_lifetime"


class WorkerURLRefusedError(EnrolmentRefusedError):
    """The worker's URL is not one the gateway may connect to."""

    code: ClassVar[str] = "worker_url_refused"


class ManifestRefusedError(EnrolmentRefusedError):
    """The model manifest is not the one that the keyset names."""

    code: ClassVar[str] = "manifest_mismatch"


class StakeRefusedError(EnrolmentRefusedError):
    """The keyset names a stake that it does not speak for, or that does not count in this network."""

    code: ClassVar[str] = "stake_refused"


class ModelsRefusedError(EnrolmentRefusedError):
    """The worker names a model twice."""

    code: ClassVar[str] = "models_refused"


class AskRefusedError(EnrolmentRefusedError):
    """What the worker asks for its work is not acceptable; its earlier ask stays in force."""

    code: ClassVar[str] = "ask_refused"


class EvidenceRefusedError(EnrolmentRefusedError):
    """The worker claims a TEE that the gateway cannot verify."""

    code: ClassVar[str] = "evidence_unsupported"


class EvidenceJudgedError(EnrolmentRefusedError):
    """The worker's evidence does not show what the gateway's policy asks for; the message says why."""

    code: ClassVar[str] = "evidence_refused"


class ChallengeUnknownError(EnrolmentRefusedError):
    """The evidence answers no challenge of ours: its nonce was never given to this key, was used, or is too old."""

    code: ClassVar[str] = "challenge_unknown"


class ChallengesFullError(EnrolmentRefusedError):
    """This worker key has too many challenges open. Answer one, or wait."""

    code: ClassVar[str] = "challenges_full"
    transient: ClassVar[bool] = True


class TokenRefusedError(WorkersError):
    """The worker's token is not valid; the worker must enrol again."""

    code: ClassVar[str] = "worker_token_invalid"


class EnrolmentStoreUnavailableError(WorkersError):
    """The store of enrolments cannot be reached."""

    code: ClassVar[str] = "enrolment_store_unavailable"
    transient: ClassVar[bool] = True


class HeartbeatBusUnavailableError(WorkersError):
    """Other gateways cannot be told about this heartbeat; it counts in this process all the same."""

    code: ClassVar[str] = "heartbeat_bus_unavailable"
    transient: ClassVar[bool] = True
