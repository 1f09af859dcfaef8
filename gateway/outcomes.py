"""Answers at rest: recorded while they are sent, sealed so that only the API key's holder can open them (PROTOCOL §7).

Everything that the store sees is derived from the API key, of which the server keeps only the hash: tags (MACs) instead
of the Idempotency-Key and the body, so that a row can neither be read nor be tested against a guessed prompt, and
ciphertext instead of the answer. Another API key, of the same customer too, never finds or opens it.
"""

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cocoon.errors import MalformedError

OUTCOME_BYTES_MAX = 1024 * 1024
"""Longest body that is kept; a longer answer is charged and not replayed."""
_NONCE_BYTES = 12
_SEAL_INFO = b"cocoon/outcome/1\x00"
_KEY_LABEL = b"cocoon/idempotency/key/1\x00"
_BODY_LABEL = b"cocoon/idempotency/body/1\x00"
_KEPT_HEADERS = b"x-cocoon-"
"""Who answered, with which receipt. Limits and times are of the moment and not of the outcome."""


class Outcome(msgspec.Struct, frozen=True):
    """A completed answer as it was sent: a stream or a document, the headers that belong to it, and its bytes."""

    stream: bool
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class OutcomeRoom:
    """Bytes of outcomes that a process holds at once: recorded, on their way to the store, or being replayed."""

    def __init__(self, total_max: int) -> None:
        self._left = total_max

    @property
    def left(self) -> int:
        """Bytes that can still be taken."""
        return self._left

    def take(self, count: int) -> bool:
        """Hold `count` bytes more; False when there is no room for them."""
        if count > self._left:
            return False
        self._left -= count
        return True

    def give_back(self, count: int) -> None:
        """Bytes that are held no more."""
        self._left += count


class Recording:
    """Collects the first answer of an exchange as it is sent, within `OUTCOME_BYTES_MAX` and the room there is."""

    def __init__(self, room: OutcomeRoom) -> None:
        self._room = room
        self._headers: tuple[tuple[bytes, bytes], ...] | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._stream = False
        self._whole = False
        self._given_up = False

    def begin(self, headers: Iterable[tuple[bytes, bytes]], *, stream: bool) -> None:
        """An answer begins. What follows a whole one is not part of it."""
        if self._headers is None:
            self._headers = tuple(header for header in headers if header[0].startswith(_KEPT_HEADERS))
            self._stream = stream

    def add(self, data: bytes, *, last: bool) -> None:
        """The next bytes of the body, whether or not the client takes them."""
        if self._whole or self._given_up:
            return
        self._whole = last
        if self._size + len(data) > OUTCOME_BYTES_MAX or not self._room.take(len(data)):
            self.close()
            return
        self._size += len(data)
        self._parts.append(data)

    @property
    def outcome(self) -> Outcome | None:
        """The whole answer; None when it is not whole or was too long to keep."""
        if self._headers is None or not self._whole or self._given_up:
            return None
        return Outcome(stream=self._stream, headers=self._headers, body=b"".join(self._parts))

    def close(self) -> None:
        """Keep nothing, from now on."""
        self._room.give_back(self._size)
        self._size = 0
        self._parts.clear()
        self._given_up = True


class Turn:
    """A request that runs under an Idempotency-Key: what the store knows it by, and its answer so far.

    A plain class, so that no repr shows what it is sealed under.
    """

    __slots__ = ("_secret", "body_tag", "customer_id", "job_id", "key_id", "key_tag", "model", "recording")

    def __init__(
        self, secret: bytes, key: bytes, path: str, body: bytes, *, job_id: uuid.UUID, customer_id: uuid.UUID,
        key_id: uuid.UUID, model: str, room: OutcomeRoom,
    ) -> None:  # fmt: skip
        self._secret = secret
        self.key_tag = hmac.digest(secret, _KEY_LABEL + key, "sha256")
        self.body_tag = _body_tag(secret, path, body)
        self.job_id = job_id
        self.customer_id = customer_id
        self.key_id = key_id
        self.model = model
        self.recording = Recording(room)

    def seal(self, outcome: Outcome) -> bytes:
        """AES-256-GCM under HKDF(API key, this job): nonce, then ciphertext."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        bound = self._bound(self.job_id)
        return nonce + _cipher(self._secret, self.job_id).encrypt(nonce, msgspec.msgpack.encode(outcome), bound)

    def open(self, sealed: bytes, job_id: uuid.UUID) -> Outcome:
        """The outcome of an earlier job under the same key and body.

        Raises:
            MalformedError: another API key, job, Idempotency-Key or body sealed it, or it was altered.
        """
        try:
            plain = _cipher(self._secret, job_id).decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self._bound(job_id)
            )
            return msgspec.msgpack.decode(plain, type=Outcome)
        except (InvalidTag, ValueError, msgspec.DecodeError) as error:
            raise MalformedError("the stored outcome does not open under this API key") from error

    def _bound(self, job_id: uuid.UUID) -> bytes:
        return job_id.bytes + self.key_tag + self.body_tag


def _body_tag(secret: bytes, path: str, body: bytes) -> bytes:
    mac = hmac.new(secret, _BODY_LABEL + path.encode() + b"\x00", hashlib.sha256)
    mac.update(body)
    return mac.digest()


def _cipher(secret: bytes, job_id: uuid.UUID) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt=job_id.bytes, info=_SEAL_INFO).derive(secret))
