"""Keys in a real database, and a table that follows it."""

import asyncio
import datetime as dt
import time
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from billing.ports import RecordRefusedError
from billing.postgres.account import Accounts
from billing.postgres.pool import Connection, Pool, open_pool
from cocoon.clock import SystemClock, system_random
from cocoon.ids import is_secret_key
from gateway.auth import InvalidKeyError, KeyTable, Principal, Project, Role
from gateway.postgres.keys import KeyListener, KeyNameTakenError, KeySpec, KeyStore, KeyUnknownError
from tests.fixtures_postgres import PostgresServer

CLOCK = SystemClock()
DEADLINE_S = 60.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition. A table that is loaded learns what it is told: nothing loads it again by the clock."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


def accepts(table: KeyTable, secret: str) -> bool:
    try:
        table.authenticate(b"Bearer " + secret.encode(), now=CLOCK.now())
    except InvalidKeyError:
        return False
    return True


@pytest.fixture
def store(pool: Pool) -> KeyStore:
    return KeyStore(pool, system_random())


@pytest.fixture
async def customer(pool: Pool) -> uuid.UUID:
    return await Accounts(pool).open_customer(uuid.uuid4(), "Ada & Co")


@pytest.fixture
async def table(database_url: str) -> AsyncIterator[KeyTable]:
    """A table that a listener keeps fresh."""
    followed = KeyTable(CLOCK)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(KeyListener(database_url, followed, CLOCK, system_random()).run())
        await until(lambda: followed.fresh)
        yield followed
        task.cancel()


async def test_a_created_key_is_accepted_and_a_revoked_one_refused_as_soon_as_it_is_told(
    store: KeyStore, customer: uuid.UUID, table: KeyTable
) -> None:
    created = await store.create(
        KeySpec(customer_id=customer, name="app", requests_per_min=60, cors_origins=("https://a",))
    )
    await until(lambda: accepts(table, created.secret))
    found = table.authenticate(b"Bearer " + created.secret.encode(), now=CLOCK.now())
    assert found.project is not None
    assert found == Principal(
        project=Project(project_id=found.project.project_id),
        key_id=created.key_id,
        customer_id=customer,
        name="app",
        requests_per_min=60,
        cors_origins=frozenset({"https://a"}),
    )
    await store.revoke(str(created.key_id))
    await until(lambda: not accepts(table, created.secret))


async def test_a_projects_changed_limits_reach_the_keys_of_that_project_only(
    store: KeyStore, customer: uuid.UUID, table: KeyTable, connection: Connection
) -> None:
    mine = await store.create(KeySpec(customer_id=customer, name="mine"))
    other_customer = await Accounts(store._pool).open_customer(uuid.uuid4(), "Bob")
    other = await store.create(KeySpec(customer_id=other_customer, name="other"))
    await until(lambda: accepts(table, mine.secret) and accepts(table, other.secret))

    def project_of(secret: str) -> Project:
        project = table.authenticate(b"Bearer " + secret.encode(), now=CLOCK.now()).project
        assert project is not None
        return project

    before = project_of(other.secret)
    project_id = project_of(mine.secret).project_id
    assert project_id != before.project_id
    await connection.execute(
        "UPDATE projects SET requests_per_min = 7, tokens_per_min = 8, concurrency_max = 9, spend_day_nano_max = 10, "
        "spend_month_nano_max = 11 WHERE id = $1",
        project_id,
    )
    wanted = Project(
        project_id=project_id, requests_per_min=7, tokens_per_min=8, concurrency_max=9, spend_day_nano_max=10,
        spend_month_nano_max=11,
    )  # fmt: skip
    await until(lambda: project_of(mine.secret) == wanted)
    assert project_of(other.secret) == before
    await connection.execute("UPDATE projects SET name = 'x', archived_at = now() WHERE id = $1", project_id)
    await until(lambda: not accepts(table, mine.secret))
    assert accepts(table, other.secret)


async def test_the_listener_reconnects_and_learns_what_it_missed(
    store: KeyStore, customer: uuid.UUID, table: KeyTable, connection: Connection
) -> None:
    old = await store.create(KeySpec(customer_id=customer, name="old"))
    await until(lambda: accepts(table, old.secret))
    cut = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cocoon-keys' "
        "AND datname = current_database()"
    )
    assert len(cut) == 1
    new = await store.create(KeySpec(customer_id=customer, name="new"))
    await store.revoke(str(old.key_id))
    await until(lambda: accepts(table, new.secret) and not accepts(table, old.secret))


async def test_the_listener_survives_a_killed_server(own_postgres: PostgresServer) -> None:
    table = KeyTable(CLOCK)
    async with open_pool(own_postgres.url(), application="test") as pool, asyncio.TaskGroup() as group:
        task = group.create_task(KeyListener(own_postgres.url(), table, CLOCK, system_random()).run())
        store = KeyStore(pool, system_random())
        customer = await Accounts(pool).open_customer(uuid.uuid4(), "Ada")
        first = await store.create(KeySpec(customer_id=customer, name="first"))
        await until(lambda: table.fresh and accepts(table, first.secret))
        await asyncio.to_thread(own_postgres.kill)
        assert accepts(table, first.secret)  # for as long as the table is fresh
        await asyncio.to_thread(own_postgres.start)
        second = await store.create(KeySpec(customer_id=customer, name="second"))
        await until(lambda: accepts(table, second.secret))
        task.cancel()


async def test_secrets_are_stored_only_as_hashes(store: KeyStore, customer: uuid.UUID, connection: Connection) -> None:
    created = await store.create(KeySpec(customer_id=customer, name="app"))
    assert is_secret_key(created.secret)
    assert created.secret not in repr(created)
    stored = await connection.fetchval("SELECT api_keys::text FROM api_keys")
    assert created.secret not in stored
    assert created.secret[16:] not in stored


async def test_each_role_has_its_form(store: KeyStore, customer: uuid.UUID) -> None:
    forms = [
        (await store.create(KeySpec(customer_id=customer, name=role.value, role=role))).secret[:10] for role in Role
    ]
    assert forms == ["sk-cocoon-", "ak-cocoon-", "wk-cocoon-"]


async def test_a_live_name_is_taken_and_a_revoked_one_is_free(store: KeyStore, customer: uuid.UUID) -> None:
    spec = KeySpec(customer_id=customer, name="app")
    first = await store.create(spec)
    with pytest.raises(KeyNameTakenError):
        await store.create(spec)
    await store.revoke(str(first.key_id))
    await store.create(spec)
    assert [(key.name, key.revoked_at is None) for key in await store.list_keys()] == [("app", True)]
    assert len(await store.list_keys(revoked=True)) == 2


async def test_a_key_is_revoked_by_its_displayed_prefix_once(store: KeyStore, customer: uuid.UUID) -> None:
    created = await store.create(KeySpec(customer_id=customer, name="app"))
    assert await store.revoke(created.secret[:16]) == created.key_id
    with pytest.raises(KeyUnknownError):
        await store.revoke(created.secret[:16])
    with pytest.raises(KeyUnknownError):
        await store.revoke("no such key")


async def test_an_ambiguous_prefix_revokes_nothing(store: KeyStore, customer: uuid.UUID) -> None:
    for name in ("one", "two"):
        await store.seed("sk-cocoon-" + "shared" + name * 12 + "x", KeySpec(customer_id=customer, name=name))
    with pytest.raises(KeyUnknownError):
        await store.revoke("sk-cocoon-shared")
    assert len(await store.list_keys()) == 2


async def test_seeding_again_changes_nothing(store: KeyStore, customer: uuid.UUID) -> None:
    secret = "sk-cocoon-" + "d" * 43
    first = await store.seed(secret, KeySpec(customer_id=customer, name="dev"))
    assert await store.seed(secret, KeySpec(customer_id=customer, name="dev")) == first
    assert [key.prefix for key in await store.list_keys()] == [secret[:16]]


async def test_a_limit_that_is_none_is_refused(store: KeyStore, customer: uuid.UUID) -> None:
    with pytest.raises(RecordRefusedError):
        await store.create(KeySpec(customer_id=customer, name="app", requests_per_min=0))


async def test_listed_keys_show_limits_and_no_secret(store: KeyStore, customer: uuid.UUID) -> None:
    expires = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
    created = await store.create(
        KeySpec(customer_id=customer, name="app", tokens_per_min=9, allowed_models=("a",), expires_at=expires)
    )
    (listed,) = await store.list_keys()
    shown = (listed.key_id, listed.customer, listed.tokens_per_min, listed.allowed_models, listed.expires_at)
    assert shown == (created.key_id, "Ada & Co", 9, ("a",), expires)
    assert created.secret not in repr(listed)
