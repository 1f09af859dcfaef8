"""A simulated SEV-SNP chip: its chain up to a root, and reports signed with its key."""

import datetime as dt
import struct
from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography import x509

from attestation.certificates import sha256_hex
from attestation.simulation import der
from attestation.simulation.certificates import Authority, derive, p384, pem, raw_signature
from attestation.snp.report import SIGNED_BYTES

_OID: Final = "1.3.6.1.4.1.3704.1"
_VERSIONS: Final = {".3.1": 4, ".3.2": 0, ".3.3": 23, ".3.8": 213}
_TCB: Final = bytes((4, 0, 0, 0, 0, 0, 23, 213))
_HALF: Final = 48


class Guest(msgspec.Struct, frozen=True):
    """The guest that a report is made of; tests replace fields to build what must be refused."""

    measurement: bytes
    host_data: bytes
    policy: int = 1 << 17
    vmpl: int = 0
    tcb: bytes = _TCB


class SimulatedChip:
    """One chip's VCEK and the infrastructure above it. Real roots sign with RSA; this one saves the time."""

    def __init__(self, seed: bytes, machine: bytes) -> None:
        self._root = Authority.root(p384(seed, "snp/ark"), "Simulated ARK")
        self._ask = self._root.issue(p384(seed, "snp/ask"), "Simulated SEV CA", ca=True)
        self.chip_id = derive(machine, "snp/chip", 64)
        extensions = [(_OID + suffix, der.integer(version)) for suffix, version in _VERSIONS.items()]
        extensions.append((f"{_OID}.4", self.chip_id))
        self._vcek = self._ask.issue(p384(machine, "snp/vcek"), "Simulated VCEK", ca=False, extensions=extensions)

    @property
    def root_sha256(self) -> str:
        """What a policy names to accept this chip."""
        return sha256_hex(self._root.certificate)

    @property
    def chain(self) -> bytes:
        """PEM from the VCEK to the root."""
        return pem(self._vcek, self._ask, self._root).encode()

    def crl(self, now: dt.datetime, *, revoke_ask: bool = False) -> bytes:
        """The root's revocation list, good for 30 days."""
        revoked: Sequence[x509.Certificate] = [self._ask.certificate] if revoke_ask else []
        start = now.replace(microsecond=0) - dt.timedelta(hours=1)
        return self._root.crl(start, start + dt.timedelta(days=30), revoked)

    def report(self, guest: Guest, report_data: bytes) -> bytes:
        """A report over 64 bytes of report data."""
        body = struct.pack("<IIQ32sIIQQII", 2, 0, guest.policy, b"", guest.vmpl, 1, 0, 0, 0, 0)
        body += report_data + guest.measurement + guest.host_data + bytes(48 + 48 + 32 + 32) + guest.tcb + bytes(24)
        body = (body + self.chip_id).ljust(SIGNED_BYTES, b"\0")
        signature = raw_signature(self._vcek.key, body)
        numbers = (signature[:_HALF][::-1].ljust(72, b"\0"), signature[_HALF:][::-1].ljust(72, b"\0"))
        return (body + b"".join(numbers)).ljust(1184, b"\0")
