"""A TON wallet's key from its 24 words (ton-crypto's mnemonic scheme; not BIP-39's, though the words are the same).

`seed = PBKDF2-HMAC-SHA512(HMAC-SHA512(key = words joined by a space, message = ""), "TON default seed", 100000)`, of
which the first 32 bytes are the Ed25519 seed. Words of a passphrase's wallet are refused, not misread.
"""

import hashlib
import hmac
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.errors import MalformedError

WORDS = 24
_ROUNDS = 100_000
_SEED_SALT = b"TON default seed"
_CHECK_SALT = b"TON seed version"
_CHECK_ROUNDS = _ROUNDS // 256
_SEED_BYTES = 32


def read_words(text: str) -> tuple[str, ...]:
    """The words of a mnemonic as people write it down: any white space between them, any case.

    Raises:
        MalformedError: not 24 words, or mistyped (the scheme's check says so in 255 of 256 cases). No word is shown.
    """
    words = tuple(text.lower().split())
    if len(words) != WORDS:
        raise MalformedError(f"a mnemonic has {WORDS} words, not {len(words)}")
    if not is_mnemonic(words):
        raise MalformedError("not the words of a TON wallet: one is mistyped, or they need a passphrase")
    return words


def is_mnemonic(words: Sequence[str]) -> bool:
    """Whether the scheme's check holds for these words without a passphrase."""
    return hashlib.pbkdf2_hmac("sha512", _entropy(words), _CHECK_SALT, _CHECK_ROUNDS)[0] == 0


def wallet_key(words: Sequence[str]) -> Ed25519PrivateKey:
    """The wallet's key. Takes a tenth of a second on purpose."""
    seed = hashlib.pbkdf2_hmac("sha512", _entropy(words), _SEED_SALT, _ROUNDS)
    return Ed25519PrivateKey.from_private_bytes(seed[:_SEED_BYTES])


def _entropy(words: Sequence[str]) -> bytes:
    return hmac.digest(" ".join(words).encode(), b"", "sha512")
