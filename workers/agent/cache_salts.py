"""Whose prompts may share an engine's prefix cache (PROTOCOL §3).

An engine answers sooner when it has seen the beginning of a prompt before. Whoever can time answers could guess what
others asked. A salt that no client can choose or compute keeps everybody's entries apart.
"""

import hmac
import random

from cocoon.canonical import base64url
from cocoon.sealed import OpenedRequest
from cocoon.splice import members

MEMBER = "cache_salt"
TENANT_CHARS_MAX = 64
_BOOT_BYTES = 32


class CacheSalts:
    """The salts of one boot of one agent: another boot has others, so that no salt ever means anything elsewhere."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._secret = rng.randbytes(_BOOT_BYTES)

    def plain(self, tenant: str | None) -> str:
        """The salt of a customer's plain requests, by the gateway's name for it. Without a name nothing is shared."""
        if tenant is None or len(tenant) > TENANT_CHARS_MAX:
            return self._salt(b"", self._rng.randbytes(_BOOT_BYTES))
        return self._salt(b"plain", tenant.encode())

    def sealed(self, opened: OpenedRequest) -> str:
        """The salt that the sealed body names in `cache_salt`, under our own; without one nothing is shared."""
        given = [opened.body[m.value : m.end] for m in members(opened.body) if m.key == MEMBER]
        if not given or given[-1] in {b"null", b'""'}:
            return self._salt(b"sealed", opened.secret)
        return self._salt(b"sealed", given[-1])

    def _salt(self, kind: bytes, name: bytes) -> str:
        return base64url(hmac.digest(self._secret, kind + name, "sha256"))
