"""Verdicts: what a judgement says, as a value that can be kept, shown and compared."""

from typing import Literal

import msgspec

from attestation.findings import Code, Finding
from attestation.policy import Freshness

GPUBinding = Literal["none", "guest-measured"]


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accepted exactly when there is no reason against it; times are Unix seconds.

    `tee_type` ends in `-simulated` where the roots stand for no hardware, also in refusals. `gpu_binding` is
    `guest-measured`: measured code inside the TEE collected the reports; the GPU is not bound to it by hardware.
    `ppid`, `chip_id` and `gpu_serials` let an operator count keysets per machine and per GPU.
    """

    accepted: bool
    tee_type: str
    simulated: bool
    reasons: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    policy: str
    policy_sha256: bytes
    judged_at: int
    valid_until: int = 0
    release: str = ""
    freshness: Freshness = "unproven"
    keyset_digest: bytes = b""
    model_manifest_sha256: bytes = b""
    tcb_status: str = ""
    tcb_advisories: tuple[str, ...] = ()
    tcb_evaluation: int = 0
    fmspc: str = ""
    ppid: bytes = b""
    chip_id: bytes = b""
    gpus: int = 0
    gpu_binding: GPUBinding = "none"
    gpu_serials: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A verdict that contradicts itself must not exist, however it came about.
        if self.accepted == bool(self.reasons):
            raise ValueError("a verdict is accepted exactly when no reason speaks against it")
        if self.simulated != self.tee_type.endswith("-simulated"):
            raise ValueError("a simulated TEE says so in its type")

    @property
    def codes(self) -> tuple[Code, ...]:
        """The codes of the reasons, in order."""
        return tuple(reason.code for reason in self.reasons)

    def in_words(self) -> str:
        """One paragraph for an operator."""
        head = f"{'accepted' if self.accepted else 'refused'}: {self.tee_type} under policy {self.policy}"
        lines = [f"  refused because {reason.message} [{reason.code}]" for reason in self.reasons]
        lines += [f"  note: {note.message} [{note.code}]" for note in self.notes]
        return "\n".join([head, *lines])
