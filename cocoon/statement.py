"""The statement that a TEE's quote covers (PROTOCOL §1).

A keyset is stated by its digest together with a block of the chain (not older than that block), the verifier's nonce
where it gave one, and the digest of the GPU evidence that was collected for exactly this.
"""

import hashlib
from typing import Annotated, Literal

import msgspec

from cocoon import canonical

STATEMENT_LABEL = b"cocoon/statement/1\x00"
GPU_LABEL = b"cocoon/gpu/1\x00"

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Seconds = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Beacon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A masterchain block; `gen_utime` is its Unix time in seconds. Number 0 names no block, and only a time."""

    seqno: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    root_hash: Digest
    file_hash: Digest
    gen_utime: Seconds


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is quoted. One keyset has many statements, one for each nonce. Fields with a default are left out."""

    v: Literal[1]
    keyset_digest: Digest
    beacon: Beacon
    nonce: Digest | None = None
    gpu_evidence_sha256: Digest | None = None

    def encode(self) -> bytes:
        """The canonical bytes that are quoted and carried."""
        return canonical.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "Statement":
        """The statement in its carried bytes.

        Raises:
            MalformedError: not the canonical encoding of a statement.
        """
        return canonical.decode(raw, Statement)


def report_data(statement: bytes) -> bytes:
    """The 64 bytes that the quote has to carry for a statement's exact bytes."""
    return hashlib.sha512(STATEMENT_LABEL + statement).digest()


def gpu_nonce(keyset_digest: bytes, beacon: Beacon, nonce: bytes | None) -> bytes:
    """The 32 bytes that every GPU has to sign for this statement."""
    return hashlib.sha256(GPU_LABEL + keyset_digest + canonical.encode(beacon) + (nonce or b"")).digest()
