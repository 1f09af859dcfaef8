"""TON Connect's `ton_proof`: a wallet's signature over a domain, a time and our challenge.

Source: TON Connect's "Signing and verification" (docs.ton.org, ton_proof). The signed digest is

    m = "ton-proof-item-v2/" ‖ int32 workchain (big-endian) ‖ account32 ‖ u32 length of the domain (little-endian)
        ‖ domain ‖ u64 timestamp (little-endian) ‖ payload
    SHA256(ff ff ‖ "ton-connect" ‖ SHA256(m))

The key is the one in the wallet's state init, which hashes to its address. Where a wallet's key was changed since, only
the chain knows the present one: `WalletKeys` asks it, for gateways that have one to ask.
"""

import hashlib
import struct
from collections.abc import Collection
from typing import Annotated, ClassVar, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.delegation import verify_signature
from cocoon.errors import CocoonError, MalformedError
from cocoon.wallets import Address, StateInit, UnknownWalletError, is_known_code, read_state_init

PROOF_AGE_S_MAX = 600
"""How long ago the wallet may have signed."""
CLOCK_SKEW_S_MAX = 60
"""How far a wallet's clock may be ahead of ours."""
DOMAIN_BYTES_MAX = 128
PAYLOAD_CHARS_MAX = 128
_SIGNATURE_BYTES = 64
_PREFIX = b"\xff\xffton-connect"
_ITEM = b"ton-proof-item-v2/"


class ProofRefusedError(CocoonError):
    """The wallet's proof is not accepted."""

    code: ClassVar[str] = "ton_proof_refused"


class ForeignDomainError(ProofRefusedError):
    """The wallet signed for another domain."""

    code: ClassVar[str] = "ton_proof_domain"


class ProofTimeError(ProofRefusedError):
    """The wallet signed too long ago, or in the future."""

    code: ClassVar[str] = "ton_proof_expired"


class ForeignChallengeError(ProofRefusedError):
    """The wallet signed another challenge."""

    code: ClassVar[str] = "ton_proof_challenge"


class ForeignStateInitError(ProofRefusedError):
    """The state init is not that of the address; a wallet with a changed key needs its key read from the chain."""

    code: ClassVar[str] = "ton_proof_state_init"


class ProofSignatureError(ProofRefusedError):
    """The signature does not verify under the wallet's key."""

    code: ClassVar[str] = "ton_proof_signature"


class Domain(msgspec.Struct, frozen=True, rename="camel"):
    """Whom the wallet believed to talk to; `length_bytes` counts UTF-8."""

    length_bytes: int
    value: Annotated[str, msgspec.Meta(max_length=DOMAIN_BYTES_MAX)]


class TonProof(msgspec.Struct, frozen=True):
    """The `proof` of a wallet's answer, with its own names; bytes are base64 in JSON. `timestamp` is Unix seconds."""

    timestamp: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    domain: Domain
    signature: Annotated[bytes, msgspec.Meta(min_length=_SIGNATURE_BYTES, max_length=_SIGNATURE_BYTES)]
    payload: Annotated[str, msgspec.Meta(max_length=PAYLOAD_CHARS_MAX)]


class ProvenWallet(msgspec.Struct, frozen=True):
    """A wallet whose owner has just signed."""

    address: Address
    public_key: bytes


class OnChainWallet(msgspec.Struct, frozen=True):
    """A deployed wallet as the chain has it now: the hash of its code, and what `get_public_key` says."""

    code_hash: bytes
    public_key: bytes


class WalletKeys(Protocol):
    """Wallets as they are on the chain. The liteserver's adapter comes with the chain's reader."""

    async def wallet(self, address: Address) -> OnChainWallet | None:
        """The wallet at the last verified block; None where nothing is deployed or it has no such method."""
        ...


def proof_digest(address: Address, domain: str, timestamp: int, payload: str) -> bytes:
    """The 32 bytes that the wallet signs."""
    name = domain.encode()
    message = (
        _ITEM
        + struct.pack(">i", address.workchain)
        + address.account
        + struct.pack("<I", len(name))
        + name
        + struct.pack("<Q", timestamp)
        + payload.encode()
    )
    return hashlib.sha256(_PREFIX + hashlib.sha256(message).digest()).digest()


def sign_proof(key: Ed25519PrivateKey, address: Address, *, domain: str, timestamp: int, payload: str) -> TonProof:
    """What a wallet app does when its owner agrees."""
    signature = key.sign(proof_digest(address, domain, timestamp, payload))
    return TonProof(timestamp, Domain(len(domain.encode()), domain), signature, payload)


def verify_proof(
    proof: TonProof, address: Address, state_init: bytes, *, domains: Collection[str], payload: str, now_s: float
) -> ProvenWallet:
    """The wallet that signed `payload` for one of `domains` about now, by the key in its state init.

    Raises:
        ForeignDomainError: for another domain, or one whose length is misstated.
        ProofTimeError: more than `PROOF_AGE_S_MAX` ago, or ahead of our clock.
        ForeignChallengeError: another payload.
        WalletError: the state init is not that of a wallet that we know.
        ForeignStateInitError: it is one, of another address.
        ProofSignatureError: the signature does not verify, or anything would under this key.
    """
    _require_meant(proof, domains=domains, payload=payload, now_s=now_s)
    return _signed(proof, address, _key_of(address, read_state_init(state_init)))


async def prove_wallet(
    proof: TonProof, address: Address, state_init: bytes, *, domains: Collection[str], payload: str, now_s: float,
    keys: WalletKeys | None,
) -> ProvenWallet:  # fmt: skip
    """As `verify_proof`; where the state init does not prove it, by the key that the chain has, if there is one to ask.

    Raises:
        CocoonError: what `verify_proof` raises.
    """
    _require_meant(proof, domains=domains, payload=payload, now_s=now_s)
    try:
        return _signed(proof, address, _key_of(address, read_state_init(state_init)))
    except (UnknownWalletError, ForeignStateInitError, ProofSignatureError):
        current = None if keys is None else await keys.wallet(address)
        if current is None:
            raise
    if not is_known_code(current.code_hash):
        raise UnknownWalletError
    return _signed(proof, address, current.public_key)


def _require_meant(proof: TonProof, *, domains: Collection[str], payload: str, now_s: float) -> None:
    if proof.domain.value not in domains or proof.domain.length_bytes != len(proof.domain.value.encode()):
        raise ForeignDomainError
    if not now_s - PROOF_AGE_S_MAX <= proof.timestamp <= now_s + CLOCK_SKEW_S_MAX:
        raise ProofTimeError
    if proof.payload != payload:
        raise ForeignChallengeError


def _key_of(address: Address, state_init: StateInit) -> bytes:
    if state_init.account != address.account:
        raise ForeignStateInitError
    return state_init.public_key


def _signed(proof: TonProof, address: Address, public_key: bytes) -> ProvenWallet:
    digest = proof_digest(address, proof.domain.value, proof.timestamp, proof.payload)
    try:
        verify_signature(public_key, digest, proof.signature)
    except MalformedError as error:
        raise ProofSignatureError from error
    return ProvenWallet(address, public_key)
