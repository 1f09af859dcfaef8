"""Entries of the transparency log (PROTOCOL §5): `type1 ‖ SHA-256(envelope)`, 33 bytes, hashed as RFC 6962 says.

The log holds digests, so that it can be public: envelopes are served separately, and a receipt's only to the customer
that paid for it. Nobody can guess a receipt's envelope from its digest, because a signature is in it.
"""

import enum
import hashlib

import msgspec

from cocoon.delegation import KEY_BYTES, SIGNATURE_BYTES
from cocoon.errors import MalformedError
from cocoon.receipt import HEAD_BYTES

DIGEST_BYTES = 32
ENTRY_BYTES = 1 + DIGEST_BYTES
RECEIPT_ENVELOPE_BYTES = KEY_BYTES + HEAD_BYTES + SIGNATURE_BYTES


class LeafType(enum.IntEnum):
    """What an entry is about. Numbers are never used again."""

    RECEIPT = 1
    ADMISSION = 2
    REMOVAL = 3
    POLICY = 4
    MANIFEST = 5


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry: its type and its envelope's digest."""

    type: LeafType
    digest: bytes

    def encode(self) -> bytes:
        """The 33 bytes that are the leaf of the tree."""
        assert len(self.digest) == DIGEST_BYTES, "a digest has 32 bytes"
        return bytes((self.type,)) + self.digest

    @staticmethod
    def decode(raw: bytes) -> "Entry":
        """Parse 33 bytes.

        Raises:
            MalformedError: another length, or a type that this version does not know.
        """
        if len(raw) != ENTRY_BYTES:
            raise MalformedError("a log entry has 33 bytes")
        try:
            return Entry(type=LeafType(raw[0]), digest=raw[1:])
        except ValueError as error:
            raise MalformedError("an unknown type of log entry") from error


def entry_of(leaf_type: LeafType, envelope: bytes) -> Entry:
    """The entry of an envelope's exact bytes."""
    return Entry(type=leaf_type, digest=hashlib.sha256(envelope).digest())


def receipt_envelope(receipt_pk: bytes, head: bytes, signature: bytes) -> bytes:
    """`receipt_pk32 ‖ head124 ‖ signature64`: whoever holds the 220 bytes can verify them without anything else.

    Raises:
        MalformedError: a part has another length.
    """
    if (len(receipt_pk), len(head), len(signature)) != (KEY_BYTES, HEAD_BYTES, SIGNATURE_BYTES):
        raise MalformedError("not the parts of a receipt's envelope")
    return receipt_pk + head + signature
