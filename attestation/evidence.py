"""What a worker shows and what goes with it, as canonical documents (RFC 8785, see `cocoon.canonical`).

`Evidence` comes from the worker. `Endorsements` are signed by the vendors; they may come from anywhere, a cache or the
bundle itself, because nothing in them is believed without its signature.
"""

from typing import Annotated, Literal

import msgspec

from attestation.policy import TEE
from attestation.tdx.collateral import Collateral
from attestation.tdx.eventlog import EVENTS_MAX, LogEvent
from cocoon import canonical
from cocoon.errors import MalformedError

EVIDENCE_BYTES_MAX = 4 * 1024 * 1024
GPUS_MAX = 16
RIMS_MAX = 32
CRLS_MAX = 8


class GPUDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU's signed report (SPDM request and response, as the driver returns it) and its PEM chain to the root."""

    architecture: Annotated[str, msgspec.Meta(max_length=32)]
    report: bytes
    chain: bytes


class GPUEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All GPUs of a machine; the digest of its exact bytes is in the statement."""

    v: Literal[1]
    devices: Annotated[tuple[GPUDevice, ...], msgspec.Meta(max_length=GPUS_MAX)]

    def encode(self) -> bytes:
        """The canonical bytes that are digested and carried."""
        return canonical.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "GPUEvidence":
        """The GPU evidence in its carried bytes.

        Raises:
            MalformedError: not the canonical encoding of GPU evidence, or too long.
        """
        return canonical.decode(_bounded(raw), GPUEvidence)


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker shows for one statement.

    `quote` is a TDX quote, which carries its own chain and has an `event_log`, or an SEV-SNP report, which has the PEM
    text `chain`. `gpu` is the bytes of `GPUEvidence`, or nothing.
    """

    v: Literal[1]
    tee: TEE
    keyset: bytes
    statement: bytes
    quote: bytes
    event_log: Annotated[tuple[LogEvent, ...], msgspec.Meta(max_length=EVENTS_MAX)] = ()
    chain: bytes = b""
    gpu: bytes = b""

    def encode(self) -> bytes:
        """The canonical bytes that are carried."""
        return canonical.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "Evidence":
        """The evidence in its carried bytes.

        Raises:
            MalformedError: not the canonical encoding of evidence, or too long.
        """
        return canonical.decode(_bounded(raw), Evidence)


class Endorsements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What vendors signed about platforms of this kind: TDX collateral, GPU reference manifests, CRLs for SEV-SNP."""

    v: Literal[1]
    collateral: Collateral | None = None
    rims: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=RIMS_MAX)] = ()
    crls: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=CRLS_MAX)] = ()

    def encode(self) -> bytes:
        """The canonical bytes that a bundle saves."""
        return canonical.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "Endorsements":
        """The endorsements in their saved bytes.

        Raises:
            MalformedError: not the canonical encoding of endorsements, or too long.
        """
        return canonical.decode(_bounded(raw), Endorsements)


def _bounded(raw: bytes) -> bytes:
    if len(raw) > EVIDENCE_BYTES_MAX:
        raise MalformedError("the evidence is too long")
    return raw
