"""How an operator gets a worker key: the gateway's challenge, the wallet's proof of it, the key.

The challenge is taken once, whichever gateway process gave it. One wallet has one worker key: asking again, with a new
proof, gives that key a new secret.
"""

import uuid
from typing import Annotated

import msgspec

from cocoon.ton_proof import PAYLOAD_CHARS_MAX, TonProof
from cocoon.wallets import STATE_INIT_BYTES_MAX

CHALLENGE_PATH = "/v1/workers/wallet/challenge"
WALLET_KEY_PATH = "/v1/workers/wallet/key"
KEEP_S_MAX = 7 * 24 * 3600


class WalletChallenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/workers/wallet/challenge`. `payload` is what the wallet signs, until `expires_at` (Unix seconds).

    A client signs for the domain that it talks to, never for one that somebody tells it.
    """

    payload: Annotated[str, msgspec.Meta(max_length=PAYLOAD_CHARS_MAX)]
    expires_at: int
    global_id: int


class WalletKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`POST /v1/workers/wallet/key`. `network` is the wallet's, where it says so (`-239` is the main network).

    `keep_s`: how long the secret before this one is still believed, for workers that use it meanwhile.
    """

    address: Annotated[str, msgspec.Meta(max_length=80)]
    state_init: Annotated[bytes, msgspec.Meta(max_length=STATE_INIT_BYTES_MAX)]
    proof: TonProof
    network: Annotated[str, msgspec.Meta(max_length=16)] | None = None
    keep_s: Annotated[int, msgspec.Meta(ge=0, le=KEEP_S_MAX)] = 0


class WalletKeyAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The worker key, at the only moment when it is known; `rotated` when the wallet had one before."""

    key: str
    key_id: uuid.UUID
    address: str
    rotated: bool

    def __repr__(self) -> str:
        return f"WalletKeyAnswer(key=<redacted>, key_id={self.key_id!r}, address={self.address!r})"
