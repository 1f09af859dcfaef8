"""A simulated TDX platform: the certificates of Intel's infrastructure, its collateral, and quotes.

Sources: Intel's SGX PCK certificate profile 1.5 (extension), the PCS API v4 (TCB info, QE identity), and the layout in
`attestation.tdx.quote`, which this has to satisfy like any platform.
"""

import datetime as dt
import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from attestation.certificates import sha256_hex
from attestation.simulation import der
from attestation.simulation.certificates import Authority, derive, p256, pem, raw_public, raw_signature
from attestation.tdx.collateral import Collateral, Family

FMSPC: Final = bytes.fromhex("00A06F510000")
_EXTENSION: Final = "1.2.840.113741.1.13.1"
_CPU_SVN: Final = bytes([3] * 8 + [0] * 8)
_PCE_SVN: Final = 13
_TEE_TCB_SVN: Final = bytes([5, 1, 2] + [0] * 13)
_EVALUATION: Final = 20
_QE_PRODUCT: Final = 2
_QE_SVN: Final = 6
_QE_ATTRIBUTES: Final = bytes.fromhex("1500000000000000e700000000000000")
_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_ZERO48: Final = bytes(48)


class Domain(msgspec.Struct, frozen=True):
    """The trust domain that a quote is made of; tests replace fields to build what must be refused."""

    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    mrseam: bytes
    mrconfigid: bytes = _ZERO48
    td_attributes: bytes = bytes.fromhex("0000001000000000")
    xfam: bytes = bytes.fromhex("e702060000000000")
    version: int = 4
    report_15: bool = False


class Judgement(msgspec.Struct, frozen=True):
    """What the simulated vendor says about the platform; defaults are a platform in order."""

    status: str = "UpToDate"
    advisories: tuple[str, ...] = ()
    evaluation: int = _EVALUATION
    revoke_pck: bool = False
    days: int = 30


class SimulatedPlatform:
    """One machine's PCK, quoting enclave and attestation key, and the infrastructure above them.

    `seed` makes what all machines share, `machine` (another seed) what is one machine's own.
    """

    def __init__(self, seed: bytes, machine: bytes) -> None:
        self._root = Authority.root(p256(seed, "tdx/root"), "Simulated SGX Root CA")
        self._platform_ca = self._root.issue(p256(seed, "tdx/platform"), "Simulated PCK Platform CA", ca=True)
        self._tcb_signer = self._root.issue(p256(seed, "tdx/tcb"), "Simulated TCB Signing", ca=False)
        self._attestation_key = p256(machine, "tdx/attestation")
        self.ppid = derive(machine, "tdx/ppid", 16)
        extension = _pck_extension(self.ppid, derive(machine, "tdx/instance", 16))
        self._pck = self._platform_ca.issue(
            p256(machine, "tdx/pck"), "Simulated PCK Certificate", ca=False, extensions=((_EXTENSION, extension),)
        )
        self._mrenclave = derive(seed, "tdx/qe", 32)
        self._mrsigner = derive(seed, "tdx/qe-signer", 32)

    @property
    def root_sha256(self) -> str:
        """What a policy names to accept this platform."""
        return sha256_hex(self._root.certificate)

    @property
    def family(self) -> Family:
        """Which collateral its quotes need."""
        return Family(fmspc=FMSPC.hex().upper(), ca="platform")

    def collateral(self, now: dt.datetime, judgement: Judgement | None = None) -> Collateral:
        """Collateral issued an hour before `now`."""
        judgement = judgement or Judgement()
        start = now.replace(microsecond=0) - dt.timedelta(hours=1)
        end = start + dt.timedelta(days=judgement.days)
        dates = {"issueDate": _stamp(start), "nextUpdate": _stamp(end)}
        tcb_info = json.dumps(_tcb_info(dates, judgement), separators=(",", ":"))
        identity = json.dumps(self._qe_identity(dates, judgement), separators=(",", ":"))
        signer = pem(self._tcb_signer, self._root)
        revoked = [self._pck.certificate] if judgement.revoke_pck else []
        return Collateral(
            pck_crl_issuer_chain=pem(self._platform_ca, self._root), root_ca_crl=self._root.crl(start, end),
            pck_crl=self._platform_ca.crl(start, end, revoked),
            tcb_info_issuer_chain=signer, tcb_info=tcb_info,
            tcb_info_signature=raw_signature(self._tcb_signer.key, tcb_info.encode()),
            qe_identity_issuer_chain=signer, qe_identity=identity,
            qe_identity_signature=raw_signature(self._tcb_signer.key, identity.encode()),
        )  # fmt: skip

    def quote(self, domain: Domain, report_data: bytes) -> bytes:
        """A quote over 64 bytes of report data."""
        header = struct.pack("<HHIHH16s20s", domain.version, 2, 0x81, 0, 0, _QE_VENDOR, b"SIMULATED".ljust(20, b"\0"))
        report = _td_report(domain, report_data)
        if domain.version == 4:  # noqa: PLR2004  the older of two layouts
            body = header + report
        else:
            body = header + struct.pack("<HI", 3 if domain.report_15 else 2, len(report)) + report
        key = self._attestation_key
        authentication = bytes(32)
        enclave = self._qe_report(hashlib.sha256(raw_public(key) + authentication).digest())
        chain = pem(self._pck, self._platform_ca, self._root).encode()
        inner = enclave + raw_signature(self._pck.key, enclave) + struct.pack("<H", 32) + authentication
        inner += struct.pack("<HI", 5, len(chain)) + chain
        signed = raw_signature(key, body) + raw_public(key) + struct.pack("<HI", 6, len(inner)) + inner
        return body + struct.pack("<I", len(signed)) + signed

    def _qe_report(self, bound: bytes) -> bytes:
        report = bytearray(384)
        report[0:16] = _CPU_SVN
        report[48:64] = _QE_ATTRIBUTES
        report[64:96] = self._mrenclave
        report[128:160] = self._mrsigner
        struct.pack_into("<HH", report, 256, _QE_PRODUCT, _QE_SVN)
        report[320:352] = bound
        return bytes(report)

    def _qe_identity(self, dates: dict[str, str], judgement: Judgement) -> dict[str, object]:
        level = {"tcb": {"isvsvn": 4}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate"}
        return {
            "id": "TD_QE", "version": 2, **dates, "tcbEvaluationDataNumber": judgement.evaluation,
            "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000", "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": self._mrsigner.hex().upper(), "isvprodid": _QE_PRODUCT, "tcbLevels": [level],
        }  # fmt: skip


def _td_report(domain: Domain, report_data: bytes) -> bytes:
    parts = (
        _TEE_TCB_SVN, domain.mrseam, _ZERO48, bytes(8), domain.td_attributes, domain.xfam, domain.mrtd,
        domain.mrconfigid, _ZERO48, _ZERO48, *domain.rtmrs, report_data,
    )  # fmt: skip
    report = b"".join(parts)
    return report + _TEE_TCB_SVN + _ZERO48 if domain.report_15 else report


def _tcb_info(dates: dict[str, str], judgement: Judgement) -> dict[str, object]:
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    module_level = {"tcb": {"isvsvn": 5}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate"}
    level = {
        "tcb": {
            "sgxtcbcomponents": _components(_CPU_SVN),
            "pcesvn": _PCE_SVN,
            "tdxtcbcomponents": _components(bytes([5, 0, 2] + [0] * 13)),
        },
        "tcbDate": "2026-01-01T00:00:00Z",
        "tcbStatus": judgement.status,
        "advisoryIDs": list(judgement.advisories),
    }
    return {
        "id": "TDX", "version": 3, **dates, "fmspc": FMSPC.hex().upper(), "pceId": "0000", "tcbType": 0,
        "tcbEvaluationDataNumber": judgement.evaluation, "tdxModule": module,
        "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": [module_level]}], "tcbLevels": [level],
    }  # fmt: skip


def _components(versions: Sequence[int]) -> list[dict[str, int]]:
    return [{"svn": version} for version in versions]


def _stamp(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _pck_extension(ppid: bytes, instance: bytes) -> bytes:
    def entry(suffix: str, value: bytes) -> bytes:
        return der.sequence(der.identifier(_EXTENSION + suffix), value)

    versions = [entry(f".2.{number}", der.integer(svn)) for number, svn in enumerate(_CPU_SVN, 1)]
    versions += [entry(".2.17", der.integer(_PCE_SVN)), entry(".2.18", der.octets(_CPU_SVN))]
    flags = [entry(f".7.{number}", der.boolean(value=False)) for number in (1, 2, 3)]
    return der.sequence(
        entry(".1", der.octets(ppid)),
        entry(".2", der.sequence(*versions)),
        entry(".3", der.octets(bytes(2))),
        entry(".4", der.octets(FMSPC)),
        entry(".5", der.enumerated(1)),
        entry(".6", der.octets(instance)),
        entry(".7", der.sequence(*flags)),
    )
