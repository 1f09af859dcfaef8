"""The vectors were computed by plain concatenation, apart from this code; whoever changes them breaks the protocol."""

import hashlib
import json
import pathlib
import uuid
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon import canonical, delegation, merkle, receipt, signed_batch, ticket
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.usage import TokenUsage

VECTORS = pathlib.Path(__file__).parents[2] / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def with_bytes(vector: Any, fields: str) -> dict[str, Any]:
    return {
        name: bytes.fromhex(value) if name in vector["bytes_fields"] else value
        for name, value in vector[fields].items()
    }


@pytest.mark.parametrize("document", load("canonical.json")["documents"], ids=lambda document: document["name"])
def test_canonical_encoding(document: Any) -> None:
    kind = msgspec.defstruct("Document", [(name, Any) for name in document["fields"]])

    assert canonical.encode(kind(**document["fields"])).hex() == document["canonical_hex"]


def test_keyset_digest() -> None:
    vector = load("keyset.json")
    raw = Keyset(**with_bytes(vector, "fields")).encode()

    assert raw.decode() == vector["canonical"]
    assert keyset_digest(raw).hex() == vector["digest_hex"]
    assert Keyset.decode(raw) == Keyset(**with_bytes(vector, "fields"))


def test_ticket() -> None:
    vector = load("ticket.json")
    fields = vector["fields"]
    digest = ticket.plain_request_digest(bytes.fromhex(vector["body_hex"]))
    made = ticket.Ticket(
        **fields
        | {
            "stake": bytes.fromhex(fields["stake"]),
            "job_id": uuid.UUID(fields["job_id"]),
            "lease": uuid.UUID(fields["lease"]),
            "request_digest": digest,
        }
    )
    key = ticket.ticket_key(bytes.fromhex(vector["network_secret_hex"]), bytes.fromhex(vector["keyset_digest_hex"]))

    assert digest.hex() == vector["request_digest_hex"]
    assert made.encode().hex() == vector["bytes_hex"]
    assert key.hex() == vector["ticket_key_hex"]
    assert ticket.seal_ticket(key, made) == vector["header"]
    assert ticket.open_ticket(key, vector["header"]) == (made, bytes.fromhex(vector["bytes_hex"]))


def test_receipt_commitments() -> None:
    vector = load("receipt.json")
    commitment = receipt.Commitment(bytes.fromhex(vector["salt_hex"]))
    commitment.request(bytes.fromhex(vector["request_hex"]))
    for byte in bytes.fromhex(vector["answer_hex"]):
        commitment.response(bytes([byte]))

    assert commitment.c_req.hex() == vector["c_req_hex"]
    assert commitment.c_resp.hex() == vector["c_resp_hex"]


def test_receipt() -> None:
    vector = load("receipt.json")
    body = receipt.encode_body(receipt.ReceiptBody(**with_bytes(vector, "body_fields")))
    fields = vector["head_fields"]
    head = receipt.ReceiptHead(
        global_id=fields["global_id"],
        stake=bytes.fromhex(fields["stake"]),
        seq=fields["seq"],
        ticket_sha256=hashlib.sha256(bytes.fromhex(load("ticket.json")["bytes_hex"])).digest(),
        body_sha256=receipt.body_digest(body),
        usage=TokenUsage(prompt=fields["prompt"], cached=fields["cached"], completion=fields["completion"]),
    )
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["secret_key_hex"]))

    assert body.decode() == vector["body"]
    assert head.encode().hex() == vector["head_hex"]
    assert receipt.ReceiptHead.decode(head.encode()) == head
    assert receipt.sign(key, head.encode()).hex() == vector["signature_hex"]
    receipt.verify(bytes.fromhex(vector["public_key_hex"]), head.encode(), bytes.fromhex(vector["signature_hex"]))


def test_signed_batch() -> None:
    vector = load("signed_batch.json")
    operator, gateway = (
        Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector[f"{name}_secret_hex"]))
        for name in ("operator", "gateway")
    )
    made = delegation.Delegation(
        global_id=vector["global_id"],
        gateway_key=gateway.public_key().public_bytes_raw(),
        not_before=vector["not_before"],
        not_after=vector["not_after"],
    )
    countersignature = signed_batch.Countersignature(
        global_id=vector["global_id"],
        head_sha256=signed_batch.head_digest(bytes.fromhex(load("receipt.json")["head_hex"])),
        charge_numerator=int(vector["charge_numerator"]),
        include_by=vector["include_by"],
    )
    leaves = [bytes.fromhex(vector["ticket_leaf_hex"]), countersignature.encode()]
    head = signed_batch.BatchHead(
        global_id=vector["global_id"], size=2, root=merkle.root_of(leaves), signed_ms=vector["signed_ms"]
    )

    assert delegation.delegate(operator, made).hex() == vector["delegation_hex"]
    assert countersignature.encode().hex() == vector["countersignature_hex"]
    assert signed_batch.Countersignature.decode(countersignature.encode()) == countersignature
    assert head.root.hex() == vector["root_hex"]
    assert head.encode().hex() == vector["head_hex"]
    assert gateway.sign(head.encode()).hex() == vector["signature_hex"]
    opened = signed_batch.open_batch(
        signed_batch.SignedBatch(
            head=head.encode(),
            signature=bytes.fromhex(vector["signature_hex"]),
            delegation=bytes.fromhex(vector["delegation_hex"]),
        ),
        operator_key=bytes.fromhex(vector["operator_key_hex"]),
        global_id=vector["global_id"],
        now_s=vector["signed_ms"] / 1000,
    )
    assert opened == head
