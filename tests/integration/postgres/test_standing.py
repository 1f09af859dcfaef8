"""Claims for more than is owed, from the books to routing: they cost a worker requests, then all of them."""

import random
import uuid
from typing import Any

import pytest

from billing.ports import LedgerUnavailableError
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from billing.postgres.recoveries import Recoveries
from cocoon.clock import ManualClock
from cocoon.enrolment import Heartbeat
from cocoon.usage import TokenUsage
from gateway.over_claims import OverClaims
from gateway.postgres.standing import NotSuspendedError, StandingStore
from gateway.standing import HALF_LIFE_S, SUSPEND_JOBS, WINDOW_S, Record, Standing, Suspended
from tests.ledger_values import job_id, settlement
from tests.receipt_values import RECEIPT_PRICE
from tests.unit.workers.worker_values import MODEL, a_request
from workers.enrolments import admit
from workers.errors import NoWorkerError
from workers.registry import Registry
from workers.routing import DispatchOutcome, Router

OVER = TokenUsage(prompt=10, completion=5_000)


class Scene:
    """Two workers in a registry of two processes, and the books."""

    def __init__(self, pool: Pool, connection: Connection) -> None:
        self.connection = connection
        self.recoveries = Recoveries(pool, PostgresLeases(pool, ""))
        self.store = StandingStore(pool)
        self.clock = ManualClock()
        self.liar, self.honest = uuid.uuid4(), uuid.uuid4()
        self.processes = [self.process() for _ in range(2)]

    def process(self) -> tuple[Registry, Standing]:
        registry = Registry(self.clock)
        for worker_id, name in ((self.liar, "liar"), (self.honest, "honest")):
            asked = a_request(self.clock, name=name)
            registry.put_enrolment(admit(asked, worker_id=worker_id, now=self.clock.now(), allow_private=True))
            registry.note_heartbeat(worker_id, Heartbeat(running=0, queued=0, capacity=4), self.clock.monotonic())
        return registry, Standing(self.store, registry)

    async def lie(self, worker: uuid.UUID | None = None, *, job: uuid.UUID | None = None) -> None:
        made = settlement(
            job or job_id(), uuid.uuid4(), worker=worker or self.liar, price=RECEIPT_PRICE,
            usage=TokenUsage(prompt=10, completion=50),
        )  # fmt: skip
        await self.recoveries.note_over_claims([(made, OVER)])

    async def refresh(self) -> None:
        for _, standing in self.processes:
            await standing.refresh()

    def chosen(self, registry: Registry, times: int = 200) -> set[uuid.UUID]:
        router = Router(registry, self.clock, random.Random(1))
        found: set[uuid.UUID] = set()
        for _ in range(times):
            dispatch = router.choose(MODEL)
            found.add(dispatch.target_id)
            dispatch.finish(DispatchOutcome.OK)
        return found


@pytest.fixture
async def scene(ledger: PostgresLedger, pool: Pool, connection: Connection) -> Scene:
    return Scene(pool, connection)


async def test_one_claim_makes_a_worker_dearer_in_every_process_and_fades(scene: Scene) -> None:
    await scene.refresh()
    assert all(scene.chosen(registry) == {scene.liar, scene.honest} for registry, _ in scene.processes)
    await scene.lie()
    await scene.refresh()
    # Of two equal workers the one that lied is not chosen; where it is alone, it is.
    assert all(scene.chosen(registry) == {scene.honest} for registry, _ in scene.processes)
    registry, _ = scene.processes[0]
    alone = Router(registry, scene.clock, random.Random(1)).choose(MODEL, ignore=("honest",))
    assert alone.target_id == scene.liar
    alone.finish(DispatchOutcome.OK)
    await _age(scene, HALF_LIFE_S)
    weight = (await scene.store.read()).offences[scene.liar]
    assert 0.49 < weight <= 0.5
    await _age(scene, WINDOW_S)
    assert (await scene.store.read()).offences == {}


async def _age(scene: Scene, seconds: float) -> None:
    """Make every claim older; the table itself refuses changes."""
    await scene.connection.execute("ALTER TABLE discrepancies DISABLE TRIGGER discrepancies_insert_only")
    await scene.connection.execute(
        "UPDATE discrepancies SET created_at = created_at - make_interval(secs => $1)", float(seconds)
    )
    await scene.connection.execute("ALTER TABLE discrepancies ENABLE TRIGGER discrepancies_insert_only")


async def test_a_repeat_offender_is_suspended_once_gets_nothing_and_can_be_reinstated(scene: Scene) -> None:
    for _ in range(SUSPEND_JOBS):
        await scene.lie()
    assert await scene.store.suspend_offenders() == [Suspended(scene.liar, SUSPEND_JOBS)]
    assert await scene.store.suspend_offenders() == []
    await scene.refresh()
    for registry, _ in scene.processes:
        assert scene.chosen(registry) == {scene.honest}
        with pytest.raises(NoWorkerError):
            Router(registry, scene.clock, random.Random(1)).choose(MODEL, ignore=("honest",))
        assert registry.models() == {MODEL: 1}
    # Enrolling again is no way back, and neither is a new process of the gateway.
    registry, _ = scene.processes[0]
    asked = a_request(scene.clock, name="liar")
    registry.put_enrolment(admit(asked, worker_id=scene.liar, now=scene.clock.now(), allow_private=True))
    assert scene.chosen(registry) == {scene.honest}
    later, standing = scene.process()
    await standing.refresh()
    assert scene.chosen(later) == {scene.honest}
    [held] = await scene.store.held()
    assert (held.worker_id, held.jobs, held.suspended_at is not None) == (scene.liar, SUSPEND_JOBS, True)

    await scene.store.lift(scene.liar, "a broken build, replaced")
    await scene.refresh()
    assert all(scene.chosen(registry) == {scene.liar, scene.honest} for registry, _ in scene.processes)
    assert await scene.store.suspend_offenders() == []
    with pytest.raises(NotSuspendedError):
        await scene.store.lift(scene.liar, "again")
    audited = await scene.connection.fetch("SELECT action, subject_id FROM audit_log")
    assert [tuple(row) for row in audited] == [("worker.reinstated", scene.liar)]
    # From here it is counted afresh.
    for _ in range(SUSPEND_JOBS - 1):
        await scene.lie()
    assert await scene.store.suspend_offenders() == []
    await scene.lie()
    assert [one.worker_id for one in await scene.store.suspend_offenders()] == [scene.liar]


async def test_many_claims_about_one_job_are_one_offence_and_old_ones_none(scene: Scene) -> None:
    job = job_id()
    for _ in range(5):
        await scene.lie(job=job)
    assert await scene.store.suspend_offenders() == []
    await _age(scene, WINDOW_S + 1)
    for _ in range(SUSPEND_JOBS - 1):
        await scene.lie()
    assert await scene.store.suspend_offenders() == []
    record = await scene.store.read()
    assert (set(record.offences), record.suspended) == ({scene.liar}, frozenset())


class AwayStore:
    """A database that comes and goes."""

    def __init__(self, record: Record) -> None:
        self.away = False
        self._record = record

    async def suspend_offenders(self) -> list[Suspended]:
        if self.away:
            raise LedgerUnavailableError
        return []

    async def read(self) -> Record:
        return self._record


async def test_while_the_database_is_away_the_last_standing_holds(scene: Scene) -> None:
    registry, _ = scene.process()
    store = AwayStore(Record(offences={}, suspended=frozenset({scene.liar})))
    standing = Standing(store, registry)
    await standing.refresh()
    store.away = True
    with pytest.raises(LedgerUnavailableError):
        await standing.refresh()
    assert scene.chosen(registry) == {scene.honest}


async def test_records_wait_for_a_database_that_is_away(scene: Scene) -> None:
    noted: list[Any] = []
    failures = [LedgerUnavailableError()]

    async def record(claims: Any) -> None:
        if failures:
            raise failures.pop()
        noted.extend(claims)
        raise _DoneError

    over = OverClaims(record)
    over.note(settlement(job_id(), uuid.uuid4(), worker=scene.liar, price=RECEIPT_PRICE), OVER)
    with pytest.raises(_DoneError):
        await over.run()
    assert [claimed for _, claimed in noted] == [OVER]


class _DoneError(Exception):
    pass
