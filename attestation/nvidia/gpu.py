"""All GPUs of a machine, judged one by one: signature, chain, nonce, versions, reference manifests."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from attestation.certificates import Chain, load_pem_chain, sha256_hex, verify_chain
from attestation.evidence import GPUDevice, GPUEvidence
from attestation.findings import Code, RefusedError
from attestation.nvidia.report import GPUReport, check_signature, parse_report
from attestation.nvidia.rim import RIM, compare, verify_rim
from attestation.policy import GPUPolicy, Policy
from cocoon.errors import MalformedError

# The names that evidence has for an architecture, and the products that manifests have for it.
_PRODUCTS: Final = {"HOPPER": ("GH100",)}


class GPUClaims(msgspec.Struct, frozen=True):
    """What is proven about the GPUs; `serials` are the serial numbers of the certificates of their report keys."""

    serials: tuple[str, ...]
    valid_until: dt.datetime


def verify_gpus(
    raw: bytes, *, policy: Policy, nonce: bytes, expected: int, rims: Sequence[bytes], at: dt.datetime
) -> GPUClaims:
    """Judge the GPU evidence of a machine that has `expected` GPUs.

    Raises:
        MalformedError: something cannot be read.
        RefusedError: anything that is not proven or that the policy does not accept.
    """
    devices = GPUEvidence.decode(raw).devices
    if policy.gpu is None or len(devices) != expected:
        raise RefusedError(Code.GPU_COUNT, f"there is evidence of {len(devices)} GPUs where there are {expected}")
    manifests = [verify_rim(rim, roots=policy.pins("rim"), at=at) for rim in rims]
    serials: list[str] = []
    ends: list[dt.datetime] = []
    for device in devices:
        chain, end = _verify_device(device, policy, policy.gpu, nonce, manifests, at)
        serials.append(f"{chain[0].serial_number:x}")
        ends.append(end)
    if len(set(serials)) != len(serials):
        raise RefusedError(Code.GPU_DUPLICATE, "one GPU is shown as several")
    return GPUClaims(serials=tuple(serials), valid_until=min(ends))


def evidence_digest(raw: bytes) -> bytes | None:
    """What a statement says about GPU evidence: the digest of its bytes, or nothing where there is none."""
    return hashlib.sha256(raw).digest() if raw else None


def _verify_device(
    device: GPUDevice, policy: Policy, gpu: GPUPolicy, nonce: bytes, manifests: Sequence[RIM], at: dt.datetime
) -> tuple[Chain, dt.datetime]:
    chain = load_pem_chain(device.chain, "a GPU's chain")
    verify_chain(chain, roots=policy.pins("gpu"), at=at, what="a GPU's chain")
    if any(sha256_hex(certificate) in gpu.revoked for certificate in chain):
        raise RefusedError(Code.CERTIFICATE_REVOKED, "the policy has revoked a certificate of a GPU")
    report = parse_report(device.report)
    check_signature(report, chain[0])
    if report.nonce != nonce:
        raise RefusedError(Code.GPU_NONCE_MISMATCH, "a GPU's report was made for something else")
    products = _PRODUCTS.get(device.architecture, ())
    if device.architecture not in gpu.architectures or not products:
        raise RefusedError(Code.GPU_ARCHITECTURE, f"GPUs of architecture {device.architecture!r} are not accepted")
    # The certificate says what the device is; the name beside the report is only a claim.
    if not any(product in chain[0].subject.rfc4514_string() for product in products):
        raise RefusedError(Code.GPU_ARCHITECTURE, "a GPU's certificate is of another architecture than it claims")
    _check_versions(report, gpu)
    driver = _manifest(manifests, products, report.driver)
    vbios = _manifest(manifests, products, report.vbios.replace(".", ""))
    compare(report.measurements, driver, vbios, nvdec0_disabled=report.nvdec0_disabled)
    ends = [driver.valid_until, vbios.valid_until, *(certificate.not_valid_after_utc for certificate in chain)]
    return chain, min(ends)


def _manifest(manifests: Sequence[RIM], products: Sequence[str], version: str) -> RIM:
    wanted = version.upper()
    for manifest in manifests:
        if manifest.product in products and manifest.version.replace(" ", "").upper() == wanted:
            return manifest
    raise RefusedError(Code.RIM_MISSING, f"there is no reference manifest for version {version!r}")


def _check_versions(report: GPUReport, gpu: GPUPolicy) -> None:
    if _decimal(report.driver) < _decimal(gpu.driver_min):
        raise RefusedError(Code.GPU_VERSION, f"driver {report.driver!r} is older than {gpu.driver_min}")
    if bytes.fromhex(report.vbios.replace(".", "")) < bytes.fromhex(gpu.vbios_min.replace(".", "")):
        raise RefusedError(Code.GPU_VERSION, f"VBIOS {report.vbios!r} is older than {gpu.vbios_min}")


def _decimal(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    if len(version) > 32 or not all(part.isascii() and part.isdigit() for part in parts):  # noqa: PLR2004  a bound
        raise MalformedError("a GPU's driver version is not one")
    return tuple(int(part) for part in parts)
