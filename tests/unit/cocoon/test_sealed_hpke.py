"""The wraps are HPKE as others implement it: a context written out here opens ours, and ours opens what it seals.

Sources: RFC 9180 §4, §5.1 (base mode); X-Wing, draft-connolly-cfrg-xwing-kem (KEM 0x647a).
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cocoon.sealed import parse_request, seal_request
from tests.sealing import BODY, DIGESTS, KEYS, RECIPIENTS, TERMS, counted

SUITE = b"HPKE" + (0x647A).to_bytes(2, "big") + (1).to_bytes(2, "big") + (2).to_bytes(2, "big")
XWING = bytes.fromhex("5c2e2f2f5e5c")
SEED = b"\x01" * 64
POST_QUANTUM = mlkem.MLKEM768PrivateKey.from_seed_bytes(SEED)
CLASSICAL = x25519.X25519PrivateKey.from_private_bytes(SEED[:32])
INFO = b"cocoon/wrap/1\x00" + b"\x55" * 32 + DIGESTS[0]


def labeled_extract(salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + SUITE + label + material, "sha256")


def labeled_expand(secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + SUITE + label + info
    return hmac.digest(secret, labeled + b"\x01", "sha256")[:length]


def cipher(shared: bytes, info: bytes) -> tuple[AESGCM, bytes]:
    context = b"\x00" + labeled_extract(b"", b"psk_id_hash", b"") + labeled_extract(b"", b"info_hash", info)
    secret = labeled_extract(shared, b"secret", b"")
    return AESGCM(labeled_expand(secret, b"key", context, 32)), labeled_expand(secret, b"base_nonce", context, 12)


def combine(first: bytes, second: bytes, sent: bytes, public: bytes) -> bytes:
    return hashlib.sha3_256(first + second + sent + public + XWING).digest()


def test_what_the_library_wraps_is_what_the_standards_say() -> None:
    sent = seal_request(TERMS, BODY, RECIPIENTS, counted())
    sealed = parse_request(sent.raw)
    wrap = sealed.wraps[0]
    first, share = POST_QUANTUM.decapsulate(wrap[:1088]), wrap[1088:1120]
    second = CLASSICAL.exchange(x25519.X25519PublicKey.from_public_bytes(share))
    shared = combine(first, second, share, CLASSICAL.public_key().public_bytes_raw())
    aead, nonce = cipher(shared, b"cocoon/wrap/1\x00" + sealed.digest + DIGESTS[0])

    assert aead.decrypt(nonce, wrap[1120:], b"") == counted()(32) + sent.secrets[DIGESTS[0]]


def test_what_the_standards_say_is_what_the_library_unwraps() -> None:
    first, encapsulated = POST_QUANTUM.public_key().encapsulate()
    ephemeral = x25519.X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    public = CLASSICAL.public_key()
    shared = combine(first, ephemeral.exchange(public), share, public.public_bytes_raw())
    aead, nonce = cipher(shared, INFO)

    assert KEYS[0].unwrap(encapsulated + share + aead.encrypt(nonce, b"s" * 64, b""), INFO) == b"s" * 64
