"""The measurement report of an NVIDIA GPU: an SPDM 1.1 GET_MEASUREMENTS request and the device's signed answer.

Source: DMTF DSP0274 1.1 §10.11; the vendor's opaque fields as its open verifier reads them. All of it is signed but the
last 96 bytes, the signature itself (ECDSA P-384 over SHA-384).
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation.findings import Code, RefusedError
from attestation.reading import Reader
from cocoon.errors import MalformedError

REPORT_BYTES_MAX: Final = 64 * 1024
SIGNATURE_BYTES: Final = 96
REQUEST_HEAD: Final = bytes.fromhex("11e001ff")
"""SPDM 1.1, GET_MEASUREMENTS, signature requested, all measurements."""
RESPONSE_HEAD: Final = bytes.fromhex("1160")
DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
NVDEC0_STATUS: Final = 11
FWID: Final = 20
NVDEC0_DISABLED: Final = 0x55
HASH_BYTES: Final = 48
_DMTF: Final = 1
_HALF: Final = SIGNATURE_BYTES // 2
_VBIOS_BYTES: Final = 5
# TCG DICE: the layer that runs, in the certificate of the key that signs reports.
_DICE_FWID: Final = x509.ObjectIdentifier("2.23.133.5.4.1")


class GPUReport(msgspec.Struct, frozen=True):
    """A report whose structure is sound. Measurements are numbered from 1 on, as the device numbers them."""

    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    @property
    def driver(self) -> str:
        """The driver's version, for instance `550.90.07`; empty where the report has none."""
        return self.opaque.get(DRIVER_VERSION, b"").rstrip(b"\0").decode("ascii", "replace")

    @property
    def vbios(self) -> str:
        """The VBIOS's version, for instance `96.00.9F.00.01`; empty where the report has none."""
        raw = self.opaque.get(VBIOS_VERSION, b"")
        if len(raw) < _VBIOS_BYTES:
            return ""
        return ".".join(f"{octet:02X}" for octet in (raw[3], raw[2], raw[1], raw[0], raw[4]))

    @property
    def nvdec0_disabled(self) -> bool:
        """Whether the video decoder is off, in which case its measurement means nothing."""
        return self.opaque.get(NVDEC0_STATUS) == bytes((NVDEC0_DISABLED,))


def parse_report(raw: bytes) -> GPUReport:
    """Parse request and response.

    Raises:
        MalformedError: anything that is not exactly such a report.
    """
    if len(raw) > REPORT_BYTES_MAX:
        raise MalformedError("the GPU report is too long")
    reader = Reader(raw, "the GPU report")
    if reader.take(4) != REQUEST_HEAD:
        raise MalformedError("the GPU report does not begin with a request for signed measurements")
    nonce = reader.take(32)
    slot = reader.integer(1)
    if slot != 0 or reader.take(2) != RESPONSE_HEAD:
        raise MalformedError("the GPU report is not an answer with measurements")
    reader.take(2)
    blocks = reader.integer(1)
    measurements = _measurements(Reader(reader.take(reader.integer(3)), "the measurement record"), blocks)
    reader.take(32)  # the device's own nonce
    opaque = _opaque(Reader(reader.take(reader.integer(2)), "the opaque data"))
    signed = raw[: reader.position]
    signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return GPUReport(nonce=nonce, measurements=measurements, opaque=opaque, signed=signed, signature=signature)


def _measurements(reader: Reader, blocks: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for _ in range(blocks):
        index, specification, size = reader.integer(1), reader.integer(1), reader.integer(2)
        block = Reader(reader.take(size), "a measurement")
        block.take(1)  # what kind of thing was measured
        value = block.take(block.integer(2))
        block.end()
        if specification != _DMTF or index in found:
            raise MalformedError("a measurement is of an unknown kind or given twice")
        found[index] = value
    reader.end()
    return found


def _opaque(reader: Reader) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    while reader.left:
        kind = reader.integer(2)
        if kind in fields:
            raise MalformedError("an opaque field is given twice")
        fields[kind] = reader.take(reader.integer(2))
    return fields


def check_signature(report: GPUReport, leaf: x509.Certificate) -> None:
    """Check that the key of the certificate signed the report, and that both speak of the same firmware.

    Raises:
        RefusedError: one of them does not hold.
    """
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise RefusedError(Code.GPU_SIGNATURE, "the GPU's key is not one of P-384")
    r, s = (int.from_bytes(half, "big") for half in (report.signature[:_HALF], report.signature[_HALF:]))
    try:
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise RefusedError(Code.GPU_SIGNATURE, "the GPU's signature does not verify") from error
    running = report.opaque.get(FWID, b"")
    if len(running) != HASH_BYTES or running != _certified_firmware(leaf):
        raise RefusedError(Code.GPU_FIRMWARE_MISMATCH, "the GPU runs other firmware than its certificate was made for")


def _certified_firmware(leaf: x509.Certificate) -> bytes:
    try:
        value = leaf.extensions.get_extension_for_oid(_DICE_FWID).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise RefusedError(Code.GPU_FIRMWARE_MISMATCH, "the GPU's certificate names no firmware") from error
    # The last element of the structure is the digest's octet string.
    return value.value[-HASH_BYTES:] if isinstance(value, x509.UnrecognizedExtension) else b""
