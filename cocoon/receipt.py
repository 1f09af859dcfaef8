"""Receipts: what a worker signs about one answer (PROTOCOL §4).

The head is 124 bytes, small enough to be judged by a contract. The body commits to request and response; only who
holds the salt can open the commitments.
"""

import hashlib
import hmac
import struct

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cocoon import canonical
from cocoon.errors import MalformedError
from cocoon.usage import TokenUsage

HEAD_MAGIC = b"CRH1"
_LAYOUT = struct.Struct(">4s i 32s Q 32s 32s I I I")
HEAD_BYTES = 124
BODY_BYTES_MAX = 4096
_DIGEST_BYTES = 32
_INT32_MIN = -(2**31)
SEAL_PLAIN = "plain"
SEAL_SEALED = "sealed"
NO_STAKE = bytes(_DIGEST_BYTES)
"""`stake32` of a worker without a stake contract."""

# The points of order 1, 2, 4 and 8 with their sign bit cleared, and the encodings above the field's prime that
# decoders reduce to them. The tests multiply each by eight.
_SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)

assert _LAYOUT.size == HEAD_BYTES


class ReceiptHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signed part. `seq` is dense per receipt key."""

    global_id: int
    stake: bytes
    seq: int
    ticket_sha256: bytes
    body_sha256: bytes
    usage: TokenUsage

    def __post_init__(self) -> None:
        # struct would pad or cut a field of another length without a word.
        if not len(self.stake) == len(self.ticket_sha256) == len(self.body_sha256) == _DIGEST_BYTES:
            raise ValueError("stake and digests have 32 bytes")
        if not (_INT32_MIN <= self.global_id < -_INT32_MIN and 0 <= self.seq < 2**64):
            raise ValueError("global_id is a signed 32-bit integer, seq an unsigned 64-bit one")

    def encode(self) -> bytes:
        """The 124 bytes that are signed."""
        return _LAYOUT.pack(
            HEAD_MAGIC, self.global_id, self.stake, self.seq, self.ticket_sha256, self.body_sha256,
            self.usage.prompt, self.usage.cached, self.usage.completion,
        )  # fmt: skip

    @staticmethod
    def decode(raw: bytes) -> "ReceiptHead":
        """Parse 124 bytes.

        Raises:
            MalformedError: wrong length or magic, or impossible counts.
        """
        if len(raw) != HEAD_BYTES or not raw.startswith(HEAD_MAGIC):
            raise MalformedError("not a CRH1 receipt head")
        _, global_id, stake, seq, ticket, body, prompt, cached, completion = _LAYOUT.unpack(raw)
        try:
            usage = TokenUsage(prompt=prompt, cached=cached, completion=completion)
        except ValueError as error:
            raise MalformedError(str(error)) from error
        return ReceiptHead(
            global_id=global_id, stake=stake, seq=seq, ticket_sha256=ticket, body_sha256=body, usage=usage
        )


class ReceiptBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The part that is kept off-chain, in canonical encoding. Times are Unix milliseconds.

    `seal` is `plain` or `sealed`. Of a sealed request, `sealed_digest` is H and `rolling` the final R_k (PROTOCOL §3);
    of others both are left out.
    """

    v: int
    receipt_id: str
    attempt: int
    keyset_digest: bytes
    model_manifest_sha256: bytes
    tee_type: str
    seal: str
    c_req: bytes
    c_resp: bytes
    finish_reason: str
    started_ms: int
    ended_ms: int
    sealed_digest: bytes | None = None
    rolling: bytes | None = None


def encode_body(body: ReceiptBody) -> bytes:
    """Canonical bytes, at most `BODY_BYTES_MAX`.

    Raises:
        MalformedError: the body is too long.
    """
    raw = canonical.encode(body)
    if len(raw) > BODY_BYTES_MAX:
        raise MalformedError("the receipt body is too long")
    return raw


def sign(key: Ed25519PrivateKey, head: bytes) -> bytes:
    """Ed25519 over the head's exact bytes."""
    return key.sign(head)


def verify(public_key: bytes, head: bytes, signature: bytes) -> None:
    """Check the signature over the head's exact bytes.

    Raises:
        MalformedError: the key or the signature is not valid, or the key is one under which anything verifies.
    """
    if not is_strong_key(public_key):
        raise MalformedError("the receipt key is not a usable Ed25519 key")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, head)
    except (InvalidSignature, ValueError) as error:
        raise MalformedError("the receipt signature does not verify") from error


def is_strong_key(public_key: bytes) -> bool:
    """Whether an Ed25519 key is not of small order.

    OpenSSL accepts the identity and its kin, and under those one signature fits every message: who enrolled such a
    key could disown whatever it signed.
    """
    if len(public_key) != _DIGEST_BYTES:
        return False
    return public_key[:31] + bytes((public_key[31] & 0x7F,)) not in _SMALL_ORDER


def body_digest(body: bytes) -> bytes:
    """`body_sha256` of a head."""
    return hashlib.sha256(body).digest()


class Commitment:
    """HMAC commitments to a request and its answer, fed as the answer is delivered.

    The salt of a plain request is the client's or the agent's; that of a sealed one is RS_i.
    """

    def __init__(self, salt: bytes) -> None:
        key = HKDF(SHA256(), 32, salt=b"cocoon/commit/1", info=b"kc").derive(salt)
        self._request = hmac.new(key, b"\x00", "sha256")
        self._response = hmac.new(key, b"\x01", "sha256")

    def request(self, body: bytes) -> None:
        """Feed the client's body."""
        self._request.update(body)

    def response(self, payload: bytes) -> None:
        """Feed the next delivered data payload; comments and the usage chunk are left out (PROTOCOL §4)."""
        self._response.update(payload)

    @property
    def c_req(self) -> bytes:
        """The commitment to what was fed with `request` so far."""
        return self._request.digest()

    @property
    def c_resp(self) -> bytes:
        """The commitment to what was fed with `response` so far."""
        return self._response.digest()
