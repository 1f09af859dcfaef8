"""Signed checkpoints of a log: C2SP signed-note and tlog-checkpoint, with Ed25519.

A note is text that ends with a newline, an empty line, and signature lines `— NAME BASE64(key id4 ‖ signature)`. The
key id of an Ed25519 key is the first four bytes of SHA-256(`NAME` ‖ 0x0a ‖ 0x01 ‖ public key). A checkpoint's text is
three lines: origin, size in decimal, root hash in base64. Both specifications are at c2sp.org. Lines that a later
version adds to the text are signed and kept, and signatures by other keys (witnesses) are left to who knows them.
"""

import base64
import binascii
import hashlib
import re

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.delegation import KEY_BYTES, SIGNATURE_BYTES, verify_signature
from cocoon.errors import MalformedError
from cocoon.merkle import HASH_BYTES

NOTE_CHARS_MAX = 64 * 1024
SIGNATURES_MAX = 100
SIZE_MAX = 2**63 - 1
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_KEY_ID = re.compile(r"[0-9a-f]{8}")


def is_key_name(text: str) -> bool:
    """Whether notes can be signed under this name: no white space, no plus sign."""
    return _NAME.fullmatch(text) is not None


def key_id(name: str, public_key: bytes) -> bytes:
    """The four bytes that say which Ed25519 key a signature line is by."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:_KEY_ID_BYTES]


class NoteVerifier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name and an Ed25519 public key that notes are verified with."""

    name: str
    public_key: bytes

    @property
    def text(self) -> str:
        """`NAME+KEYID+BASE64(0x01 ‖ key)`, as C2SP writes verifier keys."""
        encoded = base64.b64encode(_ED25519 + self.public_key).decode()
        return f"{self.name}+{key_id(self.name, self.public_key).hex()}+{encoded}"

    @staticmethod
    def parse(text: str) -> "NoteVerifier":
        """The key in a text.

        Raises:
            MalformedError: not an Ed25519 verifier key, or its id is another key's.
        """
        name, _, rest = text.partition("+")
        number, _, encoded = rest.partition("+")
        raw = _from_base64(encoded)
        public_key = raw[len(_ED25519) :]
        if not is_key_name(name) or not raw.startswith(_ED25519) or len(public_key) != KEY_BYTES:
            raise MalformedError("not an Ed25519 verifier key")
        if _KEY_ID.fullmatch(number) is None or bytes.fromhex(number) != key_id(name, public_key):
            raise MalformedError("the verifier key's id is of another key")
        return NoteVerifier(name=name, public_key=public_key)

    def open(self, note: str) -> str:
        """The text of a note that this key has signed.

        Raises:
            MalformedError: not a note, or no valid signature by this key.
        """
        text, signatures = _parts(note)
        wanted = key_id(self.name, self.public_key)
        found = [raw for name, raw in signatures if name == self.name and raw.startswith(wanted)]
        if not found:
            raise MalformedError("the note is not signed by this key")
        for raw in found:
            if len(raw) != _KEY_ID_BYTES + SIGNATURE_BYTES:
                raise MalformedError("a signature line has another length")
            verify_signature(self.public_key, text.encode(), raw[_KEY_ID_BYTES:])
        return text


class NoteSigner:
    """A name and the private key that signs notes under it.

    Raises:
        MalformedError: no note can be signed under this name.
    """

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        if not is_key_name(name):
            raise MalformedError("a note's key name has no white space and no plus sign")
        self._key = key
        self.verifier = NoteVerifier(name=name, public_key=key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """The note of a text that ends with a newline.

        Raises:
            MalformedError: the text has a form that no note has.
        """
        _require_text(text)
        verifier = self.verifier
        raw = key_id(verifier.name, verifier.public_key) + self._key.sign(text.encode())
        return f"{text}\n— {verifier.name} {base64.b64encode(raw).decode()}\n"


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a log says about itself: at `size` entries its root is `root`."""

    origin: str
    size: int
    root: bytes

    def encode(self) -> str:
        """The text that is signed."""
        assert len(self.root) == HASH_BYTES, "a root has 32 bytes"
        assert 0 <= self.size <= SIZE_MAX, "sizes are not negative"
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @staticmethod
    def decode(text: str) -> "Checkpoint":
        """Parse a checkpoint's text; lines after the third are somebody else's.

        Raises:
            MalformedError: not a checkpoint.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or "" in lines[:-1]:  # noqa: PLR2004  three lines and the end of the last
            raise MalformedError("not a checkpoint")
        origin, size, encoded = lines[:3]
        root = _from_base64(encoded)
        if _SIZE.fullmatch(size) is None or int(size) > SIZE_MAX or len(root) != HASH_BYTES:
            raise MalformedError("not a checkpoint")
        return Checkpoint(origin=origin, size=int(size), root=root)


def open_checkpoint(note: str, verifier: NoteVerifier, *, origin: str) -> Checkpoint:
    """The checkpoint that this key has signed about this log.

    Raises:
        MalformedError: it has not.
    """
    checkpoint = Checkpoint.decode(verifier.open(note))
    if checkpoint.origin != origin:
        raise MalformedError("the checkpoint is of another log")
    return checkpoint


def _parts(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The text and the signature lines; the last empty line divides them."""
    if len(note) > NOTE_CHARS_MAX:
        raise MalformedError("the note is too long")
    at = note.rfind("\n\n")
    if at < 0 or not note.endswith("\n"):
        raise MalformedError("not a signed note")
    text, lines = note[: at + 1], note[at + 2 : -1].split("\n")
    _require_text(text)
    if len(lines) > SIGNATURES_MAX:
        raise MalformedError("the note has too many signatures")
    return text, [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes]:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    raw = _from_base64(encoded)
    if dash != "—" or not is_key_name(name) or len(raw) <= _KEY_ID_BYTES:
        raise MalformedError("not a signature line")
    return name, raw


def _require_text(text: str) -> None:
    if not text.endswith("\n") or any(character < " " and character != "\n" for character in text):
        raise MalformedError("a note's text ends with a newline and has no other control characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedError("a note's text is Unicode") from error


def _from_base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError("not base64") from error
    if base64.b64encode(raw).decode() != text:
        raise MalformedError("not base64")
    return raw
