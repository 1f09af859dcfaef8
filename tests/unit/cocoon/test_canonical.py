import enum
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from cocoon import canonical
from cocoon.enrolment import Keyset
from cocoon.errors import MalformedError


class Document(msgspec.Struct):
    value: Any


class Flat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    raw: bytes
    count: int = 0


class Size(enum.IntEnum):
    SMALL = 1


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        0.5,
        float("nan"),
        2**53,
        -(2**53),
        {"é": 1},
        {1: "one"},
        {"nested": [{"deep": 1.5}]},
        bytearray(b"x"),
        memoryview(b"x"),
        "\ud800",
        {"\udc00": 1},
    ],
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(MalformedError):
        canonical.encode(Document(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, b'{"value":true}'),
        (None, b'{"value":null}'),
        (2**53 - 1, b'{"value":9007199254740991}'),
        (b"\xfb\xff", b'{"value":"-_8"}'),
        (b"", b'{"value":""}'),
        ((1, "a"), b'{"value":[1,"a"]}'),
        (Size.SMALL, b'{"value":1}'),
        ({"b": 1, "a": 2, "B": 3, "": 4}, b'{"value":{"":4,"B":3,"a":2,"b":1}}'),
    ],
)
def test_canonical_values(value: object, expected: bytes) -> None:
    assert canonical.encode(Document(value)) == expected


def test_a_set_is_encoded_the_same_in_every_process() -> None:
    program = (
        "import msgspec\nfrom typing import Any\nfrom cocoon import canonical\n"
        "class D(msgspec.Struct):\n    v: Any\n"
        "print(canonical.encode(D({c for c in 'abcdefgh'})).decode())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert outputs == {'{"v":["a","b","c","d","e","f","g","h"]}\n'}


@pytest.mark.parametrize("raw", [b"", b"\x00", b"ab", b"abc", bytes(range(256))])
def test_base64url_comes_back(raw: bytes) -> None:
    assert canonical.from_base64url(canonical.base64url(raw)) == raw


@pytest.mark.parametrize("text", ["A", "AAAAA", "AA==", "AA=", "A+A", "A/A", "AA A", "AA\n", "é", "AB", "AAB", "__9"])
def test_any_other_text_for_the_same_bytes_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        canonical.from_base64url(text)


def test_a_flat_document_comes_back() -> None:
    document = Flat(name="nämé", raw=b"\x00\xff", count=3)

    assert canonical.decode(canonical.encode(document), Flat) == document


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"count":3,"name":"a","raw":"AP8"',
        b'{"name":"a","raw":"AP8","count":3}',
        b'{"count":3, "name":"a","raw":"AP8"}',
        b'{"count":3,"name":"a","raw":"AP8"}\n',
        b'{"count":3,"name":"a","raw":"AP8="}',
        b'{"count":3,"name":"a","raw":"AP9"}',
        b'{"name":"a","raw":"AP8"}',
        b'{"count":3,"name":"\\u0061","raw":"AP8"}',
        b'{"count":2,"count":3,"name":"a","raw":"AP8"}',
        b'{"count":3,"name":"a","other":1,"raw":"AP8"}',
        b'{"count":3.0,"name":"a","raw":"AP8"}',
        b'{"count":3,"name":"a","raw":7}',
        b'{"count":3,"name":"a\xff","raw":"AP8"}',
        b'{"count":3,"name":' + b"[" * 100_000 + b"]" * 100_000 + b',"raw":"AP8"}',
    ],
)
def test_any_other_encoding_of_a_document_is_refused(raw: bytes) -> None:
    assert canonical.decode(b'{"count":3,"name":"a","raw":"AP8"}', Flat) == Flat(name="a", raw=b"\x00\xff", count=3)
    with pytest.raises(MalformedError):
        canonical.decode(raw, Flat)


def test_a_keyset_with_a_short_key_is_refused() -> None:
    fields: dict[str, Any] = dict.fromkeys(Keyset.__struct_fields__, b"")
    fields |= {"v": 1, "stake_addr": "", "operator": "", "not_before": 0, "not_after": 1}
    fields |= {"tls_spki_sha256": bytes(32), "receipt_pk": bytes(31)}

    with pytest.raises(MalformedError):
        Keyset.decode(Keyset(**fields).encode())
