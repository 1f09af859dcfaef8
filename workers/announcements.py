"""What the transparency log is told about workers: whose keyset was admitted, on what grounds, and which are gone.

Envelopes are canonical JSON. They say nothing that changes while a keyset lives, so that fresh evidence for the same
keyset is the same entry.
"""

from typing import Literal

import msgspec

from cocoon import canonical
from workers.targets import Worker


class Admission(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A keyset that gets requests. Without a TEE there is no policy, and `level` is `none`."""

    v: Literal[1]
    keyset_digest: bytes
    worker_id: str
    tee_type: str
    level: str
    model_manifest_sha256: bytes = b""
    release: str = ""
    policy_sha256: bytes = b""

    def encode(self) -> bytes:
        """The bytes that are logged."""
        return canonical.encode(self)


class Removal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A keyset that gets no more requests: its worker was taken out, or came back with another keyset."""

    v: Literal[1]
    keyset_digest: bytes
    worker_id: str
    reason: Literal["removed", "superseded"]

    def encode(self) -> bytes:
        """The bytes that are logged."""
        return canonical.encode(self)


def admission_of(worker: Worker, *, release: str = "", policy_sha256: bytes = b"", manifest: bytes = b"") -> bytes:
    """The envelope of an admitted worker."""
    return Admission(
        v=1, keyset_digest=worker.keyset_digest, worker_id=str(worker.worker_id), tee_type=worker.tee_type,
        level=worker.evidence, model_manifest_sha256=manifest, release=release, policy_sha256=policy_sha256,
    ).encode()  # fmt: skip
