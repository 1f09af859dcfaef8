"""The one deterministic encoding of structured documents: RFC 8785 JSON, restricted.

Keys are ASCII and sorted, there is no white space, integers lie within +-(2^53 - 1), floats are refused, and
bytes travel as unpadded base64url strings. A verifier never re-encodes: it hashes the bytes it was given.
"""

import base64
import re
import types
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import msgspec

from cocoon.errors import MalformedError

_SAFE_INTEGER_MAX = 2**53 - 1
T = TypeVar("T", bound=msgspec.Struct)
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


def encode(document: msgspec.Struct) -> bytes:
    """Canonical bytes of a document.

    Raises:
        MalformedError: a value has no canonical form here (float, integer beyond 2^53, non-ASCII key, lone surrogate).
    """
    # "sorted" also orders sets, whose own order differs from process to process.
    built = msgspec.to_builtins(document, builtin_types=(bytes, bytearray, memoryview), order="sorted")
    try:
        return msgspec.json.encode(_plain(built), order="sorted")
    except UnicodeEncodeError as error:
        raise MalformedError("canonical text is Unicode") from error


def decode(raw: bytes, kind: type[T]) -> T:
    """The document that `raw` is the canonical encoding of; one document has one encoding.

    Raises:
        MalformedError: not JSON, not of this kind, or not canonical (order, white space, padding, duplicates).
    """
    try:
        fields = msgspec.json.decode(raw, type=dict[str, Any])
        document = msgspec.convert(_with_bytes(kind, fields), kind, builtin_types=(bytes,))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"not a {kind.__name__}") from error
    if encode(document) != raw:
        raise MalformedError(f"not the canonical encoding of a {kind.__name__}")
    return document


def base64url(raw: bytes) -> str:
    """Unpadded base64url (RFC 4648 §5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """The bytes of an unpadded base64url text.

    Raises:
        MalformedError: characters outside the alphabet, padding, an impossible length, or unused bits that are set.
    """
    if _BASE64URL.fullmatch(text) is None or len(text) % 4 == 1:
        raise MalformedError("not unpadded base64url")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    # The last character may carry bits that no byte needs; two texts must not mean the same bytes.
    if base64url(raw) != text:
        raise MalformedError("not unpadded base64url")
    return raw


def _with_bytes(annotation: Any, value: Any) -> Any:
    """`value` with the texts that stand for bytes decoded, as deep as `annotation` names structs and tuples."""
    choices = _choices(annotation)
    match value:
        case str() if bytes in choices:
            return from_base64url(value)
        case list():
            inner = next((get_args(choice)[0] for choice in choices if get_origin(choice) is tuple), Any)
            return [_with_bytes(inner, item) for item in cast("list[Any]", value)]
        case dict():
            structs = (choice for choice in choices if isinstance(choice, type) and issubclass(choice, msgspec.Struct))
            kind = next(structs, None)
            fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)} if kind else {}
            entries = cast("dict[str, Any]", value)
            return {key: _with_bytes(fields.get(key, Any), item) for key, item in entries.items()}
        case _:
            return value


def _choices(annotation: Any) -> list[Any]:
    """The types of a union, without what is annotated about them."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, Union):
        return [choice for part in get_args(annotation) for choice in _choices(part)]
    return [annotation]


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return base64url(value)
        case bool() | str() | None:
            return value
        case int() if abs(value) <= _SAFE_INTEGER_MAX:
            return value
        case list() | tuple():
            return [_plain(item) for item in cast("list[Any]", value)]
        case dict():
            entries = cast("dict[Any, Any]", value)
            if not all(isinstance(key, str) and key.isascii() for key in entries):
                raise MalformedError("canonical keys are ASCII")
            return {key: _plain(item) for key, item in entries.items()}
        case _:
            raise MalformedError(f"no canonical form for {type(value).__name__}")
