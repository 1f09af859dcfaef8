"""Ticket stubs: what the gateways must know of a lost attempt to charge it, carried by the worker that answered it.

The ticket's MAC key is shared with the agent, so a ticket alone proves nothing against its holder. The stub is sealed
(AES-256-GCM) under a key that only gateways can derive, over the ticket's exact bytes and the worker it was given to:
it proves that a gateway authorised this attempt at this worker, and says who pays for it and at which price. Nobody
else can read it, so a worker does not learn whose requests it serves.
"""

import hmac
import os
import uuid

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cocoon.canonical import base64url, from_base64url
from cocoon.errors import MalformedError
from cocoon.money import Price

_KEY_LABEL = b"cocoon/ticket-stub/1\x00"
_NONCE_BYTES = 12
_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")


class Stub(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """Who pays for an attempt, and at which price; the maxima stand in the ticket."""

    customer_id: uuid.UUID
    key_id: uuid.UUID
    model: str
    price: Price


_decoder = msgspec.msgpack.Decoder(Stub)


def stub_key(network_secret: bytes, keyset_digest: bytes) -> AESGCM:
    """The key for one keyset's stubs: a keyset has at most 2^20 jobs, so that random nonces do not meet."""
    return AESGCM(hmac.digest(network_secret, _KEY_LABEL + keyset_digest, "sha256"))


def seal_stub(key: AESGCM, worker_id: uuid.UUID, ticket: bytes, stub: Stub) -> str:
    """The value of the stub header."""
    nonce = os.urandom(_NONCE_BYTES)
    return base64url(nonce + key.encrypt(nonce, _encoder.encode(stub), worker_id.bytes + ticket))


def open_stub(key: AESGCM, worker_id: uuid.UUID, ticket: bytes, text: str) -> Stub:
    """The stub that a gateway sealed for exactly this ticket and worker.

    Raises:
        MalformedError: it did not.
    """
    sealed = from_base64url(text)
    try:
        opened = key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], worker_id.bytes + ticket)
        return _decoder.decode(opened)
    except (InvalidTag, ValueError, msgspec.MsgspecError) as error:
        raise MalformedError("the stub is not of this ticket and worker") from error
