"""The agent's keys of one keyset: made in memory, used, forgotten. Nothing here ever touches a disk.

A keyset lives for `lifetime_s` at most (PROTOCOL §1). Its successor is enrolled `overlap_s` before the end; from then
on new TLS connections get the successor's certificate, while tickets of the old keyset are still honoured until it
expires, so that a gateway that has not noticed yet loses nothing.
"""

import datetime as dt
import os
import random
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from cocoon.clock import Clock
from cocoon.enrolment import KEYSET_SECONDS_MAX, Keyset, keyset_digest
from cocoon.receipt import NO_STAKE
from cocoon.sealed import ReplayedError, ReplayGuard, SealedKey
from workers.agent.receipts import ReceiptSigner
from workers.agent.staking import StakedKey

KEYSET_JOBS_MAX = 2**20
"""Receipts per keyset (PROTOCOL §1)."""
OVERLAP_S_MAX = 600
_BOOT_ID_BYTES = 16
_CERTIFICATE_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cocoon-worker")])
_CERTIFICATE_MARGIN = dt.timedelta(days=1)
"""The pin, not the certificate's dates, decides; a wide margin keeps clock skew out of the handshake."""


def new_boot_id(rng: random.Random) -> bytes:
    """Names one run of one agent."""
    return rng.randbytes(_BOOT_ID_BYTES)


def overlap_s(lifetime_s: int) -> float:
    """How long before its end a keyset is succeeded."""
    return min(OVERLAP_S_MAX, lifetime_s / 4)


class Identity:
    """One keyset with its private keys, and, once enrolled, the key that authenticates its tickets."""

    def __init__(
        self, clock: Clock, boot_id: bytes, lifetime_s: int = KEYSET_SECONDS_MAX, manifest_sha256: bytes = b"",
        staked: StakedKey | None = None,
    ) -> None:  # fmt: skip
        assert 0 < lifetime_s <= KEYSET_SECONDS_MAX, "PROTOCOL §1"
        self._clock = clock
        self._tls_key = ec.generate_private_key(ec.SECP256R1())
        receipt_key = Ed25519PrivateKey.generate()
        self.sealed_key = SealedKey.generate()
        self.sealed_jobs = ReplayGuard(KEYSET_JOBS_MAX)
        receipt_pk = receipt_key.public_key().public_bytes_raw()
        now = clock.now()
        not_after = int(now.timestamp()) + lifetime_s
        self.keyset = Keyset(
            v=1,
            stake_addr="" if staked is None else str(staked.address),
            operator="",
            tls_spki_sha256=_sha256(
                self._tls_key.public_key().public_bytes(
                    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            ),
            hpke_xwing=self.sealed_key.public_key,
            hpke_x25519=b"",
            receipt_pk=receipt_pk,
            delegation=b"" if staked is None else staked.delegate(receipt_pk, not_after),
            model_manifest_sha256=manifest_sha256,
            boot_id=boot_id,
            not_before=int(now.timestamp()),
            not_after=not_after,
        )
        self.raw = self.keyset.encode()
        self.digest = keyset_digest(self.raw)
        self.stake = NO_STAKE if staked is None else staked.address.account
        self.stake_config = b"" if staked is None else staked.config
        self.signer = ReceiptSigner(receipt_key)
        self.ticket_key: bytes | None = None
        self.global_id: int | None = None
        self._renew_at = clock.monotonic() + lifetime_s - overlap_s(lifetime_s)
        self._expires_at = clock.monotonic() + lifetime_s

    @property
    def expired(self) -> bool:
        """Whether its time is over, by a clock that cannot be set back."""
        return self._clock.monotonic() >= self._expires_at

    @property
    def renewal_due_s(self) -> float:
        """Seconds until a successor must be enrolled; <= 0 when it is due."""
        if self.signer.signed >= KEYSET_JOBS_MAX or self.sealed_jobs.full:
            return 0.0
        return self._renew_at - self._clock.monotonic()

    def install(self, context: ssl.SSLContext) -> None:
        """Make `context` present this keyset's certificate on new connections.

        OpenSSL reads keys from files only, so the key passes through an anonymous memory file.
        """
        pem = self._certificate().public_bytes(serialization.Encoding.PEM) + self._tls_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        descriptor = os.memfd_create("cocoon-tls", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)

    def _certificate(self) -> x509.Certificate:
        now = self._clock.now()
        return (
            x509.CertificateBuilder()
            .subject_name(_CERTIFICATE_NAME)
            .issuer_name(_CERTIFICATE_NAME)
            .public_key(self._tls_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CERTIFICATE_MARGIN)
            .not_valid_after(now + dt.timedelta(seconds=KEYSET_SECONDS_MAX) + _CERTIFICATE_MARGIN)
            .sign(self._tls_key, hashes.SHA256())
        )


class KeyRing:
    """The current identity and, during the overlap, its predecessor. Owns the TLS context of the listener."""

    def __init__(
        self, clock: Clock, boot_id: bytes, lifetime_s: int = KEYSET_SECONDS_MAX, manifest_sha256: bytes = b"",
        staked: StakedKey | None = None,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._boot_id = boot_id
        self._lifetime_s = lifetime_s
        self._manifest_sha256 = manifest_sha256
        self._staked = staked
        self.current = self.successor()
        self._previous: Identity | None = None
        self._sealed_jobs = (self.current.sealed_jobs,)
        self.context = _server_context()
        self.current.install(self.context)

    def successor(self) -> Identity:
        """A fresh identity, to be enrolled and then handed to `succeed`."""
        return Identity(self._clock, self._boot_id, self._lifetime_s, self._manifest_sha256, self._staked)

    def succeed(self, identity: Identity) -> None:
        """Serve new connections with an enrolled successor; the old keyset's tickets stay good until it expires."""
        identity.install(self.context)
        self._previous = self.current
        self._sealed_jobs = (identity.sealed_jobs, self.current.sealed_jobs)
        self.current = identity

    def admit_sealed(self, identity: Identity, job_id: bytes) -> None:
        """Remember a sealed job for the life of the keyset that runs it.

        A request may be sealed for two keysets of one worker: what ran under one of them does not run under the other,
        even when the first has expired.

        Raises:
            ReplayedError: it ran before, or the keyset cannot remember more.
        """
        if any(job_id in jobs for jobs in self._sealed_jobs):
            raise ReplayedError
        identity.sealed_jobs.admit(job_id)

    def enrolled(self) -> list[Identity]:
        """Identities whose tickets are good now, newest first. Forgets the one that has expired."""
        if self._previous is not None and self._previous.expired:
            self._previous = None
        held = [self.current] if self._previous is None else [self.current, self._previous]
        return [identity for identity in held if identity.ticket_key is not None and not identity.expired]


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A resumed session would carry the old certificate past its keyset's end (and 0-RTT is replayable).
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def _sha256(raw: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(raw)
    return digest.finalize()
