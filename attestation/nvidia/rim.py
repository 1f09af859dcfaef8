"""Reference integrity manifests: what NVIDIA's driver and VBIOS have to measure, signed by NVIDIA.

Source: ISO 19770-2 SWID tags with the TCG RIM binding. Measurements are numbered from 0 in a manifest and from 1 in a
report; only active ones count, and each may have alternatives.
"""

import datetime as dt
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from attestation.certificates import verify_chain
from attestation.findings import Code, RefusedError
from attestation.nvidia.xmldsig import Element, check_enveloped_signature, embedded_chain, parse_xml
from cocoon.errors import MalformedError

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
ALTERNATIVES_MAX: Final = 64
MEASUREMENTS_MAX: Final = 256
NVDEC0_MEASUREMENT: Final = 35
_HASH_HEX: Final = 96


class RIM(msgspec.Struct, frozen=True):
    """A verified manifest: the hashes that each active measurement (from 0) may have."""

    product: str
    version: str
    golden: Mapping[int, frozenset[bytes]]
    valid_until: dt.datetime


def verify_rim(raw: bytes, *, roots: Collection[str], at: dt.datetime) -> RIM:
    """The content of a manifest whose signature and chain hold `at` this time.

    Raises:
        MalformedError: not a manifest.
        RefusedError: foreign root, certificates out of date, or altered.
    """
    root = parse_xml(raw)
    if root.tag != (SWID, "SoftwareIdentity"):
        raise MalformedError("the XML document is not a reference manifest")
    chain = embedded_chain(root)
    verify_chain(chain, roots=roots, at=at, what="a reference manifest's chain")
    check_enveloped_signature(root, chain)
    meta = root.only((SWID, "Meta")).expanded()
    return RIM(
        product=meta.get(("", "product"), ""),
        version=meta.get(("", "colloquialVersion"), ""),
        golden=_golden(root.only((SWID, "Payload"))),
        valid_until=min(certificate.not_valid_after_utc for certificate in chain),
    )


def _golden(payload: Element) -> dict[int, frozenset[bytes]]:
    resources = payload.elements((SWID, "Resource"))
    if len(resources) > MEASUREMENTS_MAX:
        raise MalformedError("a reference manifest has too many measurements")
    golden: dict[int, frozenset[bytes]] = {}
    for resource in resources:
        attributes = resource.expanded()
        if attributes.get(("", "type")) != "Measurement":
            continue
        index = _number(attributes.get(("", "index"), ""), MEASUREMENTS_MAX)
        alternatives = _number(attributes.get(("", "alternatives"), ""), ALTERNATIVES_MAX)
        active = attributes.get(("", "active"))
        if index in golden or active not in ("True", "False"):
            raise MalformedError("a reference manifest names a measurement twice, or neither active nor not")
        if active == "True":
            texts = (attributes.get((SHA384, f"Hash{number}"), "") for number in range(alternatives))
            golden[index] = frozenset(_hash(text) for text in texts)
    return golden


def _number(text: str, maximum: int) -> int:
    # The length first: a number of a million digits takes its time.
    if len(text) > len(str(maximum)) or not text.isascii() or not text.isdigit() or int(text) > maximum:
        raise MalformedError("a number of a reference manifest is out of range")
    return int(text)


def _hash(text: str) -> bytes:
    if len(text) != _HASH_HEX:
        raise MalformedError("a hash of a reference manifest is not one of SHA-384")
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise MalformedError("a hash of a reference manifest is not hexadecimal") from error


def compare(measurements: Mapping[int, bytes], driver: RIM, vbios: RIM, *, nvdec0_disabled: bool) -> None:
    """Check that a report's measurements (from 1) are what both manifests (from 0) expect.

    Raises:
        RefusedError: a measurement is absent or another one, the manifests contradict each other, or expect nothing.
    """
    if driver.golden.keys() & vbios.golden.keys():
        raise RefusedError(Code.RIM_INVALID, "driver and VBIOS manifests speak of the same measurement")
    if not driver.golden or not vbios.golden:
        raise RefusedError(Code.RIM_INVALID, "a reference manifest expects nothing")
    golden = {**driver.golden, **vbios.golden}
    if nvdec0_disabled:
        golden.pop(NVDEC0_MEASUREMENT, None)
    wrong = sorted(index for index, hashes in golden.items() if measurements.get(index + 1) not in hashes)
    if wrong:
        listed = ", ".join(map(str, wrong))
        raise RefusedError(Code.RIM_MISMATCH, f"GPU measurements {listed} are not what NVIDIA's manifests expect")
