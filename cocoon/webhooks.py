"""Signed webhooks in the form of the Standard Webhooks specification (standardwebhooks.com), version 1.

The signature is HMAC-SHA256 over `id.timestamp.body` under a secret that both sides know. Retries have the same id and
body and a timestamp of their own. Pure: nothing is sent here.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

from cocoon.errors import MalformedError

SECRET_PREFIX = "whsec_"  # noqa: S105  the mark of a secret, not one
SECRET_BYTES = 32
TOLERANCE_S = 300
"""How far a timestamp may lie from the receiver's clock: an older signature is a replay."""
ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"
_VERSION = "v1"


def secret_text(secret: bytes) -> str:
    """The secret as people keep it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def signed_headers(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a message that is sent at Unix second `timestamp`."""
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: f"{_VERSION},{_signature(secret, message_id, str(timestamp), body)}",
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> str:
    """The id of an authentic message; who has seen it before has done its work. `now` is Unix seconds.

    Raises:
        MalformedError: it is not signed with this secret, or its timestamp is further than `TOLERANCE_S` away.
    """
    found = {name.lower(): value for name, value in headers.items()}
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        message_id, timestamp, signatures = (found[name] for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
        sent_at = int(timestamp)
    except (KeyError, ValueError, binascii.Error) as error:
        raise MalformedError("a header is missing or malformed") from error
    expected = _signature(key, message_id, timestamp, body).encode()
    offered = [part.partition(",") for part in signatures.split(" ")]
    if not any(v == _VERSION and hmac.compare_digest(given.encode(), expected) for v, _, given in offered):
        raise MalformedError("the signature is not of this message")
    if abs(now - sent_at) > TOLERANCE_S:
        raise MalformedError("the timestamp is not of this time")
    return message_id


def _signature(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    signed = f"{message_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
