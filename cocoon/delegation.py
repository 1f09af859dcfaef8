"""Delegations: the operator's key names the keys that its gateways sign with, so that it can stay offline.

The signed statement is 56 bytes, big-endian, `"CGD1" ‖ global_id4 ‖ gateway_pk32 ‖ not_before8 ‖ not_after8` (Unix
seconds). It is carried with the operator's public key before it and the Ed25519 signature behind it: 152 bytes.
"""

import struct

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cocoon.errors import MalformedError
from cocoon.receipt import is_strong_key

_MAGIC = b"CGD1"
_LAYOUT = struct.Struct(">4s i 32s Q Q")
KEY_BYTES = 32
SIGNATURE_BYTES = 64
DELEGATION_BYTES = KEY_BYTES + _LAYOUT.size + SIGNATURE_BYTES
DELEGATION_S_MAX = 366 * 24 * 3600
"""Longest validity: a key that was lost must not sign for ever."""

assert DELEGATION_BYTES == 152  # noqa: PLR2004  what the module's docstring says


class Delegation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may sign for an operator on one network, and when."""

    global_id: int
    gateway_key: bytes
    not_before: int
    not_after: int

    def encode(self) -> bytes:
        """The 56 bytes that the operator signs."""
        return _LAYOUT.pack(_MAGIC, self.global_id, self.gateway_key, self.not_before, self.not_after)


def delegate(operator: Ed25519PrivateKey, delegation: Delegation) -> bytes:
    """The delegation as it is carried, signed."""
    statement = delegation.encode()
    return operator.public_key().public_bytes_raw() + statement + operator.sign(statement)


def operator_of(carried: bytes) -> bytes:
    """The operator's public key that a carried delegation claims.

    Raises:
        MalformedError: not a delegation.
    """
    _statement(carried)
    return carried[:KEY_BYTES]


def open_delegation(carried: bytes, *, operator_key: bytes, global_id: int, now_s: float) -> Delegation:
    """What `operator_key` has delegated, if it holds on this network at Unix time `now_s`.

    Raises:
        MalformedError: malformed, by somebody else, for another network, for too long, or not valid now.
    """
    delegation = _statement(carried)
    if carried[:KEY_BYTES] != operator_key:
        raise MalformedError("the delegation is of another operator")
    verify_signature(operator_key, carried[KEY_BYTES:-SIGNATURE_BYTES], carried[-SIGNATURE_BYTES:])
    if delegation.global_id != global_id:
        raise MalformedError("the delegation is for another network")
    if not is_strong_key(delegation.gateway_key):
        raise MalformedError("the delegated key proves nothing")
    if not 0 < delegation.not_after - delegation.not_before <= DELEGATION_S_MAX:
        raise MalformedError("the delegation's validity is out of range")
    if not delegation.not_before <= now_s < delegation.not_after:
        raise MalformedError("the delegation is not valid now")
    return delegation


def verify_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        MalformedError: it does not verify, or anything would under this key.
    """
    if not is_strong_key(public_key):
        raise MalformedError("not a usable Ed25519 key")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise MalformedError("the signature does not verify") from error


def _statement(carried: bytes) -> Delegation:
    if len(carried) != DELEGATION_BYTES or not carried.startswith(_MAGIC, KEY_BYTES):
        raise MalformedError("not a CGD1 delegation")
    _, global_id, key, not_before, not_after = _LAYOUT.unpack_from(carried, KEY_BYTES)
    return Delegation(global_id=global_id, gateway_key=key, not_before=not_before, not_after=not_after)
