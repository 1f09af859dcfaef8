"""Edit members of a JSON object in its bytes, without re-serialising it.

Re-serialising a client's body changes numbers, escapes and order, and costs milliseconds for a large one. These
functions let msgspec skip over the values, which it does in C and in linear time, and replace just the bytes of the
members that change. What they return is valid JSON whenever the fragments are.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from cocoon.errors import MalformedError

MEMBERS_MAX = 4096
"""Most members at the top of an object; each costs an allocation, and nobody's request has a hundred."""

# Possessive: a string of many megabytes must not leave a backtracking state for each character.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_SPACE = re.compile(rb"[ \t\r\n]*+")

_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Member(NamedTuple):
    """Offsets of `"key": value` in the object's bytes: `[start, end)` whole, `[value, end)` the value."""

    key: str
    start: int
    value: int
    end: int


class _Key:
    """A dictionary key that equals only itself, so that duplicates survive decoding."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def members(body: bytes) -> list[Member]:
    """The top-level members, in order, duplicates included.

    Raises:
        MalformedError: not a JSON object, nested too deeply, or more than `MEMBERS_MAX` members.
    """
    found: list[Member] = []
    at = _skip(body, 0) + 1
    for key, value_bytes in _decoded(body).items():
        start = _skip(body, at)
        name = _STRING.match(body, start)
        assert name is not None, "decoded, hence well-formed"
        value = _skip(body, _skip(body, name.end()) + 1)
        end = value + value_bytes
        found.append(Member(key.text, start, value, end))
        at = _skip(body, end) + 1
    return found


def with_members(body: bytes, changes: Mapping[str, bytes | None]) -> bytes:
    """The object with each named member set to the given JSON bytes, or removed where the bytes are None.

    Every earlier occurrence of a named member goes, so that no parser can pick a different one of two.

    Raises:
        MalformedError: as `members`.
    """
    kept = [body[m.start : m.end] for m in members(body) if m.key not in changes]
    added = [_quoted(key) + b":" + value for key, value in changes.items() if value is not None]
    return b"{" + b",".join(kept + added) + b"}"


def insert_first(body: bytes, path: str, fragment: bytes) -> bytes:
    """`fragment` (members, each followed by a comma) put first into the non-empty object at top-level member `path`.

    This is the one edit that PROTOCOL §2a lets a gateway make to an answer, and `without_first` undoes it to the byte.

    Raises:
        MalformedError: as `members`; or there is no such member, or it is not a non-empty object.
    """
    spot = _object_start(body, path)
    return body[:spot] + fragment + body[spot:]


def without_first(body: bytes, path: str, fragment: bytes) -> bytes:
    """Undo `insert_first`.

    Raises:
        MalformedError: as `members`; or the fragment is not there.
    """
    spot = _object_start(body, path)
    if not body.startswith(fragment, spot):
        raise MalformedError("the inserted members are not there")
    return body[:spot] + body[spot + len(fragment) :]


def _decoded(body: bytes) -> dict[_Key, int]:
    """Length of each member's value, in order."""
    count = 0

    def counted(_: type, text: Any) -> _Key:
        nonlocal count
        count += 1
        if count > MEMBERS_MAX:
            raise ValueError("too many members")
        return _Key(text)

    try:
        raw = msgspec.json.decode(body, type=dict[_Key, msgspec.Raw], dec_hook=counted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError("not a JSON object") from error
    return {key: memoryview(value).nbytes for key, value in raw.items()}


def _object_start(body: bytes, path: str) -> int:
    value = _value_start(body, path)
    first = _skip(body, value + 1)
    if body[value : value + 1] != b"{" or body[first : first + 1] != b'"':
        raise MalformedError(f"{path!r} is not a non-empty object")
    return value + 1


def _value_start(body: bytes, path: str) -> int:
    """Where the value of the top-level member begins; the last of two equal members is the one that parsers take."""
    try:
        value = _objects.decode(body).get(path)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError("not a JSON object") from error
    if value is None:
        raise MalformedError(f"no member {path!r}")
    # A key that stands in the body just once, before this very value, is found without looking at the rest of it.
    quoted = _quoted(path)
    at = body.rfind(quoted)
    if at >= 0 and body.find(quoted, 0, at) < 0:
        colon = _COLON.match(body, at + len(quoted))
        if colon is not None and body.startswith(bytes(value), colon.end()):
            return colon.end()
    return next(member.value for member in reversed(members(body)) if member.key == path)


def _quoted(key: str) -> bytes:
    return msgspec.json.encode(key)


def _skip(body: bytes, at: int) -> int:
    space = _SPACE.match(body, at)
    assert space is not None, "it matches nothing as well"
    return space.end()
