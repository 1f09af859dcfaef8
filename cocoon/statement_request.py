"""How a gateway asks a worker for evidence with somebody's nonce: `POST /v1/statement` at the agent.

Making a quote costs the platform tens of milliseconds, so only a gateway that the worker enrolled with may ask: the
request is authenticated by the key that authenticates tickets. The answer is the bytes of `attestation.Evidence`.
"""

import hmac
from typing import Annotated

import msgspec

from cocoon.enrolment import Digest
from cocoon.errors import MalformedError

STATEMENT_PATH = "/v1/statement"
REQUEST_BYTES_MAX = 1024
LIFETIME_S = 60
_LABEL = b"cocoon/statement-request/1\x00"


class StatementRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence for this keyset and nonce, asked for no later than `not_after` (Unix seconds)."""

    keyset_digest: Digest
    nonce: Digest
    not_after: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    mac: Digest

    def encode(self) -> bytes:
        """The JSON."""
        return msgspec.json.encode(self)

    def authentic(self, key: bytes) -> bool:
        """Whether whoever knows the ticket key asks this."""
        return hmac.compare_digest(self.mac, _mac(key, self.keyset_digest, self.nonce, self.not_after))


def statement_request(key: bytes, *, keyset_digest: bytes, nonce: bytes, not_after: int) -> StatementRequest:
    """A request under a ticket key."""
    mac = _mac(key, keyset_digest, nonce, not_after)
    return StatementRequest(keyset_digest=keyset_digest, nonce=nonce, not_after=not_after, mac=mac)


def read_statement_request(raw: bytes) -> StatementRequest:
    """The request in a body; it is not verified yet.

    Raises:
        MalformedError: not a request.
    """
    try:
        return msgspec.json.decode(raw, type=StatementRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedError("not a request for a statement") from error


def _mac(key: bytes, keyset_digest: bytes, nonce: bytes, not_after: int) -> bytes:
    return hmac.digest(key, _LABEL + keyset_digest + nonce + not_after.to_bytes(8, "big"), "sha256")
