"""`Idempotency-Key`: the same request again gets the stored outcome, without a second charge (PROTOCOL §7).

The outcome is kept for a day, byte for byte, under a key derived from the API key and the job: the server has only the
API key's hash, so only its holder's next call can open it. What cannot be replayed (too long, or the client left half
way) is remembered as charged; what was not charged is forgotten, so that a client may try again.
"""

import asyncio
import enum
import hashlib
import secrets
import uuid
from typing import ClassVar, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cocoon.clock import Clock
from cocoon.errors import MalformedError
from gateway.client import Headers
from gateway.errors import GatewayError, InvalidRequestError

KEY_CHARACTERS_MAX = 255
KEEP_S = 24 * 3600
OUTCOME_BYTES_MAX = 1024 * 1024
"""Longest outcome that is kept; a longer one is charged and not replayed."""
WAIT_S_MAX = 30.0
"""How long a duplicate waits for the running one."""
POLL_S_FIRST = 0.05
POLL_S_MAX = 1.0
_NONCE_BYTES = 12
_INFO = b"cocoon/outcome/1"


class IdempotencyConflictError(GatewayError):
    """This Idempotency-Key was used before with a different body."""

    code: ClassVar[str] = "idempotency_key_conflict"


class StillRunningError(GatewayError):
    """The request with this Idempotency-Key is still running."""

    code: ClassVar[str] = "idempotency_in_flight"
    transient: ClassVar[bool] = True

    def __init__(self, retry_after_s: float) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


class AlreadyCompletedError(GatewayError):
    """The request with this Idempotency-Key was completed and charged, and its outcome is not kept."""

    code: ClassVar[str] = "already_completed"

    def __init__(self, job_id: uuid.UUID) -> None:
        super().__init__(f"{self.__doc__} Its receipt id is {job_id}.")


class Outcome(msgspec.Struct, frozen=True):
    """An answer as it was sent: the head's fields and the body's bytes."""

    stream: bool
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Standing(enum.StrEnum):
    """What the store knows of a key."""

    NEW = "new"
    RUNNING = "running"
    KEPT = "kept"
    CHARGED = "charged"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The row of a key: ours when NEW, else the earlier request's."""

    standing: Standing
    job_id: uuid.UUID
    body_sha256: bytes
    outcome: bytes | None = None


class OutcomeStore(Protocol):
    """Keeps claims; durable, shared by all replicas. All methods raise LedgerUnavailableError when it is away."""

    async def claim(
        self, customer_id: uuid.UUID, key_sha256: bytes, body_sha256: bytes, job_id: uuid.UUID, running_s: float
    ) -> Claim:
        """Take the key for `job_id`, or say who has it. A claim that expired is taken over."""
        ...

    async def keep(
        self, customer_id: uuid.UUID, key_sha256: bytes, job_id: uuid.UUID, outcome: bytes | None, keep_s: float
    ) -> None:
        """End our claim as kept, or as charged when there is no outcome to keep."""
        ...

    async def forget(self, customer_id: uuid.UUID, key_sha256: bytes, job_id: uuid.UUID) -> None:
        """End our claim without a trace."""
        ...


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Our claim on a key, to be ended once."""

    customer_id: uuid.UUID
    key_sha256: bytes
    job_id: uuid.UUID


class Idempotency:
    """Claims keys before a request runs and ends the claims after it."""

    def __init__(self, store: OutcomeStore, clock: Clock, *, running_s: float) -> None:
        self._store = store
        self._clock = clock
        self._running_s = running_s

    async def begin(
        self, customer_id: uuid.UUID, authorization: bytes, key: str, body: bytes, job_id: uuid.UUID
    ) -> Turn | Outcome:
        """A turn to run under, or the earlier outcome to send again.

        Raises:
            InvalidRequestError: the key is empty, too long or not printable ASCII.
            IdempotencyConflictError: the key stands for another body.
            StillRunningError: the earlier request did not end in `WAIT_S_MAX`.
            AlreadyCompletedError: it ended, was charged, and cannot be replayed.
        """
        if not 1 <= len(key) <= KEY_CHARACTERS_MAX or not (key.isascii() and key.isprintable()):
            raise InvalidRequestError(
                f"Idempotency-Key must be 1 to {KEY_CHARACTERS_MAX} printable characters.", code="idempotency_key_form"
            )
        turn = Turn(customer_id=customer_id, key_sha256=hashlib.sha256(key.encode()).digest(), job_id=job_id)
        body_sha256 = hashlib.sha256(body).digest()
        deadline = self._clock.monotonic() + WAIT_S_MAX
        pause_s = POLL_S_FIRST
        while True:
            claim = await self._store.claim(customer_id, turn.key_sha256, body_sha256, job_id, self._running_s)
            if claim.standing is Standing.NEW:
                return turn
            if claim.body_sha256 != body_sha256:
                raise IdempotencyConflictError
            if claim.standing is Standing.KEPT and claim.outcome is not None:
                return open_outcome(claim.outcome, authorization, claim.job_id)
            if claim.standing is Standing.CHARGED:
                raise AlreadyCompletedError(claim.job_id)
            if self._clock.monotonic() + pause_s > deadline:
                raise StillRunningError(POLL_S_MAX)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S_MAX)

    async def end(self, turn: Turn, authorization: bytes, outcome: Outcome | None, *, charged: bool) -> None:
        """End the claim: kept when there is an outcome, remembered when it was charged, else forgotten."""
        if not charged:
            await self._store.forget(turn.customer_id, turn.key_sha256, turn.job_id)
            return
        sealed = seal_outcome(outcome, authorization, turn.job_id) if outcome is not None else None
        await self._store.keep(turn.customer_id, turn.key_sha256, turn.job_id, sealed, KEEP_S)


def seal_outcome(outcome: Outcome, authorization: bytes, job_id: uuid.UUID) -> bytes:
    """AES-256-GCM under HKDF(API key, job id): nonce, then ciphertext."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _cipher(authorization, job_id).encrypt(nonce, msgspec.msgpack.encode(outcome), job_id.bytes)


def open_outcome(sealed: bytes, authorization: bytes, job_id: uuid.UUID) -> Outcome:
    """The outcome.

    Raises:
        MalformedError: another API key sealed it (of the same customer), or it was altered.
    """
    try:
        plain = _cipher(authorization, job_id).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], job_id.bytes)
        return msgspec.msgpack.decode(plain, type=Outcome)
    except (InvalidTag, msgspec.DecodeError) as error:
        raise MalformedError("the stored outcome does not open under this API key") from error


def _cipher(authorization: bytes, job_id: uuid.UUID) -> AESGCM:
    key = HKDF(SHA256(), 32, salt=job_id.bytes, info=_INFO).derive(authorization.partition(b" ")[2].strip())
    return AESGCM(key)


class Recording:
    """Collects an answer as it is sent, up to `OUTCOME_BYTES_MAX`."""

    def __init__(self) -> None:
        self._headers: Headers | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._stream = False

    def begin(self, headers: Headers, *, stream: bool) -> None:
        """The head was sent."""
        self._headers, self._stream = headers, stream

    def add(self, data: bytes) -> None:
        """Bytes of the body were sent."""
        self._size += len(data)
        if self._size <= OUTCOME_BYTES_MAX:
            self._parts.append(data)
        else:
            self._parts.clear()

    @property
    def outcome(self) -> Outcome | None:
        """The whole answer, None when it was too long to keep."""
        if self._headers is None or self._size > OUTCOME_BYTES_MAX:
            return None
        return Outcome(stream=self._stream, headers=tuple(self._headers), body=b"".join(self._parts))
