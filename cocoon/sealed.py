"""Sealed requests: what only the workers that a client chose can read (PROTOCOL §3).

On the wire: `"CSR1" ‖ u32 length ‖ header ‖ wraps ‖ u32 length ‖ ciphertext`. The header is clear and canonical; all
keys derive from its digest, so that nothing in it can be swapped. There is one wrap of 1200 bytes for each keyset
digest it names, in that order. A gateway that holds no key reads the header, forwards the rest and learns the padded
length.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from cocoon import canonical
from cocoon.enrolment import Digest
from cocoon.errors import MalformedError
from cocoon.openai import MAX_CHOICES

CONTENT_TYPE: Final = "application/cocoon-sealed"
RECIPIENTS_MAX: Final = 8
HEADER_BYTES_MAX: Final = 4096
BODY_BYTES_MAX: Final = 32 * 1024 * 1024
PUBLIC_KEY_BYTES: Final = 1184 + 32
WRAP_BYTES: Final = 1120 + 64 + 16
SECRET_BYTES: Final = 32
TAG_BYTES: Final = 16
_MAGIC: Final = b"CSR1"
_SEALED_LABEL: Final = b"cocoon/sealed/1\x00"
_WRAP_LABEL: Final = b"cocoon/wrap/1\x00"
_KEY_LABEL: Final = b"cocoon/key/1\x00"
_REQUEST: Final = b"\x00"
_BUCKETS: Final = (1024, 4096, 16384, 65536)
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

RandomBytes = Callable[[int], bytes]
_Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class UnopenableError(MalformedError):
    """The sealed bytes are not for this key, or not as they were sealed."""


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a gateway has to know of a request. Token maxima are totals over `n`; `not_after` is Unix seconds."""

    job_id: _Id
    key_tag: _Id
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    max_prompt: _Tokens
    max_completion: _Tokens
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)]
    stream: bool
    not_after: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    manifest: Digest | None = None


class SealedHeader(Terms, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The clear header: the terms, a commitment to the body's key, and who may open it."""

    v: Literal[1]
    kc: Digest
    keyset_digests: Annotated[tuple[Digest, ...], msgspec.Meta(min_length=1, max_length=RECIPIENTS_MAX)]


class Recipient(msgspec.Struct, frozen=True):
    """A keyset that the client verified, and its HPKE key (`hpke_xwing`: ML-KEM-768 then X25519)."""

    keyset_digest: bytes
    public_key: bytes


class SealedRequest(msgspec.Struct, frozen=True):
    """A sealed request taken apart, without a key. `digest` is H, which tickets and receipts name."""

    header: SealedHeader
    digest: bytes
    wraps: tuple[bytes, ...]
    ciphertext: bytes


class SentRequest(msgspec.Struct, frozen=True):
    """What a client sends and has to keep: `secrets` are RS_i by keyset digest."""

    raw: bytes
    digest: bytes
    secrets: dict[bytes, bytes]


class OpenedRequest(msgspec.Struct, frozen=True):
    """What a worker finds: the body, and RS_i, under which its answer is sealed and committed to."""

    header: SealedHeader
    digest: bytes
    body: bytes
    secret: bytes


class SealedKey:
    """A keyset's private HPKE key (X-Wing). It lives in memory only; its repr says nothing."""

    def __init__(self, post_quantum: mlkem.MLKEM768PrivateKey, classical: x25519.X25519PrivateKey) -> None:
        self._key = MLKEM768X25519PrivateKey(post_quantum, classical)
        self.public_key = post_quantum.public_key().public_bytes_raw() + classical.public_key().public_bytes_raw()

    @staticmethod
    def generate() -> "SealedKey":
        """A fresh key from the system's entropy."""
        return SealedKey(mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate())

    def unwrap(self, wrap: bytes, info: bytes) -> bytes:
        """The wrapped secrets.

        Raises:
            UnopenableError: the wrap is for another key or another header.
        """
        try:
            return _SUITE.decrypt(wrap, self._key, info=info)
        except (InvalidTag, ValueError) as error:
            raise UnopenableError from error


def key_tag(api_key: str) -> bytes:
    """The 16 bytes by which a gateway knows whose key a sealed request was made for."""
    return hashlib.sha256(_KEY_LABEL + api_key.encode()).digest()[:16]


def seal_request(terms: Terms, body: bytes, recipients: Sequence[Recipient], random_bytes: RandomBytes) -> SentRequest:
    """Seal `body` for one to eight recipients.

    Raises:
        MalformedError: too many recipients or none, one of them twice, an unusable key, or a body that is too long.
    """
    digests = tuple(recipient.keyset_digest for recipient in recipients)
    if not 1 <= len(digests) <= RECIPIENTS_MAX or len(set(digests)) != len(digests) or len(body) > BODY_BYTES_MAX:
        raise MalformedError("a request is sealed for one to eight different keysets, up to its maximum length")
    key = random_bytes(SECRET_BYTES)
    derived = _Keys(key)
    header = SealedHeader(v=1, kc=derived.commitment, keyset_digests=digests, **msgspec.structs.asdict(terms))
    clear = canonical.encode(header)
    digest = _digest(clear)
    secrets = {known: random_bytes(SECRET_BYTES) for known in digests}
    wraps = [
        _SUITE.encrypt(
            key + secrets[recipient.keyset_digest],
            _public_key(recipient.public_key),
            info=_wrap_info(digest, recipient.keyset_digest),
        )
        for recipient in recipients
    ]
    ciphertext = AESGCM(derived.body(digest)).encrypt(bytes(12), pad(body, request_bucket(len(body))), _aad(digest))
    head = _MAGIC + struct.pack(">I", len(clear)) + clear
    raw = head + b"".join(wraps) + struct.pack(">I", len(ciphertext)) + ciphertext
    return SentRequest(raw=raw, digest=digest, secrets=secrets)


def parse_request(raw: bytes) -> SealedRequest:
    """Take a sealed request apart, as gateway and worker both do.

    Raises:
        MalformedError: not exactly a sealed request.
    """
    if not raw.startswith(_MAGIC) or len(raw) < len(_MAGIC) + 4:
        raise MalformedError("not a sealed request")
    (length,) = struct.unpack_from(">I", raw, 4)
    clear = raw[8 : 8 + length]
    if length > HEADER_BYTES_MAX or len(clear) != length:
        raise MalformedError("the header of a sealed request is too long")
    header = canonical.decode(clear, SealedHeader)
    if len(set(header.keyset_digests)) != len(header.keyset_digests):
        raise MalformedError("a sealed request names a keyset twice")
    start = 8 + length
    frame = start + WRAP_BYTES * len(header.keyset_digests)
    wraps = tuple(raw[at : at + WRAP_BYTES] for at in range(start, frame, WRAP_BYTES))
    ciphertext = raw[frame + 4 :]
    if raw[frame : frame + 4] != struct.pack(">I", len(ciphertext)) or len(ciphertext) < TAG_BYTES:
        raise MalformedError("a sealed request has another length than it says")
    return SealedRequest(header=header, digest=_digest(clear), wraps=wraps, ciphertext=ciphertext)


def open_request(sealed: SealedRequest, keyset_digest: bytes, key: SealedKey) -> OpenedRequest:
    """Open a request as one of its recipients.

    Raises:
        UnopenableError: this keyset is not named, or wrap, commitment or body do not hold.
    """
    if keyset_digest not in sealed.header.keyset_digests:
        raise UnopenableError("the request is not sealed for this keyset")
    wrap = sealed.wraps[sealed.header.keyset_digests.index(keyset_digest)]
    secrets = key.unwrap(wrap, _wrap_info(sealed.digest, keyset_digest))
    if len(secrets) != 2 * SECRET_BYTES:
        raise UnopenableError
    derived = _Keys(secrets[:SECRET_BYTES])
    # Before anything is decrypted: one ciphertext must not open differently for two recipients.
    if not hmac.compare_digest(derived.commitment, sealed.header.kc):
        raise UnopenableError("the wrapped key is not the one that the header commits to")
    try:
        padded = AESGCM(derived.body(sealed.digest)).decrypt(bytes(12), sealed.ciphertext, _aad(sealed.digest))
    except InvalidTag as error:
        raise UnopenableError from error
    body = unpad(padded, request_bucket)
    return OpenedRequest(header=sealed.header, digest=sealed.digest, body=body, secret=secrets[SECRET_BYTES:])


def check_inner(
    header: SealedHeader, *, model: str, n: int, stream: bool, completion_each: int | None, manifest: bytes
) -> None:
    """Check that the sealed body asks for what its clear header says, and this worker serves the pinned manifest.

    `completion_each` is the largest completion of one choice that the body names, if it names one.

    Raises:
        MalformedError: they differ; the ticket would be for something else than what is done.
    """
    if (model, n, stream) != (header.model, header.n, header.stream):
        raise MalformedError("the sealed body asks for something else than its header says")
    if completion_each is not None and completion_each * n != header.max_completion:
        raise MalformedError("the sealed body has another maximum than its header")
    if header.manifest is not None and not hmac.compare_digest(header.manifest, manifest):
        raise MalformedError("the request is for another model manifest than the one served")


class ReplayedError(UnopenableError):
    """The job was executed before, or so many were that this cannot be known any more."""


class ReplayGuard:
    """The jobs of one keyset. It never forgets: full means that the keyset has to be replaced."""

    def __init__(self, jobs_max: int = 1 << 20) -> None:
        self._jobs_max = jobs_max
        self._seen: set[bytes] = set()

    def __contains__(self, job_id: bytes) -> bool:
        return job_id in self._seen

    @property
    def full(self) -> bool:
        """Whether it can remember no more."""
        return len(self._seen) >= self._jobs_max

    def admit(self, job_id: bytes) -> None:
        """Remember a job.

        Raises:
            ReplayedError: it was seen before, or the guard is full.
        """
        if job_id in self._seen or self.full:
            raise ReplayedError
        self._seen.add(job_id)


def request_bucket(length: int) -> int:
    """The padded length of a body of `length` bytes: 1, 4, 16, 64 KiB, then steps of 12.5 %, multiples of 1 KiB."""
    needed = length + 4
    for bucket in _BUCKETS:
        if needed <= bucket:
            return bucket
    bucket = _BUCKETS[-1]
    while bucket < needed:
        bucket = -(-bucket * 9 // 8 // 1024) * 1024
    return bucket


def pad(data: bytes, length: int) -> bytes:
    """`u32 length ‖ data ‖ zeros`, `length` bytes together."""
    return (struct.pack(">I", len(data)) + data).ljust(length, b"\0")


def unpad(padded: bytes, bucket: Callable[[int], int]) -> bytes:
    """The data of a padded plaintext, padded as `bucket` says and in no other way.

    Raises:
        UnopenableError: another length, or something in the padding.
    """
    size = int.from_bytes(padded[:4], "big")
    data, rest = padded[4 : 4 + size], padded[4 + size :]
    if len(padded) < 4 or len(data) != size or rest.strip(b"\0") or len(padded) != bucket(size):  # noqa: PLR2004  u32
        raise UnopenableError("the plaintext is not padded as it should be")
    return data


class _Keys:
    """What derives from the body's key (DEK)."""

    def __init__(self, key: bytes) -> None:
        self._extracted = HKDF.extract(SHA256(), b"cocoon/dek/1", key)

    @property
    def commitment(self) -> bytes:
        return HKDFExpand(SHA256(), SECRET_BYTES, b"kc").derive(self._extracted)

    def body(self, digest: bytes) -> bytes:
        return HKDFExpand(SHA256(), SECRET_BYTES, b"body" + digest).derive(self._extracted)


def _digest(clear: bytes) -> bytes:
    return hashlib.sha256(_SEALED_LABEL + clear).digest()


def _wrap_info(digest: bytes, keyset_digest: bytes) -> bytes:
    return _WRAP_LABEL + digest + keyset_digest


def _aad(digest: bytes) -> bytes:
    return _REQUEST + digest + bytes(8) + b"\x01"


def _public_key(raw: bytes) -> MLKEM768X25519PublicKey:
    try:
        if len(raw) != PUBLIC_KEY_BYTES:
            raise MalformedError("an X-Wing key has 1216 bytes")
        post_quantum = mlkem.MLKEM768PublicKey.from_public_bytes(raw[:1184])
        return MLKEM768X25519PublicKey(post_quantum, x25519.X25519PublicKey.from_public_bytes(raw[1184:]))
    except ValueError as error:
        raise MalformedError("not an X-Wing key") from error
