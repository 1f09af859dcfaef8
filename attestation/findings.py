"""What can be found about evidence: stable codes for programs, sentences for people.

A check that fails raises `RefusedError`; `attestation.judge` turns it into a verdict. Codes are never renamed.
"""

import enum
from typing import ClassVar

import msgspec

from cocoon.errors import CocoonError


class Code(enum.StrEnum):
    """Every finding there is. Refusals first, then the notes that an accepted verdict may carry."""

    MALFORMED = "evidence_malformed"
    SIMULATED_REFUSED = "simulated_refused"
    FOREIGN_ROOT = "foreign_root"
    CHAIN_INVALID = "chain_invalid"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CRL_MISSING = "crl_missing"
    CRL_INVALID = "crl_invalid"
    COLLATERAL_MISSING = "collateral_missing"
    COLLATERAL_INVALID = "collateral_invalid"
    COLLATERAL_STALE = "collateral_stale"
    COLLATERAL_FOREIGN = "collateral_foreign"
    QUOTE_INVALID = "quote_invalid"
    TCB_UNACCEPTABLE = "tcb_unacceptable"
    TCB_EVALUATION_OLD = "tcb_evaluation_old"
    TEE_REFUSED = "tee_refused"
    DEBUG = "debug_enabled"
    ATTRIBUTES = "attributes_unacceptable"
    MODULE_UNKNOWN = "module_unknown"
    MEASUREMENT_UNKNOWN = "measurement_unknown"
    EVENT_LOG_MISMATCH = "event_log_mismatch"
    MANIFEST_UNBOUND = "manifest_unbound"
    PLATFORM_UNKNOWN = "platform_unknown"
    REPORT_DATA_MISMATCH = "report_data_mismatch"
    KEYSET_MISMATCH = "keyset_mismatch"
    KEYSET_EXPIRED = "keyset_expired"
    KEYSET_INVALID = "keyset_invalid"
    TLS_KEY_MISMATCH = "tls_key_mismatch"
    NONCE_MISMATCH = "nonce_mismatch"
    BEACON_OLD = "beacon_old"
    BEACON_FOREIGN = "beacon_foreign"
    FRESHNESS_UNPROVEN = "freshness_unproven"
    GPU_EVIDENCE_MISMATCH = "gpu_evidence_mismatch"
    GPU_COUNT = "gpu_count"
    GPU_DUPLICATE = "gpu_duplicate"
    GPU_ARCHITECTURE = "gpu_architecture"
    GPU_NONCE_MISMATCH = "gpu_nonce_mismatch"
    GPU_SIGNATURE = "gpu_signature_invalid"
    GPU_FIRMWARE_MISMATCH = "gpu_firmware_mismatch"
    GPU_VERSION = "gpu_version"
    RIM_MISSING = "rim_missing"
    RIM_INVALID = "rim_invalid"
    RIM_MISMATCH = "rim_mismatch"
    GPU_IN_USE = "gpu_in_use"
    PLATFORM_FULL = "platform_full"
    RELEASE_DRAINING = "release_draining"

    SIMULATED = "simulated"
    TCB_GRACE = "tcb_grace"
    COLLATERAL_GRACE = "collateral_grace"
    REVOCATION_UNCHECKED = "revocation_unchecked"


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One code and its sentence; the sentence may change, the code may not."""

    code: Code
    message: str


class RefusedError(CocoonError):
    """The evidence does not show what it has to show."""

    code: ClassVar[str] = "evidence_refused"

    def __init__(self, finding: Code, message: str) -> None:
        super().__init__(message)
        self.finding = finding
