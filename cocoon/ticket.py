"""Tickets: the gateway's authorisation of one attempt at one worker (PROTOCOL §2).

125 bytes, big-endian, authenticated by HMAC-SHA256 under a key that only the gateway and one worker keyset know.
The batched Ed25519 signature over many tickets (`cocoon.signed_batch`) covers the same bytes.
"""

import hashlib
import hmac
import struct
import uuid

import msgspec

from cocoon.canonical import base64url, from_base64url
from cocoon.errors import MalformedError

_MAGIC = b"CTK1"
_LAYOUT = struct.Struct(">4s i 32s 16s B 16s I I I Q 32s")
TICKET_BYTES = 125
_MAC_BYTES = 32
_DIGEST_BYTES = 32
_PLAIN_LABEL = b"cocoon/plain/1\x00"
_KEY_LABEL = b"cocoon/ticket-key/1\x00"

assert _LAYOUT.size == TICKET_BYTES


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one attempt may cost and until when. Token maxima are totals over `n`; `not_after` is Unix seconds.

    `stake` is the account hash of the worker's stake contract (zeros until it has one), `lease` the lease or hold
    that pays, `request_digest` binds the exact bytes of the request.
    """

    global_id: int
    stake: bytes
    job_id: uuid.UUID
    attempt: int
    lease: uuid.UUID
    price_version: int
    max_prompt: int
    max_completion: int
    not_after: int
    request_digest: bytes

    def __post_init__(self) -> None:
        # struct would pad or cut a field of another length without a word.
        if not len(self.stake) == len(self.request_digest) == _DIGEST_BYTES:
            raise ValueError("stake and request digest have 32 bytes")

    def encode(self) -> bytes:
        """The 125 bytes."""
        return _LAYOUT.pack(
            _MAGIC, self.global_id, self.stake, self.job_id.bytes, self.attempt, self.lease.bytes,
            self.price_version, self.max_prompt, self.max_completion, self.not_after, self.request_digest,
        )  # fmt: skip

    @staticmethod
    def decode(raw: bytes) -> "Ticket":
        """Parse 125 bytes.

        Raises:
            MalformedError: wrong length or magic.
        """
        if len(raw) != TICKET_BYTES or not raw.startswith(_MAGIC):
            raise MalformedError("not a CTK1 ticket")
        (_, global_id, stake, job, attempt, lease, version, prompt, completion, not_after, digest) = _LAYOUT.unpack(raw)
        return Ticket(
            global_id=global_id, stake=stake, job_id=uuid.UUID(bytes=job), attempt=attempt,
            lease=uuid.UUID(bytes=lease), price_version=version, max_prompt=prompt, max_completion=completion,
            not_after=not_after, request_digest=digest,
        )  # fmt: skip


def plain_request_digest(body: bytes) -> bytes:
    """`request_digest` of a request that is not sealed."""
    return hashlib.sha256(_PLAIN_LABEL + body).digest()


def ticket_key(network_secret: bytes, keyset_digest: bytes) -> bytes:
    """The MAC key shared with one keyset. Every replica derives the same; a new keyset has a new key."""
    return hmac.digest(network_secret, _KEY_LABEL + keyset_digest, "sha256")


def seal_ticket(key: bytes, ticket: Ticket) -> str:
    """The value of the ticket header: base64url of ticket and MAC."""
    raw = ticket.encode()
    return base64url(raw + hmac.digest(key, raw, "sha256"))


def open_ticket(key: bytes, header: str) -> tuple[Ticket, bytes]:
    """The ticket in a header and its exact bytes.

    Raises:
        MalformedError: not a ticket, or not authenticated by `key`.
    """
    sealed = from_base64url(header)
    raw, mac = sealed[:TICKET_BYTES], sealed[TICKET_BYTES:]
    if len(mac) != _MAC_BYTES or not hmac.compare_digest(mac, hmac.digest(key, raw, "sha256")):
        raise MalformedError("the ticket is not authentic")
    return Ticket.decode(raw), raw


def open_unverified(header: str) -> bytes:
    """The exact bytes of the ticket in a header that was verified before; its MAC is not looked at.

    Raises:
        MalformedError: not a ticket.
    """
    raw = from_base64url(header)[:TICKET_BYTES]
    Ticket.decode(raw)
    return raw
