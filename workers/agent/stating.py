"""Evidence on demand: a gateway hands on a customer's nonce, and the agent states its keyset for it."""

from typing import Final

from cocoon.clock import Clock
from cocoon.errors import MalformedError
from cocoon.statement_request import LIFETIME_S, read_statement_request
from workers.agent import refusals
from workers.agent.keys import KeyRing
from workers.agent.refusals import RefusedError
from workers.agent.tees.ports import TEE, EvidenceError

BURST: Final = 32
PER_S: Final = 8.0
"""Statements at once and per second over time; a quote takes the platform tens of milliseconds."""
_SKEW_S: Final = 60


class Stater:
    """Answers requests for statements, no more of them than the platform has time for."""

    def __init__(self, tee: TEE, keys: KeyRing, clock: Clock) -> None:
        self._tee = tee
        self._keys = keys
        self._clock = clock
        self._left = float(BURST)
        self._at = clock.monotonic()

    async def state(self, body: bytes) -> bytes:
        """Evidence as the request in `body` asks for it.

        Raises:
            RefusedError: there is no TEE, the request is not a gateway's, or the platform has no time.
        """
        if self._tee.tee_type == "none":
            raise RefusedError(refusals.NO_TEE)
        try:
            request = read_statement_request(body)
        except MalformedError as error:
            raise RefusedError(refusals.BAD_STATEMENT_REQUEST) from error
        now = self._clock.now().timestamp()
        for identity in self._keys.enrolled():
            key = identity.ticket_key
            if identity.digest == request.keyset_digest and key is not None and request.authentic(key):
                break
        else:
            raise RefusedError(refusals.STRANGE_STATEMENT_REQUEST)
        if not now <= request.not_after <= now + LIFETIME_S + _SKEW_S:
            raise RefusedError(refusals.STRANGE_STATEMENT_REQUEST)
        if not self._spend():
            raise RefusedError(refusals.STATEMENTS_BUSY)
        try:
            return await self._tee.evidence(identity.raw, request.nonce)
        except EvidenceError as error:
            raise RefusedError(refusals.NO_EVIDENCE) from error

    def _spend(self) -> bool:
        now = self._clock.monotonic()
        self._left = min(float(BURST), self._left + (now - self._at) * PER_S)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
