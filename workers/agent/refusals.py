"""Every way the agent says no before an answer has begun: status, stable code, OpenAI error body.

The only module of the agent that knows HTTP status codes.
"""

from typing import ClassVar

import msgspec

from cocoon.errors import CocoonError
from cocoon.openai import FieldError, error_json

ENGINE_MESSAGE_CHARS_MAX = 2000
_ENGINE_ERROR_BYTES_MAX = 64 * 1024
_RETRY_AFTER_DIGITS_MAX = 5
_CONTEXT_ERROR = "exceed_context_size_error"
_PASSED_STATUSES = frozenset({400, 413, 422, 429})


class Refusal(msgspec.Struct, frozen=True):
    """An HTTP error that the agent answers. `retry_after` is the header's exact value.

    `quotes` says that its words are the engine's, which may repeat what was asked: of a sealed job they are sealed.
    """

    status: int
    code: str
    kind: str
    message: str
    param: str | None = None
    retry_after: str | None = None
    quotes: bool = False

    def body(self) -> bytes:
        """The OpenAI-shaped body."""
        return error_json(self.message, self.kind, param=self.param, code=self.code)


class RefusedError(CocoonError):
    """The agent refuses the job."""

    code: ClassVar[str] = "refused"

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def _unauthorised(code: str, message: str) -> Refusal:
    return Refusal(401, code, "authentication_error", message)


def _forbidden(code: str, message: str) -> Refusal:
    return Refusal(403, code, "permission_error", message)


def _invalid(message: str, *, code: str = "invalid_request", param: str | None = None, status: int = 400) -> Refusal:
    return Refusal(status, code, "invalid_request_error", message, param)


def _unavailable(code: str, message: str) -> Refusal:
    return Refusal(503, code, "server_error", message, retry_after="1")


NO_TICKET = _unauthorised("ticket_missing", "the request carries no ticket")
BAD_TICKET = _unauthorised("ticket_invalid", "the ticket is not authentic")
EXPIRED_TICKET = _forbidden("ticket_expired", "the ticket has expired")
FOREIGN_TICKET = _forbidden("ticket_foreign", "the ticket is for another network or stake")
OTHER_REQUEST = _forbidden("ticket_mismatch", "the ticket is for another request")
NO_ALLOWANCE = _forbidden("ticket_exhausted", "the ticket allows no completion tokens for this many choices")
BAD_SEALED = _invalid("the body is not a sealed request", code="sealed_malformed")
UNOPENABLE = _invalid("the request was not sealed for this worker, or was altered", code="sealed_unopenable")
OTHER_TERMS = _invalid("the sealed body asks for something else than its clear header", code="sealed_mismatch")
EXPIRED_SEALED = _forbidden("sealed_expired", "the sealed request has expired")
SEALED_REPLAYED = Refusal(409, "sealed_replayed", "invalid_request_error", "this worker has seen this sealed job")
REPLAYED = Refusal(409, "ticket_replayed", "invalid_request_error", "this attempt was already made")
REPLAY_FULL = _unavailable("replay_set_full", "the worker cannot remember more tickets")
RECEIPTS_FULL = _unavailable("receipts_full", "the worker cannot keep more receipts")
UNSIGNED = _unavailable("tickets_unsigned", "the gateway owes signatures for earlier tickets")
OWED = _unavailable("operator_owes", "the operator owes this worker more than it allows")
BUSY = _unavailable("worker_busy", "the worker is at its capacity")
DRAINING = _unavailable("worker_draining", "the worker is shutting down")
NOT_ENROLLED = _unavailable("worker_not_enrolled", "the worker is not enrolled yet")
ENGINE_UNAVAILABLE = _unavailable("engine_unavailable", "the engine is not ready")
ENGINE_FAILED = Refusal(502, "engine_failed", "server_error", "the engine failed")
TIMED_OUT = Refusal(504, "job_timeout", "server_error", "the job took longer than this worker allows")
CRASHED = Refusal(500, "internal_error", "server_error", "the worker failed")
NOT_FOUND = _invalid("no such path", code="not_found", status=404)
WRONG_METHOD = _invalid("method not allowed", code="method_not_allowed", status=405)
BEST_OF = _invalid(
    "this worker does not choose the best of several answers",
    code="best_of_unsupported",
    param="best_of",
)
BAD_SALT = _invalid("the salt must be 16 to 64 bytes of base64url", code="bad_salt")
BAD_BODY = _invalid("the body is not a request of this endpoint")
NO_TEE = _invalid("this worker has no TEE to state anything", code="no_tee", status=404)
BAD_STATEMENT_REQUEST = _invalid("the body is not a request for a statement")
STRANGE_STATEMENT_REQUEST = _unauthorised("statement_request_invalid", "the request is not of a gateway, or too old")
STATEMENTS_BUSY = Refusal(429, "statements_busy", "rate_limit_error", "the platform is busy", retry_after="1")
NO_EVIDENCE = _unavailable("evidence_unavailable", "the TEE gives no evidence now")
SLOW_BODY = _invalid("the body did not arrive in time", code="request_timeout", status=408)


def unknown_model(served: str) -> Refusal:
    """The model is not the one served here; the asked name is not echoed."""
    return _invalid(f"this worker serves {served}", code="model_not_found", param="model", status=404)


def unsupported(endpoint: str) -> Refusal:
    """The engine does not serve this endpoint."""
    return _invalid(f"this worker does not serve {endpoint}", code="model_not_found", param="model", status=404)


def over_prompt(param: str) -> Refusal:
    """The engine counts more tokens in the prompt, which is in member `param`, than the ticket pays for."""
    return _invalid("the prompt is longer than the request's bound allows", code="context_length_exceeded", param=param)


def bad_field(error: FieldError) -> Refusal:
    """A field of the request has an impossible value."""
    return _invalid(str(error), code=error.reason or error.code, param=error.param)


def body_too_large(limit: int) -> Refusal:
    """The body is over the limit, which is named."""
    return _invalid(f"the body is larger than {limit} bytes", code="body_too_large", status=413)


class _EngineErrorInside(msgspec.Struct, frozen=True):
    message: str | None = None
    type: str | None = None
    param: msgspec.Raw = msgspec.Raw(b"null")


class _EngineError(msgspec.Struct, frozen=True):
    """The union of what engines send: OpenAI's and llama.cpp's nested `error`, SGLang's flat one, FastAPI's detail."""

    error: _EngineErrorInside | str | None = None
    message: str | None = None
    type: str | None = None
    param: msgspec.Raw = msgspec.Raw(b"null")
    detail: msgspec.Raw = msgspec.Raw(b"null")


_engine_error_decoder = msgspec.json.Decoder(_EngineError)


def engine_refusal(status: int, body: bytes, retry_after: bytes | None, prompt: str = "messages") -> Refusal:
    """What the engine's HTTP error becomes; `prompt` is the member of the request that holds the prompt.

    A fault of the request passes with its status and message; a fault of the engine, or of the agent's standing with
    it (its key, its model name), becomes a 502 that says nothing about the inside.
    """
    kept = _digits(retry_after)
    if status not in _PASSED_STATUSES:
        return Refusal(502, ENGINE_FAILED.code, ENGINE_FAILED.kind, ENGINE_FAILED.message, retry_after=kept)
    message, kind, param = _read_engine_error(body)
    if status == 429:  # noqa: PLR2004  too many requests
        return Refusal(status, "engine_busy", "rate_limit_error", message, retry_after=kept or "1", quotes=True)
    refusal = _invalid(message, code="invalid_request", param=param, status=status)
    if kind == _CONTEXT_ERROR:
        refusal = _invalid(message, code="context_length_exceeded", param=prompt)
    return msgspec.structs.replace(refusal, quotes=True)


def _read_engine_error(body: bytes) -> tuple[str, str | None, str | None]:
    fallback = "the engine refused the request"
    try:
        error = _engine_error_decoder.decode(body[:_ENGINE_ERROR_BYTES_MAX])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return fallback, None, None
    match error.error:
        case _EngineErrorInside(message=message, type=kind, param=param):
            pass
        case str() as message:
            kind, param = error.type, error.param
        case None:
            message, kind, param = error.message or _text(error.detail), error.type, error.param
    return (message or fallback)[:ENGINE_MESSAGE_CHARS_MAX], kind, _text(param)


def _text(raw: msgspec.Raw) -> str | None:
    """A JSON text; None for anything else, such as FastAPI's list of validation errors, which quotes the input."""
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        return None


def _digits(retry_after: bytes | None) -> str | None:
    if retry_after is None or not retry_after.isdigit() or len(retry_after) > _RETRY_AFTER_DIGITS_MAX:
        return None
    return retry_after.decode()
