"""Tokens of workers: EdDSA JWTs of a few minutes, for everything that an enrolled worker calls.

A heartbeat comes every two seconds from every worker; a token spares it the look-up of a worker key, and an agent the
need to send that key more than once per keyset. A token is for one worker and one keyset, ends with the keyset at the
latest, and is renewed by itself as long as that enrolment stands. Every replica derives the same signing key from the
network secret, so any of them can judge any token.
"""

import base64
import datetime as dt
import uuid

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from workers.errors import TokenRefusedError

TOKEN_SECONDS = 600
TOKEN_CHARS_MAX = 1024
CLOCK_SKEW_S_MAX = 60
"""How far replicas' clocks may differ: a token from the near future is accepted."""
_ALGORITHM = "EdDSA"
_ISSUER = "cocoon-gateway"
_AUDIENCE = "cocoon-worker"
_SALT = b"cocoon/worker-token/1"
_REQUIRED = ["iss", "aud", "sub", "iat", "exp", "keyset"]
_DIGEST_BYTES = 32
_SECRET_BYTES_MIN = 16


class TokenClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which worker calls, for which keyset, until when."""

    worker_id: uuid.UUID
    keyset_digest: bytes
    expires_at: dt.datetime


def token_seconds(now: dt.datetime, not_after: int) -> int:
    """How long a token for a keyset may be good for that ends at `not_after` (Unix seconds)."""
    return max(0, min(TOKEN_SECONDS, not_after - int(now.timestamp())))


class WorkerTokens:
    """Mints and verifies tokens under a key derived from `network_secret`."""

    def __init__(self, network_secret: bytes) -> None:
        assert len(network_secret) >= _SECRET_BYTES_MIN, "settings check the secret's length"
        seed = HKDF(SHA256(), 32, salt=_SALT, info=b"ed25519").derive(network_secret)
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._private.public_key()

    def mint(self, worker_id: uuid.UUID, keyset_digest: bytes, now: dt.datetime, ttl_s: int = TOKEN_SECONDS) -> str:
        """A token that is good for `ttl_s` seconds from `now`."""
        issued = int(now.timestamp())
        claims: dict[str, str | int] = {
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "sub": str(worker_id),
            "iat": issued,
            "exp": issued + ttl_s,
            "keyset": base64.urlsafe_b64encode(keyset_digest).decode(),
        }
        return jwt.encode(claims, self._private, algorithm=_ALGORITHM)

    def verify(self, token: str, now: dt.datetime) -> TokenClaims:
        """The claims of a token that is valid at wall time `now`.

        Raises:
            TokenRefusedError: not ours, not for workers, expired, or malformed.
        """
        if len(token) > TOKEN_CHARS_MAX:
            raise TokenRefusedError
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                issuer=_ISSUER,
                # Expiry is judged below, by the injected clock.
                options={
                    "require": _REQUIRED,
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "strict_aud": True,
                },
            )
            issued, expires = int(claims["iat"]), int(claims["exp"])
            worker_id = uuid.UUID(claims["sub"])
            digest = base64.urlsafe_b64decode(claims["keyset"])
            expires_at = dt.datetime.fromtimestamp(expires, dt.UTC)
        except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError, OverflowError, OSError) as error:
            raise TokenRefusedError from error
        if not issued - CLOCK_SKEW_S_MAX <= now.timestamp() < expires or len(digest) != _DIGEST_BYTES:
            raise TokenRefusedError
        return TokenClaims(worker_id=worker_id, keyset_digest=digest, expires_at=expires_at)
