"""Splicing has the meaning of a dictionary and leaves every byte of what it does not touch."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon import splice
from cocoon.errors import MalformedError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["model", "usage", '"', "\\", '\\"', "{", "}", ",", ":", "", "a\u0000b", "é😀", "]}", '":"']
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
space = st.text(alphabet=" \t\r\n", max_size=2)


@st.composite
def written(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, bytes]]]:
    """An object's bytes in some client's style, and its members (duplicates included) as key and value bytes."""
    members: list[tuple[str, bytes]] = []
    parts: list[str] = []
    for _ in range(draw(st.integers(0, 6))):
        key = draw(texts)
        ascii_only = draw(st.booleans())
        indent = draw(st.sampled_from([None, 1]))
        value = json.dumps(draw(values), ensure_ascii=ascii_only, indent=indent)
        members.append((key, value.encode()))
        name = json.dumps(key, ensure_ascii=draw(st.booleans()))
        parts.append(f"{draw(space)}{name}{draw(space)}:{draw(space)}{value}{draw(space)}")
    return f"{draw(space)}{{{','.join(parts) or draw(space)}}}{draw(space)}".encode(), members


@given(written())
def test_members_are_found_with_their_exact_bytes(case: tuple[bytes, list[tuple[str, bytes]]]) -> None:
    body, expected = case
    found = splice.members(body)

    assert [(member.key, body[member.value : member.end]) for member in found] == expected
    for member in found:
        assert json.loads(b"{" + body[member.start : member.end] + b"}") == {
            member.key: json.loads(body[member.value : member.end])
        }


@given(written(), st.dictionaries(texts, st.none() | values.map(lambda value: json.dumps(value).encode()), max_size=4))
def test_with_members_means_what_a_dictionary_means(
    case: tuple[bytes, list[tuple[str, bytes]]], changes: dict[str, bytes | None]
) -> None:
    body, members = case
    expected: dict[str, Any] = {key: value for key, value in json.loads(body).items() if key not in changes}
    expected |= {key: json.loads(value) for key, value in changes.items() if value is not None}

    result = splice.with_members(body, changes)

    assert json.loads(result) == expected
    kept = [(key, value) for key, value in members if key not in changes]
    assert [(m.key, result[m.value : m.end]) for m in splice.members(result)][: len(kept)] == kept
    names = [member.key for member in splice.members(result)]
    assert all(names.count(key) == (changes[key] is not None) for key in changes)


@given(written(), written(), st.sampled_from([b'"cost":"0.1","cost_nano":1,', b'"a":{"b":[]},', b'"\\"":"}",']))
def test_what_was_inserted_first_is_removed_to_the_byte(
    case: tuple[bytes, list[tuple[str, bytes]]], inner: tuple[bytes, list[tuple[str, bytes]]], fragment: bytes
) -> None:
    usage, usage_members = inner
    if not usage_members:
        usage = b'{"x":1}'
    body = splice.with_members(case[0], {"usage": usage.strip(b" \t\r\n")})

    edited = splice.insert_first(body, "usage", fragment)

    assert splice.without_first(edited, "usage", fragment) == body
    assert len(edited) == len(body) + len(fragment)
    assert json.loads(edited)["usage"] == json.loads(b"{" + fragment[:-1] + b"}") | json.loads(body)["usage"]


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ a1', max_size=30).map(str.encode))
def test_other_bytes_are_refused_and_never_crash(raw: bytes) -> None:
    try:
        splice.with_members(raw, {"a": b"1"})
    except MalformedError:
        with pytest.raises(MalformedError):
            splice.members(raw)
    else:
        assert isinstance(json.loads(raw.decode(errors="replace")), dict)
