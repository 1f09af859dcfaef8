import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cocoon.canonical import base64url
from cocoon.errors import MalformedError
from cocoon.statement import Beacon, Statement, gpu_nonce, report_data

VECTOR = json.loads((pathlib.Path(__file__).parents[2] / "vectors" / "statement.json").read_text())
BEACON = Beacon(seqno=42, root_hash=b"\x01" * 32, file_hash=b"\x02" * 32, gen_utime=1764547200)
STATEMENT = Statement(
    v=1, keyset_digest=b"\x03" * 32, beacon=BEACON, nonce=b"\x04" * 32, gpu_evidence_sha256=b"\x05" * 32
)


def test_a_statement_has_the_bytes_of_its_vector() -> None:
    raw = STATEMENT.encode()

    assert raw.decode() == VECTOR["canonical"]
    assert report_data(raw).hex() == VECTOR["report_data_hex"]
    assert gpu_nonce(STATEMENT.keyset_digest, BEACON, STATEMENT.nonce).hex() == VECTOR["gpu_nonce_hex"]
    assert Statement.decode(raw) == STATEMENT


def test_the_derivations_are_those_of_the_protocol() -> None:
    raw = STATEMENT.encode()
    beacon = VECTOR["canonical"].encode().split(b'"beacon":')[1].split(b"}")[0] + b"}"
    parts = STATEMENT.keyset_digest + beacon + b"\x04" * 32

    assert report_data(raw) == hashlib.sha512(b"cocoon/statement/1\x00" + raw).digest()
    assert (
        gpu_nonce(STATEMENT.keyset_digest, BEACON, b"\x04" * 32) == hashlib.sha256(b"cocoon/gpu/1\x00" + parts).digest()
    )


def test_what_is_not_stated_is_left_out() -> None:
    bare = Statement(v=1, keyset_digest=b"\x03" * 32, beacon=BEACON)

    assert set(json.loads(bare.encode())) == {"v", "keyset_digest", "beacon"}
    assert Statement.decode(bare.encode()) == bare
    assert gpu_nonce(bare.keyset_digest, BEACON, None) != gpu_nonce(bare.keyset_digest, BEACON, bytes(32))


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields | {"nonce": None},
        lambda fields: fields | {"nonce": ""},
        lambda fields: fields | {"nonce": base64url(bytes(31))},
        lambda fields: fields | {"v": 2},
        lambda fields: fields | {"more": 1},
        lambda fields: fields | {"beacon": fields["beacon"] | {"seqno": -1}},
        lambda fields: fields | {"beacon": fields["beacon"] | {"root_hash": base64url(bytes(32)) + "="}},
        lambda fields: fields | {"beacon": fields["beacon"] | {"more": 1}},
        lambda fields: fields | {"beacon": [fields["beacon"]]},
        lambda fields: {key: value for key, value in fields.items() if key != "beacon"},
    ],
)
def test_another_document_is_no_statement(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    fields = json.loads(STATEMENT.encode())
    raw = msgspec.json.encode(change(fields), order="sorted")

    with pytest.raises(MalformedError):
        Statement.decode(raw)
