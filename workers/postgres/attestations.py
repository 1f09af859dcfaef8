"""Challenges, and what workers showed for their keysets, in PostgreSQL."""

import datetime as dt
import hashlib
import importlib.resources
import random
import uuid
from collections.abc import Collection, Sequence
from typing import Literal, Protocol

import msgspec

from attestation.findings import Code, Finding
from attestation.verdict import Verdict
from audit.entries import LeafType
from audit.postgres.queue import enqueue
from cocoon.addresses import Address
from cocoon.enrolment import keyset_digest
from cocoon.receipt import NO_STAKE
from cocoon.sql import named_statements
from workers.announcements import Removal, admission_of
from workers.errors import ChallengesFullError, ChallengeUnknownError, KeysetRefusedError
from workers.judgement import Judged, Outcome
from workers.postgres.connections import ACQUIRE_TIMEOUT_S, Connection, Pool, translated
from workers.targets import Worker

CHALLENGE_S = 60
CHALLENGES_MAX = 256
"""Open at a time for one worker key; each of its workers needs one for a moment."""
_NONCE_BYTES = 32

STATEMENTS = named_statements(
    importlib.resources.files("workers.postgres").joinpath("attestations.sql").read_text("utf-8")
)


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's standing for people. `reasons` and `refusal` are codes with their sentences."""

    worker_id: uuid.UUID
    name: str
    url: str
    outcome: str
    tee_type: str
    level: str
    reasons: tuple[Finding, ...]
    refusal: tuple[Finding, ...]
    refused_at: dt.datetime | None
    judged_at: dt.datetime
    attested_until: dt.datetime | None
    digest: bytes


class Shown(msgspec.Struct, frozen=True):
    """What a worker showed for its keyset, and what was found."""

    evidence: bytes
    endorsements: bytes
    verdict: Verdict


class Judges(Protocol):
    """What is used of `gateway.attestor.Attestor`: one policy, and judgements under it."""

    @property
    def policy_sha256(self) -> bytes | None:
        """Of the policy's exact text; None without one."""
        ...

    async def again(
        self, evidence: bytes, endorsements: bytes, *, keyset: bytes, nonce: bytes | None, judged_at: int
    ) -> Judged | None:
        """Judge what was judged under another policy, as of then (Unix seconds).

        Raises:
            MalformedError: it is not what was stored.
        """
        ...


class AttestationStore:
    """Challenges are for any replica to judge: each is given once, and taken once, whoever is asked."""

    def __init__(self, pool: Pool, rng: random.Random) -> None:
        self._pool = pool
        self._rng = rng

    async def challenge(self, key_id: uuid.UUID) -> bytes:
        """A nonce of 32 bytes that this worker key may use once within `CHALLENGE_S`.

        Raises:
            ChallengesFullError: too many are open.
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        nonce = self._rng.randbytes(_NONCE_BYTES)
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                given = await connection.fetchval(
                    STATEMENTS["issue_challenge"], nonce, key_id, float(CHALLENGE_S), CHALLENGES_MAX
                )
        if given is None:
            raise ChallengesFullError
        return nonce

    async def take(self, key_id: uuid.UUID, nonce: bytes | None) -> None:
        """Use up a nonce.

        Raises:
            ChallengeUnknownError: it was not given to this key, was used before, or is too old.
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        if nonce is None:
            raise ChallengeUnknownError
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                fresh = await connection.fetchval(STATEMENTS["take_challenge"], nonce, key_id)
        if not fresh:
            raise ChallengeUnknownError

    async def note_refusal(self, worker: Worker, claimed: str, reasons: tuple[Finding, ...]) -> None:
        """Keep why a worker's evidence was refused, for its operator and ours.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        encoded = msgspec.json.encode(reasons).decode()
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                await connection.fetch(STATEMENTS["forget_refusals"], worker.worker_id, worker.keyset_digest)
                await connection.fetch(
                    STATEMENTS["put_refusal"], worker.keyset_digest, worker.keyset, worker.worker_id, worker.name,
                    claimed, encoded,
                )  # fmt: skip

    async def shown(self, digests: Sequence[bytes]) -> dict[bytes, Shown]:
        """What was shown for these keysets, as far as it was admitted.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                rows = await connection.fetch(STATEMENTS["shown"], list(digests))
        return {
            row["digest"]: Shown(
                row["evidence"], row["endorsements"], msgspec.json.decode(row["verdict"], type=Verdict)
            )
            for row in rows
        }

    async def stake_configs(self, accounts: Collection[bytes]) -> dict[bytes, bytes]:
        """The configurations (BoCs) of these stakes, as far as they were shown.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        accounts = set(accounts) - {NO_STAKE}
        if not accounts:
            return {}
        addresses = [str(Address(0, account)) for account in accounts]
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                rows = await connection.fetch(STATEMENTS["stake_configs"], addresses)
        return {Address.parse(row["address"]).account: row["config"] for row in rows}

    async def note_policy(self, sha256: bytes, text: bytes) -> None:
        """Keep and log the policy that judges from now on; one that is known changes nothing.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                if await connection.fetchval(STATEMENTS["put_policy"], sha256, text) is not None:
                    await enqueue(connection, LeafType.POLICY, text)

    async def list_all(self) -> list[Attestation]:
        """Every enrolled worker's standing, and workers whose evidence was refused lately.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                rows = await connection.fetch(STATEMENTS["list_attestations"])
        return [
            Attestation(
                worker_id=uuid.UUID(str(row["worker_id"])), name=row["name"], url=row["url"], outcome=row["outcome"],
                tee_type=row["tee_type"], level=row["level"], reasons=_findings(row["reasons"]),
                refusal=_findings(row["refusal"] or "[]"), refused_at=row["refused_at"], judged_at=row["judged_at"],
                attested_until=row["attested_until"], digest=row["digest"],
            )
            for row in rows
        ]  # fmt: skip


async def hardware_taken(
    connection: Connection, worker: Worker, judged: Judged, *, workers_per_platform: int | None
) -> list[Finding]:
    """What stands against another worker on this hardware. Within a transaction: it holds a lock to its end."""
    if judged.outcome is not Outcome.ADMITTED:
        return []
    await connection.fetchval(STATEMENTS["lock_hardware"])
    serials = list(judged.verdict.gpu_serials)
    found = await connection.fetch(STATEMENTS["neighbours"], worker.worker_id, judged.hardware_id, serials)
    reasons: list[Finding] = []
    holders = sorted(row["name"] for row in found if row["same_gpu"])
    if holders:
        reasons.append(Finding(Code.GPU_IN_USE, f"a GPU of this worker is attested by worker {holders[0]}"))
    beside = sum(1 for row in found if row["same_machine"])
    if workers_per_platform is not None and beside >= workers_per_platform:
        message = f"{beside} workers are attested on this machine, and the policy allows {workers_per_platform}"
        reasons.append(Finding(Code.PLATFORM_FULL, message))
    return reasons


async def judged_again(connection: Connection, worker: Worker, judges: Judges) -> Judged | None:
    """What our policy says of evidence that was admitted under another one; None where there is none.

    Raises:
        MalformedError: what is stored cannot be read.
    """
    rows = await connection.fetch(STATEMENTS["stored"], worker.keyset_digest)
    if not rows:
        return None
    row = rows[0]
    verdict = msgspec.json.decode(row["verdict"], type=Verdict)
    return await judges.again(
        row["evidence"], row["endorsements"], keyset=worker.keyset, nonce=row["nonce"], judged_at=verdict.judged_at
    )


async def put_keyset(connection: Connection, worker: Worker, judged: Judged | None) -> None:
    """Keep a keyset with what was shown for it.

    Raises:
        KeysetRefusedError: it is another worker's.
    """
    assert keyset_digest(worker.keyset) == worker.keyset_digest, "admission computes it"
    shown: tuple[object, ...] = (None, None, None, None, "[]", None, None, [], None)
    outcome, level = Outcome.ADMITTED, "none"
    if judged is not None:
        digest = hashlib.sha256(judged.endorsements).digest()
        await connection.fetch(STATEMENTS["put_endorsements"], digest, judged.endorsements)
        outcome, level = judged.outcome, worker.evidence
        verdict = judged.verdict
        shown = (
            judged.nonce, judged.evidence, digest, msgspec.json.encode(verdict).decode(),
            msgspec.json.encode(judged.reasons).decode(), verdict.policy_sha256, judged.hardware_id or None,
            list(verdict.gpu_serials), float(verdict.valid_until) if verdict.accepted else None,
        )  # fmt: skip
    kept = await connection.fetchval(
        STATEMENTS["put_keyset"], worker.keyset_digest, worker.keyset, worker.worker_id, worker.name, outcome.value,
        worker.tee_type, level, *shown,
    )  # fmt: skip
    if kept is None:
        raise KeysetRefusedError("the keyset is another worker's")
    if outcome is Outcome.ADMITTED:
        grounds = judged.verdict if judged is not None else None
        envelope = admission_of(
            worker,
            release=grounds.release if grounds else "",
            policy_sha256=grounds.policy_sha256 if grounds else b"",
            manifest=grounds.model_manifest_sha256 if grounds else b"",
        )
        await enqueue(connection, LeafType.ADMISSION, envelope)


async def note_superseded(connection: Connection, worker: Worker) -> None:
    """Log that a worker's earlier keyset is over, before the new one takes its place."""
    for row in await connection.fetch(STATEMENTS["keysets_before"], worker.worker_id, worker.keyset_digest):
        await note_removal(connection, worker.worker_id, row["keyset_digest"], "superseded")


async def note_removal(
    connection: Connection, worker_id: uuid.UUID, digest: bytes, reason: Literal["removed", "superseded"]
) -> None:
    """Log that a keyset gets no more requests."""
    removal = Removal(v=1, keyset_digest=digest, worker_id=str(worker_id), reason=reason)
    await enqueue(connection, LeafType.REMOVAL, removal.encode())


def _findings(text: str) -> tuple[Finding, ...]:
    return msgspec.json.decode(text, type=tuple[Finding, ...])
