"""What a verifying client refuses, as typed errors. Every message says the reason in words a user can act on."""

from typing import ClassVar

from cocoon.errors import CocoonError


class ClientError(CocoonError):
    """The root of this package's operating errors."""

    code: ClassVar[str] = "client_error"


class TrustError(ClientError):
    """What the client was told to trust cannot be used."""

    code: ClassVar[str] = "trust_invalid"


class NotSealableError(ClientError):
    """The request cannot be sealed, and it is never sent plainly instead."""

    code: ClassVar[str] = "not_sealable"


class AttestationUnavailableError(ClientError):
    """The gateway shows no evidence of its workers."""

    code: ClassVar[str] = "attestation_unavailable"
    transient: ClassVar[bool] = True


class NotTrustedError(ClientError):
    """No worker of the model holds under the client's policy; `reasons` are the codes, worker by worker."""

    code: ClassVar[str] = "not_trusted"

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class DowngradeError(ClientError):
    """The gateway answered a sealed request with something that is not sealed."""

    code: ClassVar[str] = "downgrade_refused"


class AnswerRefusedError(ClientError):
    """The answer is not a whole, authentic answer to what was asked."""

    code: ClassVar[str] = "answer_refused"


class BundleUnavailableError(ClientError):
    """The receipt, or what belongs to it, cannot be had."""

    code: ClassVar[str] = "bundle_unavailable"
    transient: ClassVar[bool] = True
