"""Values for tests of sealed requests: two workers, a client, and bytes that look random."""

import hashlib
import itertools

from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from cocoon.sealed import RandomBytes, Recipient, SealedKey, Terms, key_tag

API_KEY = "sk-cocoon-test"
JOB = bytes.fromhex("019a0000000070008000000000000001")
TERMS = Terms(
    job_id=JOB, key_tag=key_tag(API_KEY), model="smol", max_prompt=100, max_completion=64, n=1, stream=True,
    not_after=1764568800,
)  # fmt: skip
BODY = b'{"model":"smol","messages":[{"role":"user","content":"a secret"}],"stream":true,"max_tokens":64}'
DIGESTS = (b"\xa1" * 32, b"\xb2" * 32)


def key(number: int) -> SealedKey:
    seed = bytes((number,)) * 64
    classical = x25519.X25519PrivateKey.from_private_bytes(seed[:32])
    return SealedKey(mlkem.MLKEM768PrivateKey.from_seed_bytes(seed), classical)


KEYS = (key(1), key(2))
RECIPIENTS = tuple(Recipient(digest, key.public_key) for digest, key in zip(DIGESTS, KEYS, strict=True))


def counted() -> RandomBytes:
    """Different bytes on every call, the same in every run."""
    calls = itertools.count()
    return lambda count: hashlib.shake_256(b"%d" % next(calls)).digest(count)
