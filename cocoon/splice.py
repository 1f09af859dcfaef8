"""Edit members of a JSON object in its bytes, without re-serialising it.

Re-serialising a client's body changes numbers, escapes and order, and costs milliseconds for a large one. These
functions find the top-level members of an object with a tokeniser that skips strings in C, and replace just their
bytes. The input must be valid JSON with an object at the top (decode it first); then the result is as well.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from cocoon.errors import MalformedError

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]', re.DOTALL)
_SPACE = b" \t\r\n"


class Member(NamedTuple):
    """Offsets of `"key": value` in the object's bytes: `[start, end)` whole, `[value, end)` the value."""

    key: str
    start: int
    value: int
    end: int


def members(body: bytes) -> list[Member]:
    """The top-level members, in order, duplicates included.

    Raises:
        MalformedError: there is no object at the top.
    """
    found: list[Member] = []
    depth = 0
    key: str | None = None
    key_start = value_start = 0
    for match in _TOKEN.finditer(body):
        token = body[match.start()]
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
            if depth == 0:
                if key is not None:
                    found.append(Member(key, key_start, value_start, _trim(body, match.start())))
                return found
        elif depth == 1:
            if token == 0x22 and key is None:
                key, key_start = msgspec.json.decode(match.group(), type=str), match.start()
            elif token == 0x3A:
                value_start = _skip(body, match.end())
            elif token == 0x2C and key is not None:
                found.append(Member(key, key_start, value_start, _trim(body, match.start())))
                key = None
    raise MalformedError("not a JSON object")


def with_members(body: bytes, changes: Mapping[str, bytes | None]) -> bytes:
    """The object with each named member set to the given JSON bytes, or removed where the bytes are None.

    Every earlier occurrence of a named member goes, so that no parser can pick a different one of two.
    """
    kept = [body[m.start : m.end] for m in members(body) if m.key not in changes]
    added = [_quoted(key) + b":" + value for key, value in changes.items() if value is not None]
    return b"{" + b",".join(kept + added) + b"}"


def insert_first(body: bytes, path: str, fragment: bytes) -> bytes:
    """`fragment` (members, each followed by a comma) put first into the non-empty object at the top-level member `path`.

    This is the one edit that PROTOCOL §2a lets a gateway make to an answer, and `without_first` undoes it to the byte.

    Raises:
        MalformedError: there is no such member, or it is not a non-empty object.
    """
    spot = _object_start(body, path)
    return body[:spot] + fragment + body[spot:]


def without_first(body: bytes, path: str, fragment: bytes) -> bytes:
    """Undo `insert_first`.

    Raises:
        MalformedError: the fragment is not there.
    """
    spot = _object_start(body, path)
    if not body.startswith(fragment, spot):
        raise MalformedError("the inserted members are not there")
    return body[:spot] + body[spot + len(fragment) :]


def _object_start(body: bytes, path: str) -> int:
    # The last of two equal members is the one that parsers take.
    for member in reversed(members(body)):
        if member.key == path:
            first = _skip(body, member.value + 1)
            if body[member.value : member.value + 1] == b"{" and body[first : first + 1] == b'"':
                return member.value + 1
            break
    raise MalformedError(f"no object member {path!r}")


def _quoted(key: str) -> bytes:
    return msgspec.json.encode(key)


def _skip(body: bytes, at: int) -> int:
    while at < len(body) and body[at] in _SPACE:
        at += 1
    return at


def _trim(body: bytes, end: int) -> int:
    while end > 0 and body[end - 1] in _SPACE:
        end -= 1
    return end
