"""Sealed answers: frames under a key that one recipient and the client share (PROTOCOL §3).

On the wire: a prelude, frames `u32 length ‖ ciphertext`, and the end: `u32 0 ‖ u32 length ‖ clear trailer ‖ frame`. The
last frame authenticates that it is the last, its number and the trailer; the zero before it only says where to look.
Before the prelude a gateway may put zero bytes, which keep a waiting client's connection alive and mean nothing.
"""

import enum
import hashlib
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from cocoon.errors import MalformedError
from cocoon.sealed import SECRET_BYTES, TAG_BYTES, UnopenableError, pad, unpad

VERSION: Final = b"\x01"
KEEP_ALIVE: Final = b"\x00"
PRELUDE_BYTES: Final = 1 + 32 + 32
FRAME_BYTES_MAX: Final = 1024 * 1024
TRAILER_BYTES_MAX: Final = 64 * 1024
PAD_BYTES: Final = 256
DATA_BYTES_MAX: Final = FRAME_BYTES_MAX - 2 * PAD_BYTES
"""Data of one frame: with its length, padding and tag it is still a frame."""
_RESPONSE: Final = b"\x01"
_ROLL_LABEL: Final = b"cocoon/roll/1\x00"
_U32: Final = 4
_END: Final = bytes(_U32)


def answer_bucket(length: int) -> int:
    """The padded length of a frame of `length` bytes: multiples of 256."""
    return -(-(length + _U32) // PAD_BYTES) * PAD_BYTES


class AnswerSealer:
    """Seals one answer. `random` is RN: 32 bytes that are fresh for every execution, also of the same request."""

    def __init__(self, *, digest: bytes, keyset_digest: bytes, secret: bytes, random: bytes) -> None:
        if len(random) != SECRET_BYTES:
            raise ValueError("RN has 32 bytes")
        self._frames = _Frames(digest, keyset_digest, secret, random)
        self.prelude = VERSION + keyset_digest + random

    @property
    def rolling(self) -> bytes:
        """R_k: the hash over everything sealed so far but the last frame."""
        return self._frames.rolling

    def frame(self, data: bytes) -> bytes:
        """The wire bytes of the next frame."""
        assert len(data) <= DATA_BYTES_MAX, "the caller cuts its data"
        ciphertext = self._frames.seal(pad(data, answer_bucket(len(data))))
        return struct.pack(">I", len(ciphertext)) + ciphertext

    def final(self, data: bytes, trailer: bytes) -> bytes:
        """The wire bytes of the end; nothing follows."""
        ciphertext = self._frames.seal_last(pad(data, answer_bucket(len(data))), trailer)
        head = struct.pack(">II", 0, len(trailer)) + trailer
        return head + struct.pack(">I", len(ciphertext)) + ciphertext


class _Expected(enum.Enum):
    PRELUDE = enum.auto()
    FRAME = enum.auto()
    TRAILER = enum.auto()
    LAST = enum.auto()
    NOTHING = enum.auto()


class AnswerOpener:
    """Opens one answer as it arrives; it locks onto the first prelude. After an error nothing more is believed."""

    def __init__(self, *, digest: bytes, secrets: dict[bytes, bytes]) -> None:
        self._digest = digest
        self._secrets = secrets
        self._expected = _Expected.PRELUDE
        self._pending = bytearray()
        self._frames: _Frames | None = None
        self.keyset_digest = b""
        self.trailer = b""

    @property
    def rolling(self) -> bytes:
        """R_k over the frames opened so far; what the receipt has to say once the answer is complete."""
        return self._frames.rolling if self._frames else b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the frames that are complete now.

        Raises:
            UnopenableError: dropped, duplicated, reordered, altered, of somebody else, or after the end.
        """
        self._pending += chunk
        opened: list[bytes] = []
        try:
            while (part := self._next()) is not None:
                if part:
                    opened.append(part)
        except MalformedError:
            self._expected = _Expected.NOTHING
            self._pending = bytearray(b"broken")
            raise
        return opened

    def finish(self) -> None:
        """Nothing more arrives.

        Raises:
            UnopenableError: the last frame has not arrived.
        """
        if self._expected is not _Expected.NOTHING or self._pending:
            raise UnopenableError("the answer was cut off")

    def _next(self) -> bytes | None:
        if self._expected is _Expected.FRAME:  # first, because it is nearly all there is
            return self._frame()
        if not self._pending:
            return None
        match self._expected:
            case _Expected.PRELUDE:
                return self._prelude()
            case _Expected.TRAILER:
                return self._trailer()
            case _Expected.LAST:
                return self._last()
            case _Expected.NOTHING:
                raise UnopenableError("something follows the end of the answer")

    def _prelude(self) -> bytes | None:
        self._pending = self._pending.lstrip(KEEP_ALIVE)
        prelude = self._take(PRELUDE_BYTES)
        if prelude is None:
            return None
        keyset_digest, random = prelude[1:33], prelude[33:]
        secret = self._secrets.get(keyset_digest)
        if prelude[:1] != VERSION or secret is None:
            raise UnopenableError("the answer is of a keyset that the request was not sealed for")
        self.keyset_digest = keyset_digest
        self._frames = _Frames(self._digest, keyset_digest, secret, random)
        self._expected = _Expected.FRAME
        return b""

    def _trailer(self) -> bytes | None:
        trailer = self._sized(TRAILER_BYTES_MAX, 0)
        if trailer is None:
            return None
        self.trailer = trailer
        self._expected = _Expected.LAST
        return b""

    def _frame(self) -> bytes | None:
        if self._pending.startswith(_END):
            del self._pending[:_U32]
            self._expected = _Expected.TRAILER
            return b""
        ciphertext = self._sized(FRAME_BYTES_MAX, TAG_BYTES)
        if ciphertext is None:
            return None
        assert self._frames is not None, "the prelude came first"
        return unpad(self._frames.open(ciphertext), answer_bucket)

    def _last(self) -> bytes | None:
        ciphertext = self._sized(FRAME_BYTES_MAX, TAG_BYTES)
        if ciphertext is None:
            return None
        assert self._frames is not None, "the prelude came first"
        self._expected = _Expected.NOTHING
        return unpad(self._frames.open_last(ciphertext, self.trailer), answer_bucket)

    def _sized(self, largest: int, smallest: int) -> bytes | None:
        pending = self._pending
        if len(pending) < _U32:
            return None
        size = int.from_bytes(pending[:_U32], "big")
        if not smallest <= size <= largest:
            raise UnopenableError("a part of the answer has an impossible length")
        end = _U32 + size
        if len(pending) < end:
            return None
        part = bytes(pending[_U32:end])
        del pending[:end]
        return part

    def _take(self, count: int) -> bytes | None:
        if len(self._pending) < count:
            return None
        taken = bytes(self._pending[:count])
        del self._pending[:count]
        return taken


class _Frames:
    """Key, number and rolling hash of one answer, the same on both sides."""

    def __init__(self, digest: bytes, keyset_digest: bytes, secret: bytes, random: bytes) -> None:
        extracted = HKDF.extract(SHA256(), random + digest + keyset_digest, secret)
        self._aead = AESGCM(HKDFExpand(SHA256(), SECRET_BYTES, b"resp").derive(extracted))
        self._digest = digest
        self._number = 0
        self._ended = False
        self.rolling = hashlib.sha256(_ROLL_LABEL + digest + random).digest()

    def seal(self, padded: bytes) -> bytes:
        self._still_open()
        return self._rolled(self._aead.encrypt(self._nonce(), padded, self._aad(b"\x00")))

    def seal_last(self, padded: bytes, trailer: bytes) -> bytes:
        self._still_open()
        self._ended = True
        return self._aead.encrypt(self._nonce(), padded, self._aad(b"\x01") + hashlib.sha256(trailer).digest())

    def open(self, ciphertext: bytes) -> bytes:
        try:
            padded = self._aead.decrypt(self._nonce(), ciphertext, self._aad(b"\x00"))
        except InvalidTag as error:
            raise UnopenableError from error
        self._rolled(ciphertext)
        return padded

    def open_last(self, ciphertext: bytes, trailer: bytes) -> bytes:
        aad = self._aad(b"\x01") + hashlib.sha256(trailer).digest()
        try:
            return self._aead.decrypt(self._nonce(), ciphertext, aad)
        except InvalidTag as error:
            raise UnopenableError from error

    def _still_open(self) -> None:
        # A second frame under the last one's number would be a second message under one nonce.
        if self._ended:
            raise RuntimeError("the answer has been ended")

    def _nonce(self) -> bytes:
        return self._number.to_bytes(12, "big")

    def _aad(self, final: bytes) -> bytes:
        return _RESPONSE + self._digest + self._number.to_bytes(8, "big") + final

    def _rolled(self, ciphertext: bytes) -> bytes:
        self.rolling = hashlib.sha256(self.rolling + struct.pack(">I", len(ciphertext)) + ciphertext).digest()
        self._number += 1
        return ciphertext
