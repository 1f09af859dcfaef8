"""The receipt bundle as JSON."""

import json
from typing import Any

import pytest

from cocoon.bundle import Batched, Countersigned, Inclusion, ReceiptBundle
from cocoon.errors import MalformedError
from cocoon.signed_batch import Proof, SignedBatch

_BATCHED = Batched(
    batch=SignedBatch(head=b"h" * 52, signature=b"s" * 64, delegation=b"d" * 152),
    proof=Proof(index=1, path=(b"p" * 32,)),
)  # fmt: skip
BUNDLE = ReceiptBundle(
    receipt_id="017f22e2-79b0-7cc3-98c4-dc0c0c07398f", head=b"r" * 124, signature=b"g" * 64, body=b"{}",
    ticket=b"t" * 125, ticket_signed=_BATCHED, countersigned=Countersigned(leaf=b"c" * 64, signed=_BATCHED),
    keyset=b"{}", evidence=None, endorsements=None, manifest=None,
    log=Inclusion(checkpoint="note\n", index=3, size=7, path=(b"q" * 32,)),
)  # fmt: skip


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(BUNDLE.encode()) | changes).encode()


def test_a_bundle_survives_its_json() -> None:
    assert ReceiptBundle.decode(BUNDLE.encode()) == BUNDLE


def test_bytes_are_base64_and_what_is_absent_is_null() -> None:
    document = json.loads(BUNDLE.encode())

    assert document["ticket"] == "dHR0" * 41 + "dHQ="
    assert [name for name, value in document.items() if value is None] == [
        "evidence", "endorsements", "manifest", "stake",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (changed(v=2), "version 2"),
        (changed(head="aGVhZA=="), "head"),
        (changed(log={"checkpoint": "", "index": -1, "size": 1, "path": []}), "index"),
        (changed(more=1), "more"),
        (changed(ticket_signed=1), "ticket_signed"),
        (b"{}", "missing"),
        (b"[", "not a receipt bundle"),
        (b"\xff", "not a receipt bundle"),
    ],
)
def test_what_is_not_a_bundle_is_refused_by_name(raw: bytes, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        ReceiptBundle.decode(raw)
