"""The only place where errors meet status codes. Every error leaves in OpenAI's shape."""

import math
from typing import NamedTuple, cast

from audit.errors import EnvelopeTooLongError, LogUnavailableError, NotLoggedError
from billing.ceilings import VoucherRequiredError
from billing.escrows import (
    CloseAgreedError,
    CloseNotAgreedError,
    EscrowConflictError,
    StaleVoucherError,
    UnknownEscrowError,
)
from billing.payouts import EpochUnknownError
from billing.ports import InsufficientCreditError, LedgerUnavailableError, TransferConflictError
from billing.postgres.adjustments import TransferTimeError
from billing.ton.chain import ChainError
from cocoon import openai
from cocoon.errors import CocoonError
from cocoon.sealed import CONTENT_TYPE
from cocoon.ton_proof import ProofRefusedError
from cocoon.wallets import WalletError
from gateway.attestor import AttestorBusyError
from gateway.auth import ExpiredKeyError, InvalidKeyError, KeysStaleError, MissingKeyError, RoleForbiddenError
from gateway.errors import (
    AnswerBrokenError,
    AnswerTimeoutError,
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidRequestError,
    ManifestUnknownError,
    ModelForbiddenError,
    ModelUnknownError,
    OverloadedError,
    PriceLimitError,
    UpstreamRefusedError,
)
from gateway.escrows import EscrowsOffError, EscrowTermsError, VoucherRefusedError
from gateway.headers import limit_headers
from gateway.idempotency import IdempotencyConflictError, InFlightError, NotReplayableError
from gateway.limits import LimitsUnknownError, RateLimitedError, SpendLimitError
from gateway.postgres.keys import KeyNameTakenError, KeyUnknownError, ProjectUnknownError
from gateway.postgres.organisations import (
    OrganisationTakenError,
    OrganisationUnknownError,
    ProjectNeededError,
    ProjectTakenError,
)
from gateway.receipts import ReceiptUnknownError
from gateway.sealed import JobUsedError, KeyTagError, RecipientsGoneError
from gateway.signing import SigningUnavailableError
from gateway.wallet_keys import (
    ChallengeRefusedError,
    ForeignNetworkError,
    WalletBarredError,
    WalletLimitError,
    WalletsOffError,
)
from workers.errors import (
    ChallengesFullError,
    EndpointUnsupportedError,
    EnrolmentRefusedError,
    EnrolmentStoreUnavailableError,
    NoWorkerError,
    TokenRefusedError,
    WorkersBusyError,
)

SEALED_TYPE = CONTENT_TYPE.encode()
RETRY_AFTER_S_DEFAULT = 1
RETRY_AFTER_S_MAX = 3600
_REASONS_MAX = 5
_PASSED_ON = frozenset({400, 404, 413, 415, 422})

STATUS: dict[type[CocoonError], tuple[int, str]] = {
    InvalidRequestError: (400, "invalid_request_error"),
    PriceLimitError: (400, "invalid_request_error"),
    EscrowTermsError: (400, "invalid_request_error"),
    VoucherRefusedError: (400, "invalid_request_error"),
    MissingKeyError: (401, "invalid_request_error"),
    InvalidKeyError: (401, "invalid_request_error"),
    ExpiredKeyError: (401, "invalid_request_error"),
    TokenRefusedError: (401, "invalid_request_error"),
    InsufficientCreditError: (402, "insufficient_quota"),
    ModelForbiddenError: (403, "invalid_request_error"),
    RoleForbiddenError: (403, "invalid_request_error"),
    KeyTagError: (403, "invalid_request_error"),
    EnrolmentRefusedError: (403, "invalid_request_error"),
    ProofRefusedError: (403, "invalid_request_error"),
    WalletError: (403, "invalid_request_error"),
    WalletsOffError: (403, "invalid_request_error"),
    EscrowsOffError: (403, "invalid_request_error"),
    ChallengeRefusedError: (403, "invalid_request_error"),
    ForeignNetworkError: (403, "invalid_request_error"),
    WalletBarredError: (403, "invalid_request_error"),
    WalletLimitError: (429, "rate_limit_error"),
    TransferTimeError: (400, "invalid_request_error"),
    ModelUnknownError: (404, "invalid_request_error"),
    ManifestUnknownError: (404, "invalid_request_error"),
    EndpointUnsupportedError: (404, "invalid_request_error"),
    EpochUnknownError: (404, "invalid_request_error"),
    NotLoggedError: (404, "invalid_request_error"),
    ReceiptUnknownError: (404, "invalid_request_error"),
    UnknownEscrowError: (404, "invalid_request_error"),
    OrganisationUnknownError: (404, "invalid_request_error"),
    ProjectUnknownError: (404, "invalid_request_error"),
    KeyUnknownError: (404, "invalid_request_error"),
    OrganisationTakenError: (409, "invalid_request_error"),
    ProjectTakenError: (409, "invalid_request_error"),
    ProjectNeededError: (409, "invalid_request_error"),
    KeyNameTakenError: (409, "invalid_request_error"),
    TransferConflictError: (409, "invalid_request_error"),
    EscrowConflictError: (409, "invalid_request_error"),
    CloseNotAgreedError: (409, "invalid_request_error"),
    CloseAgreedError: (409, "invalid_request_error"),
    StaleVoucherError: (409, "invalid_request_error"),
    BodyTimeoutError: (408, "invalid_request_error"),
    IdempotencyConflictError: (409, "invalid_request_error"),
    InFlightError: (409, "invalid_request_error"),
    JobUsedError: (409, "invalid_request_error"),
    RecipientsGoneError: (409, "invalid_request_error"),
    NotReplayableError: (409, "invalid_request_error"),
    BodyTooLargeError: (413, "invalid_request_error"),
    EnvelopeTooLongError: (413, "invalid_request_error"),
    ChallengesFullError: (429, "rate_limit_error"),
    RateLimitedError: (429, "rate_limit_error"),
    SpendLimitError: (429, "insufficient_quota"),
    AnswerBrokenError: (502, "server_error"),
    AttestorBusyError: (503, "server_error"),
    OverloadedError: (503, "server_error"),
    SigningUnavailableError: (503, "server_error"),
    LedgerUnavailableError: (503, "server_error"),
    ChainError: (503, "server_error"),
    LogUnavailableError: (503, "server_error"),
    LimitsUnknownError: (503, "server_error"),
    KeysStaleError: (503, "server_error"),
    EnrolmentStoreUnavailableError: (503, "server_error"),
    NoWorkerError: (503, "server_error"),
    WorkersBusyError: (503, "server_error"),
    AnswerTimeoutError: (504, "server_error"),
}
"""Status and OpenAI `type` by error class; a subclass takes its parent's. Transient ones say when to try again."""

PUBLIC_MESSAGES: dict[type[CocoonError], str] = {
    LedgerUnavailableError: "Billing is temporarily unavailable; nothing was charged. Try again shortly.",
    OverloadedError: "The gateway is at its limit. Try again shortly.",
    ChainError: "The chain cannot be read right now. Try again shortly.",
    KeysStaleError: "API keys cannot be checked right now. Try again shortly.",
}
"""Where the internal message is not the public one."""


class ErrorAnswer(NamedTuple):
    """An error ready to be sent."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    content_type: bytes = b"application/json"


def error_answer(error: CocoonError) -> ErrorAnswer:
    """Status, extra headers and OpenAI body of an error. Unknown errors say nothing but that they are ours."""
    if isinstance(error, UpstreamRefusedError):
        return _passed_on(error)
    known = next((cls for cls in type(error).__mro__ if cls in STATUS), None)
    if known is None:
        return ErrorAnswer(500, [], openai.error_json("Internal error.", "server_error", code="internal_error"))
    status, kind = STATUS[known]
    headers: list[tuple[bytes, bytes]] = []
    if error.transient:
        wait_s: float = getattr(error, "retry_after_s", RETRY_AFTER_S_DEFAULT)
        if not isinstance(error, SpendLimitError):
            wait_s = min(wait_s, RETRY_AFTER_S_MAX)
        headers.append((b"retry-after", str(max(1, math.ceil(wait_s))).encode()))
    if isinstance(error, SpendLimitError):
        # OpenAI's clients try a 429 again by themselves unless they are told not to.
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, RateLimitedError):
        headers += limit_headers(error.state)
    if isinstance(error, NotReplayableError):
        headers.append((b"x-cocoon-receipt", str(error.job_id).encode()))
    if isinstance(error, NotReplayableError | IdempotencyConflictError | JobUsedError | RecipientsGoneError):
        # OpenAI's clients repeat a 409 unless they are told that it would say the same again.
        headers.append((b"x-should-retry", b"false"))
    if status == 401:  # noqa: PLR2004  HTTP's own name
        headers.append((b"www-authenticate", b"Bearer"))
    param = error.param if isinstance(error, InvalidRequestError) else None
    code = (error.reason if isinstance(error, InvalidRequestError) else None) or error.code
    message = PUBLIC_MESSAGES.get(known, str(error))
    details = _demand(error) if isinstance(error, VoucherRequiredError) else None
    return ErrorAnswer(status, headers, openai.error_json(message, kind, param=param, code=code, details=details))


def _demand(error: VoucherRequiredError) -> dict[str, str | int]:
    """What the client has to sign (PROTOCOL §6)."""
    demand = error.demand
    return {
        "escrow": demand.escrow, "epoch": demand.epoch, "cumulative": demand.cumulative_nano,
        "usage_root": demand.usage_root.hex(),
    }  # fmt: skip


def _passed_on(error: UpstreamRefusedError) -> ErrorAnswer:
    """The engine's own words about the request, in OpenAI's shape whatever shape they came in."""
    status = error.status if error.status in _PASSED_ON else 400
    if error.sealed:
        return ErrorAnswer(status, [], error.body, SEALED_TYPE)
    return ErrorAnswer(status, [], openai.as_openai_error(error.body))


def explained(detail: str, extra: object) -> tuple[str, str | None]:
    """What the framework found wrong with a body or parameter, in one line, and with which."""
    entries = cast("list[object]", extra) if isinstance(extra, list) else []
    found = [cast("dict[str, object]", entry) for entry in entries if isinstance(entry, dict)]
    reasons = [(str(entry.get("key") or ""), str(entry.get("message") or "")) for entry in found[:_REASONS_MAX]]
    if not reasons:
        return detail, None
    return "; ".join(f"{key}: {reason}" if key else reason for key, reason in reasons), reasons[0][0] or None


def error_event(error: CocoonError) -> bytes:
    """The error as the last SSE event of a stream that has begun; no `[DONE]` follows it."""
    return b"data: " + error_answer(error).body + b"\n\n"
