"""What can be wrong with the log."""

from typing import ClassVar

from cocoon.errors import CocoonError


class AuditError(CocoonError):
    """The root of the log's operating errors."""

    code: ClassVar[str] = "log_error"


class LogUnavailableError(AuditError):
    """The transparency log cannot be reached right now."""

    code: ClassVar[str] = "log_unavailable"
    transient: ClassVar[bool] = True


class LogRewrittenError(AuditError):
    """What is stored of the log does not continue what was signed: nothing more is signed until a person has looked."""

    code: ClassVar[str] = "log_rewritten"


class NotLoggedError(AuditError):
    """The log has no such entry, tile or size."""

    code: ClassVar[str] = "not_in_log"


class EnvelopeTooLongError(AuditError):
    """The envelope is longer than the log keeps."""

    code: ClassVar[str] = "envelope_too_long"


class LogKeyError(AuditError):
    """The last checkpoint was signed by another key or origin: a log keeps both, or is another log."""

    code: ClassVar[str] = "log_key_changed"
