"""Batches that a gateway signs: tickets, and countersignatures of receipt heads, under one Ed25519 signature.

A leaf is the exact bytes of a ticket (125, "CTK1") or of a countersignature (64, "CCS1"); the tree is RFC 6962's. The
gateway signs 52 bytes, big-endian, `"CBR1" ‖ global_id4 ‖ size4 ‖ root32 ‖ signed_ms8`, with a key that the operator
has delegated (`cocoon.delegation`). With a leaf's path that proves the leaf to anybody who knows the operator's key.
"""

import hashlib
import struct
from typing import Annotated

import msgspec

from cocoon import merkle
from cocoon.delegation import DELEGATION_BYTES, SIGNATURE_BYTES, open_delegation, verify_signature
from cocoon.errors import MalformedError

LEAVES_MAX = 1024
"""Leaves of one batch: building it takes about 2 ms."""
CLOCKS_S_MAX = 300
"""How far the signer's clock may be from the verifier's."""
NO_PROMISE = 0
"""`include_by` of a countersignature that promises no place in a log, because there is none yet."""
_HEAD = struct.Struct(">4s i I 32s Q")
_HEAD_MAGIC = b"CBR1"
_COUNTERSIGNATURE_MAGIC = b"CCS1"
_COUNTERSIGNATURE = struct.Struct(">4s i 32s 16s Q")
BATCH_HEAD_BYTES = _HEAD.size
COUNTERSIGNATURE_BYTES = _COUNTERSIGNATURE.size
_DIGEST_BYTES = 32
_NUMERATOR_BYTES = 16

assert (BATCH_HEAD_BYTES, COUNTERSIGNATURE_BYTES) == (52, 64)

Hash = Annotated[bytes, msgspec.Meta(min_length=merkle.HASH_BYTES, max_length=merkle.HASH_BYTES)]


class BatchHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed. `signed_ms` is Unix milliseconds of the signer's clock."""

    global_id: int
    size: int
    root: bytes
    signed_ms: int

    def encode(self) -> bytes:
        """The 52 bytes."""
        return _HEAD.pack(_HEAD_MAGIC, self.global_id, self.size, self.root, self.signed_ms)

    @staticmethod
    def decode(raw: bytes) -> "BatchHead":
        """Parse 52 bytes.

        Raises:
            MalformedError: wrong length or magic.
        """
        if len(raw) != BATCH_HEAD_BYTES or not raw.startswith(_HEAD_MAGIC):
            raise MalformedError("not a CBR1 batch head")
        _, global_id, size, root, signed_ms = _HEAD.unpack(raw)
        return BatchHead(global_id=global_id, size=size, root=root, signed_ms=signed_ms)


class Countersignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the books charge for a receipt (10^-6 nano), and by when the log will hold it (Unix seconds, or never)."""

    global_id: int
    head_sha256: bytes
    charge_numerator: int
    include_by: int = NO_PROMISE

    def __post_init__(self) -> None:
        if len(self.head_sha256) != _DIGEST_BYTES:
            raise ValueError("a digest has 32 bytes")

    def encode(self) -> bytes:
        """The 64 bytes of the leaf."""
        numerator = self.charge_numerator.to_bytes(_NUMERATOR_BYTES, "big")
        return _COUNTERSIGNATURE.pack(
            _COUNTERSIGNATURE_MAGIC, self.global_id, self.head_sha256, numerator, self.include_by
        )

    @staticmethod
    def decode(raw: bytes) -> "Countersignature":
        """Parse 64 bytes.

        Raises:
            MalformedError: wrong length or magic.
        """
        if len(raw) != COUNTERSIGNATURE_BYTES or not raw.startswith(_COUNTERSIGNATURE_MAGIC):
            raise MalformedError("not a CCS1 countersignature")
        _, global_id, digest, numerator, include_by = _COUNTERSIGNATURE.unpack(raw)
        return Countersignature(
            global_id=global_id, head_sha256=digest, charge_numerator=int.from_bytes(numerator, "big"),
            include_by=include_by,
        )  # fmt: skip


def head_digest(head: bytes) -> bytes:
    """SHA-256 of a receipt head's exact bytes."""
    return hashlib.sha256(head).digest()


class SignedBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch's signature, with what proves the signer: exact bytes of head, signature and carried delegation."""

    head: Annotated[bytes, msgspec.Meta(min_length=BATCH_HEAD_BYTES, max_length=BATCH_HEAD_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    delegation: Annotated[bytes, msgspec.Meta(min_length=DELEGATION_BYTES, max_length=DELEGATION_BYTES)]


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a leaf stands in its batch: its index and the hashes beside its way to the root, lowest first."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    path: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=32)]


def open_batch(batch: SignedBatch, *, operator_key: bytes, global_id: int, now_s: float) -> BatchHead:
    """The head that a gateway of this operator signed lately; what it covers is for `require_leaf` to say.

    Raises:
        MalformedError: the delegation does not hold now, the signature is not by the delegated key, or the head is
            of another network or another time.
    """
    delegation = open_delegation(batch.delegation, operator_key=operator_key, global_id=global_id, now_s=now_s)
    verify_signature(delegation.gateway_key, batch.head, batch.signature)
    head = BatchHead.decode(batch.head)
    if head.global_id != global_id:
        raise MalformedError("the batch is of another network")
    if abs(now_s - head.signed_ms / 1000) > CLOCKS_S_MAX:
        raise MalformedError("the batch was not signed lately, or a clock is wrong")
    return head


def require_leaf(head: BatchHead, leaf: bytes, proof: Proof) -> None:
    """Check that a leaf's exact bytes are in the batch.

    Raises:
        MalformedError: the path does not show it.
    """
    merkle.verify_inclusion(leaf, proof.index, head.size, proof.path, head.root)
