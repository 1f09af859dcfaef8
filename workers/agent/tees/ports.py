"""What the agent needs of the hardware under it, and of a chain."""

from typing import ClassVar, Protocol

from cocoon.errors import CocoonError
from cocoon.statement import Beacon


class EvidenceError(CocoonError):
    """The TEE gives no evidence now."""

    code: ClassVar[str] = "evidence_unavailable"
    transient: ClassVar[bool] = True


class TEE(Protocol):
    """A source of evidence. `tee_type` is what receipts and enrolments say; a simulated one says so."""

    tee_type: str

    async def evidence(self, keyset: bytes, nonce: bytes | None) -> bytes:
        """Canonical bytes of `attestation.evidence.Evidence` for a keyset; empty where there is no TEE.

        Raises:
            EvidenceError: none can be had now.
        """
        ...


class BeaconSource(Protocol):
    """Which block of the chain a statement names."""

    def current(self) -> Beacon:
        """The newest block that is known, or none (`cocoon.statement.Beacon`)."""
        ...


class NoTEE:
    """A worker on ordinary hardware: it shows nothing and says so."""

    tee_type = "none"

    async def evidence(self, keyset: bytes, nonce: bytes | None) -> bytes:  # noqa: ARG002  the port's signature
        """Nothing."""
        return b""
