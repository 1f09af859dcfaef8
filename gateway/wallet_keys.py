"""Worker keys for whoever proves a wallet: challenges that are taken once, and what a proof must say.

A challenge is a random number and an end, authenticated under the network's secret: any process can recognise another's
without storing what strangers ask for. That it was used is stored when a proof is accepted, until past its end.
"""

import hashlib
import hmac
import random
from typing import ClassVar, Protocol

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cocoon.canonical import base64url, from_base64url
from cocoon.clock import Clock
from cocoon.errors import MalformedError
from cocoon.ton_proof import ProvenWallet, WalletKeys, prove_wallet
from cocoon.wallet_enrolment import WalletChallenge, WalletKeyAnswer, WalletKeyRequest
from cocoon.wallets import Address
from gateway.errors import GatewayError, InvalidRequestError

CHALLENGE_S = 600
"""Time to find the phone with the wallet."""
PURPOSE = "cocoon-worker-key."
"""What a challenge begins with: a signature for one thing is not one for another."""
_NONCE_BYTES = 16
_TAG_BYTES = 16
_TIME_BYTES = 8
_SALT = b"cocoon/wallet-challenge/1"


class WalletsOffError(GatewayError):
    """This gateway gives no worker keys for wallets: COCOON_WALLET_DOMAINS is not set."""

    code: ClassVar[str] = "wallet_enrolment_off"


class ChallengeRefusedError(GatewayError):
    """The signed challenge is not one of this network's, has expired, or was used before."""

    code: ClassVar[str] = "wallet_challenge_refused"


class ForeignNetworkError(GatewayError):
    """The wallet is on another TON network than this gateway."""

    code: ClassVar[str] = "wallet_network"


class WalletBarredError(GatewayError):
    """The operator of this network has revoked this wallet's worker key."""

    code: ClassVar[str] = "wallet_barred"


class WalletLimitError(GatewayError):
    """Too many worker keys were asked for; try again later."""

    code: ClassVar[str] = "wallet_limit"
    transient: ClassVar[bool] = True

    retry_after_s: ClassVar[float] = 600.0


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """A proof that is to become a key. `challenge` names what was signed, for at most `challenge_s` seconds more."""

    wallet: ProvenWallet
    challenge: bytes
    challenge_s: float
    keep_s: int


class KeyIssuer(Protocol):
    """What is used of `gateway.postgres.wallets.WalletKeyStore`."""

    async def issue(self, acceptance: Acceptance) -> WalletKeyAnswer:
        """The wallet's key with a new secret.

        Raises:
            ChallengeRefusedError: the challenge was used before.
            WalletBarredError: the wallet's key was revoked.
            WalletLimitError: the wallet, or everybody together, asks too often.
        """
        ...


class Challenges:
    """Made and recognised by every process that knows the network's secret."""

    def __init__(self, network_secret: bytes, clock: Clock, rng: random.Random) -> None:
        self._key = HKDF(SHA256(), 32, salt=_SALT, info=b"hmac").derive(network_secret)
        self._clock = clock
        self._rng = rng

    def make(self) -> tuple[str, int]:
        """A challenge and when it ends (Unix seconds)."""
        expires_at = int(self._clock.now().timestamp()) + CHALLENGE_S
        said = expires_at.to_bytes(_TIME_BYTES, "big") + self._rng.randbytes(_NONCE_BYTES)
        return PURPOSE + base64url(said + self._tag(said)), expires_at

    def seconds_left(self, payload: str) -> float:
        """How long the challenge is still good.

        Raises:
            ChallengeRefusedError: not made by this network, or its time is over.
        """
        try:
            if not payload.startswith(PURPOSE):
                raise ChallengeRefusedError
            # One challenge has one spelling: it is by its text that it is spent.
            raw = from_base64url(payload.removeprefix(PURPOSE))
        except MalformedError as error:
            raise ChallengeRefusedError from error
        said, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
        if len(raw) != _TIME_BYTES + _NONCE_BYTES + _TAG_BYTES or not hmac.compare_digest(tag, self._tag(said)):
            raise ChallengeRefusedError
        left = int.from_bytes(said[:_TIME_BYTES], "big") - self._clock.now().timestamp()
        if left <= 0:
            raise ChallengeRefusedError
        return left

    def _tag(self, said: bytes) -> bytes:
        return hmac.digest(self._key, said, "sha256")[:_TAG_BYTES]


class WalletDoor:
    """Where strangers come in. `domains` are those that wallets may have signed for; without any it is shut."""

    def __init__(
        self, challenges: Challenges, issuer: KeyIssuer, clock: Clock, *, domains: tuple[str, ...], global_id: int,
        keys: WalletKeys | None = None,
    ) -> None:  # fmt: skip
        self._challenges = challenges
        self._issuer = issuer
        self._clock = clock
        self._domains = frozenset(domains)
        self._global_id = global_id
        self._keys = keys

    def challenge(self) -> WalletChallenge:
        """Something for a wallet to sign.

        Raises:
            WalletsOffError: no domain is configured.
        """
        if not self._domains:
            raise WalletsOffError
        payload, expires_at = self._challenges.make()
        return WalletChallenge(payload=payload, expires_at=expires_at, global_id=self._global_id)

    async def enter(self, asked: WalletKeyRequest) -> WalletKeyAnswer:
        """The worker key of the wallet that signed.

        Raises:
            WalletsOffError: no domain is configured.
            InvalidRequestError: the address is none.
            ForeignNetworkError: the wallet says that it is on another network.
            ChallengeRefusedError: the challenge is not ours, not good any more, or was used before.
            ProofRefusedError: the proof is for somebody else, too old, or not the wallet's.
            WalletError: not a wallet that we know.
            WalletBarredError: the wallet's key was revoked.
            WalletLimitError: too many keys are asked for.
        """
        if not self._domains:
            raise WalletsOffError
        if asked.network is not None and asked.network != str(self._global_id):
            raise ForeignNetworkError
        try:
            address = Address.parse(asked.address)
        except MalformedError as error:
            raise InvalidRequestError(str(error), param="address") from error
        left_s = self._challenges.seconds_left(asked.proof.payload)
        wallet = await prove_wallet(
            asked.proof, address, asked.state_init, domains=self._domains, payload=asked.proof.payload,
            now_s=self._clock.now().timestamp(), keys=self._keys,
        )  # fmt: skip
        challenge = hashlib.sha256(asked.proof.payload.encode()).digest()
        return await self._issuer.issue(
            Acceptance(wallet=wallet, challenge=challenge, challenge_s=left_s, keep_s=asked.keep_s)
        )
