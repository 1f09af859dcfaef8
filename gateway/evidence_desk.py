"""Evidence for customers: up to eight workers of a model state their keysets for the customer's own nonce."""

import asyncio
import random
import uuid
from typing import Final

import msgspec
import structlog

from attestation.verdict import Verdict
from cocoon.clock import Clock
from cocoon.enrolment import EVIDENCE_BYTES_MAX, Keyset
from cocoon.errors import CocoonError
from cocoon.http1 import HopError
from cocoon.statement_request import LIFETIME_S, STATEMENT_PATH, statement_request
from cocoon.ticket import ticket_key
from gateway.attestor import Attestor
from gateway.limits import LimitState, RateLimitedError, spent, wait_s
from workers.judgement import Outcome
from workers.postgres.attestations import AttestationStore
from workers.registry import Registry
from workers.targets import Worker
from workers.transport import Transport, TransportError

WORKERS_MAX: Final = 8
"""As many as a request can be sealed for (PROTOCOL §3)."""
ANSWER_S_MAX: Final = 5.0
PER_MIN: Final = 60
"""Calls of one key at one process; workers have a limit of their own."""
KEYS_MAX: Final = 65_536
log = structlog.get_logger()


class ShownWorker(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's evidence with the vendors' documents, and what this gateway finds about it. Bytes are base64.

    `stake` is the configuration of the stake that the keyset names, null where it names none or none was kept.
    """

    worker_id: uuid.UUID
    name: str
    keyset: bytes
    keyset_digest: bytes
    tee_type: str
    manifest_sha256: bytes | None
    evidence: bytes
    endorsements: bytes
    verdict: Verdict
    stake: bytes | None = None


class ShownWorkers(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /v1/attestation`. `policy_sha256` is of this gateway's policy, null without one."""

    model: str
    policy_sha256: bytes | None
    workers: tuple[ShownWorker, ...]


class EvidenceDesk:
    """Asks workers for evidence and judges it, within a limit for each key."""

    def __init__(
        self, registry: Registry, transport: Transport, attestor: Attestor, store: AttestationStore, clock: Clock,
        rng: random.Random, *, network_secret: bytes,
    ) -> None:  # fmt: skip
        self._registry = registry
        self._transport = transport
        self._attestor = attestor
        self._store = store
        self._clock = clock
        self._rng = rng
        self._network_secret = network_secret
        self._turn = asyncio.Semaphore(1)
        self._full_at: dict[uuid.UUID, float] = {}

    async def shown(self, model: str, key_id: uuid.UUID, nonce: bytes | None) -> ShownWorkers:
        """Evidence of the model's attested workers: for the nonce, or without one what they enrolled with.

        A worker that does not answer, or whose answer is refused, is left out.

        Raises:
            RateLimitedError: the key asks too often.
            EnrolmentStoreUnavailableError: what is stored cannot be read.
        """
        self._spend(key_id)
        attested = [
            target
            for target in self._registry.targets_for(model)
            if isinstance(target, Worker) and target.attested_until
        ]
        chosen = self._rng.sample(attested, min(len(attested), WORKERS_MAX))
        if nonce is None:
            found = await self._stored(chosen)
        else:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._asked(worker, nonce)) for worker in chosen]
            found = [task.result() for task in asked]
        stakes = await self._store.stake_configs({worker.stake for worker in chosen})
        workers = tuple(
            msgspec.structs.replace(shown, stake=stakes.get(worker.stake))
            for worker, shown in zip(chosen, found, strict=True)
            if shown is not None
        )
        return ShownWorkers(model=model, policy_sha256=self._attestor.policy_sha256, workers=workers)

    async def _stored(self, workers: list[Worker]) -> list[ShownWorker | None]:
        kept = await self._store.shown([worker.keyset_digest for worker in workers])
        return [
            None
            if (one := kept.get(worker.keyset_digest)) is None
            else _shown(worker, one.evidence, one.endorsements, one.verdict)
            for worker in workers
        ]

    async def _asked(self, worker: Worker, nonce: bytes) -> ShownWorker | None:
        key = ticket_key(self._network_secret, worker.keyset_digest)
        not_after = int(self._clock.now().timestamp()) + LIFETIME_S
        request = statement_request(key, keyset_digest=worker.keyset_digest, nonce=nonce, not_after=not_after)
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                raw = await self._transport.ask(worker, STATEMENT_PATH, request.encode(), EVIDENCE_BYTES_MAX)
                evidence, _ = self._attestor.read(raw)
                async with self._turn:  # customers' questions leave room for enrolments
                    judged = await self._attestor.judge(evidence, raw, keyset=worker.keyset, nonce=nonce)
        except (TransportError, HopError, TimeoutError, CocoonError) as error:
            log.warning("statement_missing", worker=worker.name, reason=str(error) or type(error).__name__)
            return None
        if judged.outcome is not Outcome.ADMITTED:
            log.warning("statement_refused", worker=worker.name, reasons=[reason.code for reason in judged.reasons])
            return None
        return _shown(worker, judged.evidence, judged.endorsements, judged.verdict)

    def _spend(self, key_id: uuid.UUID) -> None:
        now = self._clock.monotonic()
        full_at = self._full_at.get(key_id, now)
        if pause_s := wait_s(full_at, limit=PER_MIN, cost=1, now=now):
            raise RateLimitedError(
                f"Evidence may be asked for {PER_MIN} times a minute.", retry_after_s=pause_s, scope="requests",
                state=LimitState(),
            )  # fmt: skip
        if len(self._full_at) >= KEYS_MAX:
            self._full_at.clear()
        self._full_at[key_id] = spent(full_at, limit=PER_MIN, cost=1, now=now)


def _shown(worker: Worker, evidence: bytes, endorsements: bytes, verdict: Verdict) -> ShownWorker:
    return ShownWorker(
        worker_id=worker.worker_id, name=worker.name, keyset=worker.keyset, keyset_digest=worker.keyset_digest,
        tee_type=verdict.tee_type, manifest_sha256=Keyset.decode(worker.keyset).model_manifest_sha256 or None,
        evidence=evidence, endorsements=endorsements, verdict=verdict,
    )  # fmt: skip
