"""Simulated GPUs: certificates, signed measurement reports, and the reference manifests that fit them."""

import base64
import datetime as dt
import hashlib
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from attestation.certificates import sha256_hex
from attestation.evidence import GPUDevice
from attestation.nvidia import report as spdm
from attestation.nvidia.rim import SHA384, SWID
from attestation.nvidia.xmldsig import (
    C14N11,
    DSIG,
    ECDSA_SHA384,
    ENVELOPED,
    SHA384_DIGEST,
    canonical_xml,
    parse_xml,
)
from attestation.simulation import der
from attestation.simulation.certificates import NOT_AFTER, Authority, derive, p384, pem, raw_signature

ARCHITECTURE: Final = "HOPPER"
PRODUCT: Final = "GH100"
DRIVER: Final = "999.01.00"
VBIOS: Final = "99.00.01.00.01"
BLOCKS: Final = 64
DRIVER_MEASUREMENTS: Final = tuple(range(8, 40))
VBIOS_MEASUREMENTS: Final = tuple(range(1, 8))
_DICE_FWID: Final = "2.23.133.5.4.1"
_SHA384_OID: Final = "2.16.840.1.101.3.4.2.2"
_NVDEC0_ENABLED: Final = 0xAA


class Firmware(msgspec.Struct, frozen=True):
    """What a device reports about itself; tests replace fields to build what must be refused."""

    driver: str = DRIVER
    vbios: str = VBIOS
    changed: Mapping[int, bytes] = {}


class SimulatedGPUs:
    """The devices of one machine (of its own seed) and the vendor above them (of the shared one)."""

    def __init__(self, seed: bytes, machine: bytes, count: int) -> None:
        self._seed = seed
        self._root = Authority.root(p384(seed, "gpu/root"), "Simulated Device Identity CA")
        family = self._root.issue(p384(seed, "gpu/family"), f"Simulated {PRODUCT} Identity", ca=True)
        self._fwid = derive(seed, "gpu/fwid", 48)
        dice = der.sequence(der.sequence(der.identifier(_SHA384_OID), der.octets(self._fwid)))
        self._devices: list[tuple[Authority, bytes]] = []
        for number in range(count):
            device = family.issue(p384(machine, f"gpu/{number}/device"), f"{PRODUCT} Simulated BROM", ca=True)
            leaf = device.issue(
                p384(machine, f"gpu/{number}/report"),
                f"{PRODUCT} Simulated FMC",
                ca=False,
                extensions=((_DICE_FWID, dice),),
            )
            self._devices.append((leaf, pem(leaf, device, family, self._root).encode()))
        self._rim_root = Authority.root(p384(seed, "rim/root"), "Simulated RIM Root CA")
        self._rim_signer = self._rim_root.issue(p384(seed, "rim/signer"), "Simulated RIM Signer", ca=False)

    @property
    def root_sha256(self) -> str:
        """What a policy names to accept these devices."""
        return sha256_hex(self._root.certificate)

    @property
    def rim_root_sha256(self) -> str:
        """What a policy names to accept these manifests."""
        return sha256_hex(self._rim_root.certificate)

    def certificate_sha256(self, number: int) -> str:
        """The certificate of one device's report key, as a policy revokes it."""
        return sha256_hex(self._devices[number][0].certificate)

    def device(self, number: int, nonce: bytes, firmware: Firmware | None = None) -> GPUDevice:
        """Evidence of one device for a nonce of 32 bytes."""
        leaf, chain = self._devices[number]
        signed = self._report(nonce, firmware or Firmware())
        return GPUDevice(architecture=ARCHITECTURE, report=signed + raw_signature(leaf.key, signed), chain=chain)

    def rims(self, not_after: dt.datetime = NOT_AFTER) -> tuple[bytes, bytes]:
        """The manifests of driver and VBIOS."""
        signer = self._rim_signer
        if not_after != NOT_AFTER:
            signer = self._rim_root.issue(signer.key, "Simulated RIM Signer", ca=False, not_after=not_after)
        vbios = VBIOS.replace(".", "")
        return (
            self._rim(signer, f"SIM_DRIVER_{DRIVER}", DRIVER, DRIVER_MEASUREMENTS),
            self._rim(signer, f"SIM_VBIOS_{vbios}", vbios, VBIOS_MEASUREMENTS),
        )

    def _measurement(self, index: int) -> bytes:
        return hashlib.sha384(self._seed + struct.pack("<I", index)).digest()

    def _report(self, nonce: bytes, firmware: Firmware) -> bytes:
        record = b""
        for index in range(BLOCKS):
            value = firmware.changed.get(index, self._measurement(index))
            record += struct.pack("<BBHBH", index + 1, 1, len(value) + 3, 1, len(value)) + value
        version = bytes.fromhex(firmware.vbios.replace(".", ""))
        vbios = bytes((version[3], version[2], version[1], version[0], version[4], 0, 0, 0))
        fields = (
            (spdm.VBIOS_VERSION, vbios),
            (spdm.DRIVER_VERSION, firmware.driver.encode() + b"\0"),
            (spdm.NVDEC0_STATUS, bytes((_NVDEC0_ENABLED,))),
            (spdm.FWID, self._fwid),
        )
        opaque = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in fields)
        request = spdm.REQUEST_HEAD + nonce + b"\0"
        response = spdm.RESPONSE_HEAD + b"\0\0" + bytes((BLOCKS,)) + len(record).to_bytes(3, "little") + record
        response += derive(self._seed, "gpu/response-nonce", 32) + struct.pack("<H", len(opaque)) + opaque
        return request + response

    def _rim(self, signer: Authority, tag: str, version: str, active: tuple[int, ...]) -> bytes:
        resources = "".join(
            f'<Resource type="Measurement" index="{index}" active="{index in active}" alternatives="1"'
            f' s:Hash0="{(self._measurement(index) if index in active else bytes(48)).hex()}" size="48"/>\n'
            for index in range(BLOCKS)
        )
        content = (
            f'<SoftwareIdentity xmlns="{SWID}" xmlns:s="{SHA384}" name="{PRODUCT}" tagId="{tag}" version="1.0">\n'
            f'<Meta product="{PRODUCT}" colloquialVersion="{version}"/>\n<Payload>\n{resources}</Payload>\n'
        )
        return sign_manifest(content, signer, self._rim_root)


def sign_manifest(content: str, signer: Authority, root: Authority) -> bytes:
    """A manifest whose text, without its end tag, is `content`, with the signature NVIDIA's have."""
    end = "</SoftwareIdentity>"
    digest = hashlib.sha384(canonical_xml(parse_xml((content + end).encode()))).digest()
    info = (
        f'<SignedInfo xmlns="{DSIG}"><CanonicalizationMethod Algorithm="{C14N11}"></CanonicalizationMethod>'
        f'<SignatureMethod Algorithm="{ECDSA_SHA384}"></SignatureMethod><Reference URI=""><Transforms>'
        f'<Transform Algorithm="{ENVELOPED}"></Transform><Transform Algorithm="{C14N11}"></Transform></Transforms>'
        f'<DigestMethod Algorithm="{SHA384_DIGEST}"></DigestMethod>'
        f"<DigestValue>{_base64(digest)}</DigestValue></Reference></SignedInfo>"
    )
    # In the document, SignedInfo also stands in the scope of the prefix that the manifest declares.
    apex = info.replace(f'<SignedInfo xmlns="{DSIG}"', f'<SignedInfo xmlns="{DSIG}" xmlns:s="{SHA384}"', 1)
    value = raw_signature(signer.key, apex.encode())
    chain = pem(signer, root).replace("-----BEGIN CERTIFICATE-----\n", "<X509Certificate>")
    chain = chain.replace("-----END CERTIFICATE-----\n", "</X509Certificate>")
    signature = (
        f'<Signature xmlns="{DSIG}">{info}<SignatureValue>{_base64(value)}</SignatureValue>'
        f"<KeyInfo><X509Data>{chain}</X509Data></KeyInfo></Signature>"
    )
    return (content + signature + end).encode()


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
