"""The one deterministic encoding of structured documents: RFC 8785 JSON, restricted.

Keys are ASCII and sorted, there is no white space, integers lie within +-(2^53 - 1), floats are refused, and
bytes travel as unpadded base64url strings. A verifier never re-encodes: it hashes the bytes it was given.
"""

import base64
import re
from typing import Any

import msgspec

from cocoon.errors import MalformedError

_SAFE_INTEGER_MAX = 2**53 - 1
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


def encode(document: msgspec.Struct) -> bytes:
    """Canonical bytes of a document.

    Raises:
        MalformedError: a value has no canonical form here (float, integer beyond 2^53, non-ASCII key).
    """
    built = msgspec.to_builtins(document, builtin_types=(bytes,))
    return msgspec.json.encode(_plain(built), order="sorted")


def base64url(raw: bytes) -> str:
    """Unpadded base64url (RFC 4648 §5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """The bytes of an unpadded base64url text.

    Raises:
        MalformedError: characters outside the alphabet, padding, or an impossible length.
    """
    if _BASE64URL.fullmatch(text) is None or len(text) % 4 == 1:
        raise MalformedError("not unpadded base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return base64url(value)
        case bool() | str() | None:
            return value
        case int() if abs(value) <= _SAFE_INTEGER_MAX:
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            if not all(isinstance(key, str) and key.isascii() for key in value):
                raise MalformedError("canonical keys are ASCII")
            return {key: _plain(item) for key, item in value.items()}
        case _:
            raise MalformedError(f"no canonical form for {type(value).__name__}")
