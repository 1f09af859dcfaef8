"""The root of every operating error.

A package derives one root from `CocoonError` and its errors from that root. `code` is stable and may be shown to
anyone; `transient` says whether the same call may succeed later without anybody changing anything. Which HTTP
status an error becomes is decided in `gateway/http/errors.py` alone.
"""

from typing import ClassVar


class CocoonError(Exception):
    """An operating error. The docstring of a subclass is its default message."""

    code: ClassVar[str] = "internal_error"
    transient: ClassVar[bool] = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or self.code).strip().splitlines()[0])


class MalformedError(CocoonError):
    """The bytes are not in the format they claim to be in."""

    code: ClassVar[str] = "malformed"
