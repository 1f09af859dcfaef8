"""Stored enrolments, and the listener that keeps a registry equal to them."""

import asyncio
import importlib.resources
import random
import uuid
from collections.abc import Callable

import msgspec
import structlog

from audit.entries import LeafType
from audit.postgres.queue import enqueue
from audit.postgres.statements import SQL as LOG_STATEMENTS
from cocoon.addresses import Address
from cocoon.clock import Clock
from cocoon.enrolment import KEYSET_SECONDS_MAX, EnrolRequest, ServedModel
from cocoon.errors import MalformedError
from cocoon.receipt import NO_STAKE
from cocoon.sql import named_statements
from workers.enrolments import CLOCK_SKEW_S_MAX, admit, attested
from workers.errors import (
    AskRefusedError,
    EnrolmentRefusedError,
    EnrolmentStoreUnavailableError,
    KeysetLifetimeError,
    StakeRefusedError,
)
from workers.judgement import Judged, Outcome
from workers.postgres.attestations import (
    Judges,
    hardware_taken,
    judged_again,
    note_removal,
    note_superseded,
    put_keyset,
)
from workers.postgres.connections import (
    ACQUIRE_TIMEOUT_S,
    Connection,
    ListeningConnection,
    Pool,
    Record,
    connect,
    translated,
)
from workers.registry import Registry
from workers.targets import PostedAsk, Worker

CHANNELS = ("cocoon_workers", "cocoon_keys")
"""Changes of workers, and of the keys they enrolled with."""
RELOAD_S = 30.0
"""A full reload this often, which also finds out that a silent connection is dead."""
COALESCE_S = 0.05
"""Changes this close together cost one reload."""
BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 5.0
STAKE_HELD_S = float(KEYSET_SECONDS_MAX + CLOCK_SKEW_S_MAX)
"""How long after its last enrolment a worker may still sign under its stake: as long as that keyset can live."""
ASKS_PER_DAY_MAX = 1000
"""New asks of one worker for one model: each is a row that is kept."""

STATEMENTS = named_statements(importlib.resources.files("workers.postgres").joinpath("queries.sql").read_text("utf-8"))
_log = structlog.get_logger(__name__)


class EnrolmentStore:
    """Enrolments in the `workers` table. Every method is one transaction."""

    def __init__(self, pool: Pool, clock: Clock, *, allow_private: bool, judges: Judges | None = None) -> None:
        self._pool = pool
        self._clock = clock
        self._allow_private = allow_private
        self._judges = judges

    async def save(self, worker: Worker, key_id: uuid.UUID) -> Worker:
        """Store a worker that shows nothing for itself; see `save_judged`."""
        return (await self.save_judged(worker, key_id, None))[0]

    async def save_judged(
        self,
        worker: Worker,
        key_id: uuid.UUID,
        judged: Judged | None,
        *,
        workers_per_platform: int | None = None,
        manifest: bytes = b"",
        stake: bytes = b"",
    ) -> tuple[Worker, Judged | None]:
        """Store a worker under the worker key that it enrolled with, with its evidence; its id is the stored one.

        Its asks get their versions: the same ask keeps the one that it has. Its manifest is kept and logged, and its
        stake's configuration kept. It comes back quarantined where its GPU or its machine is taken by other workers.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached; nothing is known to be stored.
            AskRefusedError: it changes its mind too often.
            StakeRefusedError: its stake is another worker's.
            KeysetRefusedError: the keyset is another worker's.
        """
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                if judged is not None:
                    taken = await hardware_taken(connection, worker, judged, workers_per_platform=workers_per_platform)
                    judged = judged.held_back(*taken)
                    worker = attested(worker, judged)
                await note_superseded(connection, worker)
                worker = msgspec.structs.replace(worker, asks=await _versioned(connection, worker))
                worker_id = await connection.fetchval(
                    STATEMENTS["save_worker"],
                    worker.worker_id,
                    key_id,
                    worker.name,
                    worker.url,
                    msgspec.json.encode(worker.models).decode(),
                    worker.capacity,
                    worker.engine,
                    worker.tee_type,
                    worker.keyset,
                    worker.keyset_digest,
                    msgspec.json.encode(worker.asks).decode(),
                )
                worker = msgspec.structs.replace(worker, worker_id=uuid.UUID(str(worker_id)))
                await _register_stake(connection, worker, stake or None)
                if manifest:
                    await enqueue(connection, LeafType.MANIFEST, manifest)
                await put_keyset(connection, worker, judged)
        return worker, judged

    async def load(self) -> list[Worker]:
        """Every enrolled worker that the rules of today still admit.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                return await load_workers(
                    connection, self._clock, allow_private=self._allow_private, judges=self._judges
                )

    async def manifest(self, sha256: bytes) -> bytes | None:
        """A model manifest that some worker enrolled with, by its digest.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached.
        """
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                return await connection.fetchval(LOG_STATEMENTS["read_envelope"], sha256, LeafType.MANIFEST.value)

    async def remove(self, worker_id: uuid.UUID) -> bool:
        """Take a worker out; False when it was not enrolled. Enrolling again brings it back.

        Raises:
            EnrolmentStoreUnavailableError: Postgres cannot be reached; nothing is known to be removed.
        """
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                digest: bytes | None = await connection.fetchval(STATEMENTS["remove_worker"], worker_id)
                if digest is not None:
                    await note_removal(connection, worker_id, digest, "removed")
                return digest is not None


class EnrolmentListener:
    """Feeds a registry with all enrolments: at start, after every change, after every reconnection."""

    def __init__(
        self, database_url: str, registry: Registry, clock: Clock, rng: random.Random, *, allow_private: bool,
        judges: Judges | None = None,
    ) -> None:  # fmt: skip
        self._judges = judges
        self._database_url = database_url
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._allow_private = allow_private
        self.loaded = asyncio.Event()
        """Set once the registry has been filled for the first time."""
        self.connected = False

    async def run(self) -> None:
        """Follow the store until cancelled. While it is away the registry keeps what it has."""
        failures = 0
        while True:
            try:
                await self._follow()
            except EnrolmentStoreUnavailableError as error:
                if self.connected or failures == 0:
                    _log.warning("enrolment_listener_disconnected", error=type(error.__cause__ or error).__name__)
                failures = 1 if self.connected else failures + 1
            self.connected = False
            await asyncio.sleep(min(BACKOFF_S_MIN * 2.0 ** min(failures - 1, 10), BACKOFF_S_MAX) * self._jitter())

    async def _follow(self) -> None:
        connection = await connect(self._database_url, application="cocoon-enrolments")
        try:
            changed, lost = asyncio.Event(), asyncio.Event()

            def note_change(_connection: object, _pid: int, _channel: str, _payload: str) -> None:
                changed.set()

            def note_loss(_connection: object) -> None:
                lost.set()
                changed.set()

            connection.add_termination_listener(note_loss)
            await self._listen(connection, note_change)
            while not lost.is_set():
                changed.clear()
                await self._load(connection)
                await self._wait(changed)
            raise EnrolmentStoreUnavailableError
        finally:
            connection.terminate()

    async def _listen(
        self, connection: ListeningConnection, note_change: Callable[[object, int, str, str], None]
    ) -> None:
        with translated():
            for channel in CHANNELS:
                await connection.add_listener(channel, note_change)

    async def _load(self, connection: Connection) -> None:
        with translated():
            workers = await load_workers(
                connection, self._clock, allow_private=self._allow_private, judges=self._judges
            )
        self._registry.replace_enrolments(workers)
        if not self.connected:
            _log.info("enrolments_loaded", workers=len(workers))
        self.connected = True
        self.loaded.set()

    async def _wait(self, changed: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(RELOAD_S):
                await changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(COALESCE_S)

    def _jitter(self) -> float:
        return 0.5 + self._rng.random() / 2


async def _register_stake(connection: Connection, worker: Worker, config: bytes | None) -> None:
    """Have the biller follow the worker's stake, if it has one, and customers find its configuration."""
    if worker.stake == NO_STAKE:
        return
    address = str(Address(0, worker.stake))
    await connection.execute(STATEMENTS["lock_stake"], address)
    registered = await connection.fetchval(
        STATEMENTS["register_stake"], address, worker.worker_id, STAKE_HELD_S, config
    )
    if registered is None:
        raise StakeRefusedError(
            "the stake is another worker's while its keyset lives and its worker key is not revoked"
        )


async def load_workers(
    connection: Connection, clock: Clock, *, allow_private: bool, judges: Judges | None = None
) -> list[Worker]:
    """Every stored worker that is admitted now; others are left out and logged.

    What was found under another policy than ours is judged again, as of then; without a policy of ours it counts for
    nothing, and the worker is quarantined.
    """
    workers: list[Worker] = []
    for row in await connection.fetch(STATEMENTS["load_workers"]):
        worker_id: uuid.UUID = uuid.UUID(str(row["worker_id"]))
        try:
            worker = admit(_request(row), worker_id=worker_id, now=clock.now(), allow_private=allow_private)
            asks = msgspec.json.decode(row["asks"], type=tuple[PostedAsk, ...])
            worker = msgspec.structs.replace(worker, asks=asks)
            if row["tee_type"] != "none":
                worker = await _with_standing(connection, worker, row, judges)
            workers.append(worker)
        except KeysetLifetimeError:
            # Its agent is gone, or about to enrol with a new keyset.
            continue
        except (EnrolmentRefusedError, MalformedError, msgspec.ValidationError) as error:
            _log.warning("enrolment_skipped", worker_id=str(worker_id), error=type(error).__name__)
    return workers


async def _versioned(connection: Connection, worker: Worker) -> tuple[PostedAsk, ...]:
    versioned: list[PostedAsk] = []
    for ask in worker.asks:
        numbers = (ask.prompt, ask.cached, ask.completion, ask.or_ceiling)
        version: int | None = await connection.fetchval(
            STATEMENTS["put_ask"], worker.worker_id, ask.model, *numbers, ASKS_PER_DAY_MAX
        )
        if version is None:
            raise AskRefusedError(f"more than {ASKS_PER_DAY_MAX} new asks for {ask.model} within a day")
        versioned.append(msgspec.structs.replace(ask, version=version))
    return tuple(versioned)


async def _with_standing(connection: Connection, worker: Worker, row: Record, judges: Judges | None) -> Worker:
    """What was found about the worker's evidence, as far as it counts under our policy."""
    ours = None if judges is None else judges.policy_sha256
    until: int | None = row["attested_until"]
    admitted = row["outcome"] == "admitted" and until is not None
    if admitted and judges is not None and ours is not None and row["policy_sha256"] != ours:
        judged = await judged_again(connection, worker, judges)
        if judged is not None and judged.outcome is not Outcome.REFUSED:
            return attested(worker, judged)
    counts = admitted and ours is not None and row["policy_sha256"] == ours
    return msgspec.structs.replace(
        worker,
        tee_type=row["tee_type"],
        evidence=row["level"] if counts else "none",
        attested_until=until or 0,
        quarantined=not counts,
    )


def _request(row: Record) -> EnrolRequest:
    return msgspec.convert(
        {
            "keyset": row["keyset"],
            "url": row["url"],
            "name": row["name"],
            "models": msgspec.json.decode(row["models"], type=tuple[ServedModel, ...]),
            "capacity": row["capacity"],
            "engine": row["engine"],
        },
        EnrolRequest,
        builtin_types=(bytes,),
    )
