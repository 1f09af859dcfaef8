"""SEV-SNP attestation reports of Milan and Genoa, and the chip's certificate that signed them.

Source: AMD 56860 (SEV-SNP ABI) table 23, and 57230 (VCEK certificates) for the extensions. The order of the security
versions in a TCB differs from Turin on, whose root we therefore do not know yet.
"""

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation.certificates import check_revocation, load_crl, load_exact_pem_chain, verify_chain
from attestation.findings import Code, Finding, RefusedError
from attestation.policy import SNPPolicy
from attestation.reading import Reader
from cocoon.errors import MalformedError

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
_VERSIONS: Final = (2, 3)
_ECDSA_P384_SHA384: Final = 1
_NUMBER_BYTES: Final = 72
_DEBUG: Final = 1 << 19
_MIGRATION_AGENT: Final = 1 << 18
_SMT: Final = 1 << 16
_SIGNING_KEY: Final = 0b11100
_HARDWARE_ID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4")
_SECURITY_VERSIONS: Final = {
    "bootloader": x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.3.1"),
    "tee": x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.3.2"),
    "snp": x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.3.3"),
    "microcode": x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.3.8"),
}


class SNPReport(msgspec.Struct, frozen=True):
    """A report whose structure is sound; `reported_tcb` is what the signing key was derived for."""

    policy: int
    vmpl: int
    key_flags: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    reported_tcb: dict[str, int]
    chip_id: bytes
    signed: bytes
    r: int
    s: int


class SNPClaims(msgspec.Struct, frozen=True):
    """What is proven about the platform."""

    chip_id: bytes
    valid_until: dt.datetime
    notes: tuple[Finding, ...]


def parse_snp_report(raw: bytes) -> SNPReport:
    """Parse the 1184 bytes.

    Raises:
        MalformedError: anything that is not exactly such a report.
    """
    if len(raw) != REPORT_BYTES:
        raise MalformedError("an SEV-SNP report has 1184 bytes")
    reader = Reader(raw, "the SEV-SNP report")
    version = reader.integer(4)
    reader.take(4)
    policy = reader.integer(8)
    reader.take(32)
    vmpl, algorithm = reader.integer(4), reader.integer(4)
    reader.take(16)
    key_flags = reader.integer(4)
    reader.take(4)
    report_data, measurement, host_data = reader.take(64), reader.take(48), reader.take(32)
    reader.take(48 + 48 + 32 + 32)
    reported = reader.take(8)
    reader.take(24)
    chip_id = reader.take(64)
    reader.take(SIGNED_BYTES - reader.position)
    r, s = reader.integer(_NUMBER_BYTES), reader.integer(_NUMBER_BYTES)
    if version not in _VERSIONS or algorithm != _ECDSA_P384_SHA384 or any(reader.take(reader.left)):
        raise MalformedError("not an SEV-SNP report of version 2 or 3 with an ECDSA P-384 signature")
    return SNPReport(
        policy=policy, vmpl=vmpl, key_flags=key_flags, report_data=report_data, measurement=measurement,
        host_data=host_data, chip_id=chip_id, signed=raw[:SIGNED_BYTES], r=r, s=s,
        reported_tcb={"bootloader": reported[0], "tee": reported[1], "snp": reported[6], "microcode": reported[7]},
    )  # fmt: skip


def verify_snp_report(
    report: SNPReport,
    chain_pem: bytes,
    crls: Sequence[bytes],
    *,
    policy: SNPPolicy,
    roots: Collection[str],
    at: dt.datetime,
) -> SNPClaims:
    """Verify chain and signature, that the certificate is this chip's at this TCB, and what the policy asks of both.

    Raises:
        MalformedError: chain or list cannot be read.
        RefusedError: anything that is not proven or that the policy does not accept.
    """
    chain = load_exact_pem_chain(chain_pem, "the VCEK chain")
    verify_chain(chain, roots=roots, at=at, what="the VCEK chain")
    notes: list[Finding] = []
    # AMD publishes one list, the root's, of its intermediates; the versions in the VCEK stand in for the rest.
    if not check_revocation(chain[1:], [load_crl(crl) for crl in crls], at=at):
        if policy.require_crl:
            raise RefusedError(Code.CRL_MISSING, "the revocation list of AMD's root is not at hand")
        notes.append(Finding(Code.REVOCATION_UNCHECKED, "AMD's revocation list was not at hand"))
    _check_signature(report, chain[0])
    _check_chip(report, chain[0])
    _check_guest(report, policy)
    if policy.chip_ids is not None and report.chip_id.hex() not in policy.chip_ids:
        raise RefusedError(Code.PLATFORM_UNKNOWN, "the policy does not list this chip")
    end = min(certificate.not_valid_after_utc for certificate in chain)
    return SNPClaims(chip_id=report.chip_id, valid_until=end, notes=tuple(notes))


def _check_signature(report: SNPReport, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise RefusedError(Code.QUOTE_INVALID, "the chip's key is not one of P-384")
    if report.key_flags & _SIGNING_KEY:
        raise RefusedError(Code.QUOTE_INVALID, "the report is not signed with the chip's own key (VCEK)")
    try:
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise RefusedError(Code.QUOTE_INVALID, "the signature of the SEV-SNP report does not verify") from error


def _check_chip(report: SNPReport, leaf: x509.Certificate) -> None:
    if _extension(leaf, _HARDWARE_ID) != report.chip_id:
        raise RefusedError(Code.CHAIN_INVALID, "the VCEK is of another chip than the report")
    for name, oid in _SECURITY_VERSIONS.items():
        if _der_integer(_extension(leaf, oid)) != report.reported_tcb[name]:
            raise RefusedError(Code.CHAIN_INVALID, f"the VCEK is for another {name} version than the report")


def _check_guest(report: SNPReport, policy: SNPPolicy) -> None:
    if report.policy & _DEBUG:
        raise RefusedError(Code.DEBUG, "the guest may be debugged: the host reads its memory")
    if report.policy & _MIGRATION_AGENT or report.vmpl != 0:
        raise RefusedError(Code.ATTRIBUTES, "the guest has a migration agent, or the report is not from its top level")
    if report.policy & _SMT and not policy.allow_smt:
        raise RefusedError(Code.ATTRIBUTES, "the guest may share a core with others (SMT), which the policy excludes")
    lowest = {
        "bootloader": policy.bootloader_min, "tee": policy.tee_min,
        "snp": policy.snp_min, "microcode": policy.microcode_min,
    }  # fmt: skip
    for name, minimum in lowest.items():
        if report.reported_tcb[name] < minimum:
            message = f"the platform's {name} version is {report.reported_tcb[name]}, below {minimum}"
            raise RefusedError(Code.TCB_UNACCEPTABLE, message)


def _extension(leaf: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = leaf.extensions.get_extension_for_oid(oid).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise RefusedError(Code.CHAIN_INVALID, "the VCEK lacks what it says about its chip") from error
    return value.value if isinstance(value, x509.UnrecognizedExtension) else b""


def _der_integer(der: bytes) -> int:
    # Tag INTEGER, one length byte, at most two bytes of an unsigned octet.
    if der[:1] != b"\x02" or len(der) not in (3, 4) or der[1] != len(der) - 2:
        raise RefusedError(Code.CHAIN_INVALID, "a version in the VCEK is not a number")
    return int.from_bytes(der[2:], "big")
