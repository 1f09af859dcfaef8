"""Stored enrolments and the listener that follows them, on a real Postgres."""

import asyncio
import contextlib
import hashlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from billing.postgres.pool import open_pool
from cocoon.clock import ManualClock
from cocoon.enrolment import Ask, ServedModel
from tests.fixtures_postgres import PostgresServer
from tests.unit.workers.worker_values import MODEL, a_keyset, a_request
from workers.enrolments import admit
from workers.errors import AskRefusedError, EnrolmentStoreUnavailableError, StakeRefusedError
from workers.postgres import enrolments as module
from workers.postgres.enrolments import STATEMENTS, EnrolmentListener, EnrolmentStore
from workers.registry import Registry
from workers.targets import Worker, worker_id_of

DEADLINE_S = 60.0
CUSTOMER = uuid.UUID(int=100)
KEY, OTHER_KEY = uuid.UUID(int=1), uuid.UUID(int=2)
CLOCK = ManualClock()


async def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


async def _execute(url: str, statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


async def _seed(url: str) -> None:
    await _execute(url, "INSERT INTO customers (id, name) VALUES ($1, 'operator')", CUSTOMER)
    for key in (KEY, OTHER_KEY):
        await _execute(
            url,
            "INSERT INTO api_keys (id, customer_id, name, sha256, prefix, role) "
            "VALUES ($1, $2, $3, $4, 'wk', 'worker')",
            key,
            CUSTOMER,
            f"key-{key.int}",
            key.bytes * 2,
        )


def _worker(name: str = "worker-1", key: uuid.UUID = KEY, **changes: object) -> Worker:
    boot_id = hashlib.sha256(key.bytes + name.encode()).digest()
    keyset = changes.pop("keyset", a_keyset(CLOCK, boot_id=boot_id))
    request = a_request(CLOCK, keyset, name=name, **changes)  # type: ignore[arg-type]
    return admit(request, worker_id=worker_id_of(key, name), now=CLOCK.now(), allow_private=True)


@contextlib.asynccontextmanager
async def _store(url: str, *, allow_private: bool = True) -> AsyncIterator[EnrolmentStore]:
    async with open_pool(url, application="test") as pool:
        yield EnrolmentStore(pool, CLOCK, allow_private=allow_private)


@pytest.fixture
async def url(database_url: str) -> str:
    await _seed(database_url)
    return database_url


@pytest.fixture
async def store(url: str) -> AsyncIterator[EnrolmentStore]:
    async with _store(url) as store:
        yield store


class Follower:
    """A registry that a listener feeds."""

    def __init__(self, url: str) -> None:
        self.registry = Registry(CLOCK)
        self.listener = EnrolmentListener(url, self.registry, CLOCK, random.Random(1), allow_private=True)

    def names(self) -> list[str]:
        workers = [self.registry.worker(worker_id) for worker_id in self.registry.worker_ids()]
        return sorted(worker.name for worker in workers if worker is not None)


@contextlib.asynccontextmanager
async def _following(url: str, *, loaded: bool = True) -> AsyncIterator[Follower]:
    follower = Follower(url)
    task = asyncio.ensure_future(follower.listener.run())
    try:
        if loaded:
            await asyncio.wait_for(follower.listener.loaded.wait(), DEADLINE_S)
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_every_statement_fits_the_migrated_schema(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        for statement in STATEMENTS.values():
            await connection.prepare(statement)
    finally:
        await connection.close()


async def test_what_is_saved_is_loaded_to_the_byte(store: EnrolmentStore) -> None:
    models = (ServedModel(id=MODEL, context_tokens=2048), ServedModel(id="org/other:7b", context_tokens=1))
    saved = await store.save(_worker(models=models), KEY)

    assert saved == _worker(models=models)
    assert await store.load() == [saved]


async def test_enrolling_again_renews_the_same_worker_with_its_new_keyset(store: EnrolmentStore) -> None:
    first = await store.save(_worker(), KEY)
    keyset = a_keyset(CLOCK, boot_id=b"boot-two-0123456")
    again = await store.save(_worker(url="https://10.0.0.9", capacity=9, keyset=keyset), KEY)

    assert again.worker_id == first.worker_id
    assert again.keyset_digest != first.keyset_digest
    assert await store.load() == [again]


async def test_the_stored_id_wins(store: EnrolmentStore) -> None:
    first = await store.save(_worker(), KEY)
    impostor = admit(a_request(CLOCK, first.keyset), worker_id=uuid.UUID(int=999), now=CLOCK.now(), allow_private=True)

    assert (await store.save(impostor, KEY)).worker_id == first.worker_id


async def test_two_keys_may_use_one_name(store: EnrolmentStore) -> None:
    await store.save(_worker(), KEY)
    await store.save(_worker(key=OTHER_KEY), OTHER_KEY)

    assert len(await store.load()) == 2


async def test_a_removed_worker_is_gone_until_it_enrols_again(store: EnrolmentStore) -> None:
    worker = await store.save(_worker(), KEY)
    assert [await store.remove(worker.worker_id), await store.remove(worker.worker_id)] == [True, False]
    assert await store.load() == []

    await store.save(_worker(), KEY)

    assert await store.load() == [worker]


@pytest.mark.parametrize("ending", ["revoked_at = now()", "expires_at = now()"])
async def test_workers_of_a_key_that_ended_are_not_loaded(store: EnrolmentStore, url: str, ending: str) -> None:
    await store.save(_worker(), KEY)
    await store.save(_worker(key=OTHER_KEY), OTHER_KEY)
    await _execute(url, f"UPDATE api_keys SET {ending} WHERE id = $1", KEY)

    assert [worker.worker_id for worker in await store.load()] == [worker_id_of(OTHER_KEY, "worker-1")]


async def test_a_stored_worker_must_still_satisfy_the_rules(store: EnrolmentStore, url: str) -> None:
    await store.save(_worker("private", url="https://10.0.0.9"), KEY)
    public = await store.save(_worker("public"), KEY)
    await store.save(_worker("broken"), KEY)
    await _execute(url, "UPDATE workers SET keyset = 'rubbish' WHERE name = 'broken'")
    async with _store(url, allow_private=False) as strict:
        with capture_logs() as logs:
            assert await strict.load() == [public]

    assert sorted(entry["error"] for entry in logs) == ["KeysetRefusedError", "WorkerURLRefusedError"]


async def test_a_listener_loads_follows_and_forgets(store: EnrolmentStore, url: str) -> None:
    await store.save(_worker("one"), KEY)
    async with _following(url) as follower:
        assert follower.names() == ["one"]

        await store.save(_worker("two"), KEY)
        await _until(lambda: follower.names() == ["one", "two"])
        await store.remove(worker_id_of(KEY, "one"))
        await _until(lambda: follower.names() == ["two"])


async def test_a_revoked_worker_key_takes_its_workers_out(store: EnrolmentStore, url: str) -> None:
    await store.save(_worker("one"), KEY)
    async with _following(url) as follower:
        await _execute(url, "UPDATE api_keys SET revoked_at = now() WHERE id = $1", KEY)

        await _until(lambda: follower.names() == [])


async def test_a_listener_whose_connection_is_cut_catches_up(store: EnrolmentStore, url: str) -> None:
    async with _following(url) as follower:
        await _execute(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'cocoon-enrolments' AND datname = current_database()",
        )
        await store.save(_worker("meanwhile"), KEY)

        await _until(lambda: follower.names() == ["meanwhile"] and follower.listener.connected)


async def test_a_postgres_crash_keeps_the_workers_and_recovers(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    await _seed(url)
    async with _store(url) as store, _following(url) as follower:
        await store.save(_worker("before"), KEY)
        await _until(lambda: follower.names() == ["before"])
        own_postgres.kill()
        await _until(lambda: not follower.listener.connected)
        with pytest.raises(EnrolmentStoreUnavailableError):
            await store.load()
        assert follower.names() == ["before"]

        own_postgres.start()
        await _until(lambda: follower.listener.connected)
        await store.save(_worker("after"), KEY)

        await _until(lambda: follower.names() == ["after", "before"])


async def test_a_listener_waits_for_the_first_migration(empty_database_url: str) -> None:
    async with _following(empty_database_url, loaded=False) as follower:
        with capture_logs() as logs:
            await _until(lambda: any(entry["event"] == "enrolment_listener_disconnected" for entry in logs))

        assert not follower.listener.loaded.is_set()


async def test_asks_are_rows_that_never_change_and_only_a_new_one_is_a_new_row(
    url: str, store: EnrolmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _execute(url, "INSERT INTO models (id, context_tokens) VALUES ($1, 2048)", MODEL)

    async def asking(*numbers: Any, name: str = "worker-1") -> int:
        stored = await store.save(_worker(name, asks=(Ask(MODEL, *numbers),)), KEY)
        [ask] = stored.asks
        return ask.version

    versions = [await asking(3, 2, 5), await asking(3, 2, 5), await asking(3, 2, 6), await asking(3, 2, 5)]
    assert versions == [2**31, 2**31, 2**31 + 1, 2**31 + 2]
    assert await asking(3, 2, 5, name="worker-2") == 2**31 + 3
    loaded = {worker.name: [ask.version for ask in worker.asks] for worker in await store.load()}
    assert loaded == {"worker-1": [2**31 + 2], "worker-2": [2**31 + 3]}
    for statement in ("UPDATE asks SET prompt_nano_per_mtok = 1", "DELETE FROM asks"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await _execute(url, statement)
    # A worker that changes its mind all the time does not fill the table, and keeps what it had.
    monkeypatch.setattr(module, "ASKS_PER_DAY_MAX", 3)
    with pytest.raises(AskRefusedError):
        await asking(1, 1, 1)
    assert await asking(3, 2, 5) == 2**31 + 2
    await store.save(_worker(), KEY)
    assert [worker.asks for worker in await store.load() if worker.name == "worker-1"] == [()]


async def test_a_stake_is_followed_for_one_worker_until_that_is_removed(url: str, store: EnrolmentStore) -> None:
    account = "22" * 32
    staked = {"stake_addr": f"0:{account}", "delegation": bytes(64)}

    def worker(name: str, boot_id: bytes) -> Worker:
        return _worker(name, keyset=a_keyset(CLOCK, boot_id=boot_id, **staked))

    first = await store.save(worker("one", b"boot-one-0123456"), KEY)
    assert (await store.save(worker("one", b"boot-two-0123456"), KEY)).stake.hex() == account
    with pytest.raises(StakeRefusedError, match="another worker's"):
        await store.save(worker("two", b"boot-thr-0123456"), KEY)
    assert [loaded.name for loaded in await store.load()] == ["one"]

    await store.remove(first.worker_id)
    second = await store.save(worker("two", b"boot-thr-0123456"), KEY)
    await _execute(url, "UPDATE workers SET enrolled_at = now() - interval '7 hours' WHERE name = 'two'")
    third = await store.save(worker("three", b"boot-fou-0123456"), OTHER_KEY)
    await _execute(url, "UPDATE api_keys SET revoked_at = now() WHERE id = $1", OTHER_KEY)
    fourth = await store.save(worker("four", b"boot-fiv-0123456"), KEY)
    assert len({first.worker_id, second.worker_id, third.worker_id, fourth.worker_id}) == 4

    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT address, worker_id, state FROM stakes")
    finally:
        await connection.close()
    assert [tuple(row) for row in rows] == [(f"0:{account}", fourth.worker_id, "registered")]
