"""The migration runner against a real server."""

import asyncio
import uuid

import asyncpg
import pytest

from billing.ports import LedgerUnavailableError, RecordRefusedError
from billing.postgres import migrate as runner
from billing.postgres.check import broken_invariants
from billing.postgres.migrate import Migration, MigrationError, load_migrations, migrate
from billing.postgres.partitions import ensure_partitions
from billing.postgres.pool import open_pool

FIRST = Migration(version=1, name="first", sql="CREATE TABLE first (id bigint PRIMARY KEY);")
SECOND = Migration(version=2, name="second", sql="CREATE TABLE second (id bigint PRIMARY KEY);")
PARTITIONS = Migration(
    version=3,
    name="partitions",
    sql="CREATE FUNCTION ensure_day_partitions(date, date) RETURNS integer LANGUAGE sql AS 'SELECT 0';",
)
USAGE_ROW = """
    INSERT INTO usage (
        day, job_id, attempt, customer_id, key_id, model, asset, price_version, share_bps, prompt_tokens,
        cached_tokens, completion_tokens, numerator, charge_nano, share_nano, fee_nano, outcome, finish_reason,
        started_at, ended_at, body_digest
    )
    SELECT
        (now() AT TIME ZONE 'utc')::date, '00000000-0000-0000-0000-000000000001', $1::int, id, id, 'm', 'TON', 1, 0,
        5, 0, 0, charge * 1000000, charge, 0, charge, outcome, 'stop', now(), now(), decode(repeat('00', 32), 'hex')
    FROM (
        SELECT
            '00000000-0000-0000-0000-000000000002'::uuid AS id,
            CASE $1::int WHEN 0 THEN 7 ELSE 0 END AS charge,
            CASE $1::int WHEN 0 THEN 'completed' ELSE 'broken' END AS outcome
    ) AS one
"""
"""Attempt 0 is charged, attempt 1 broke; only columns that the schema had before the rollups."""
PLAIN = (FIRST, SECOND, PARTITIONS)


async def test_every_migration_applies_once_and_a_second_run_changes_nothing(empty_database_url: str) -> None:
    assert await migrate(empty_database_url) == list(load_migrations())
    assert await migrate(empty_database_url) == []


async def test_a_newer_release_applies_only_what_is_missing(empty_database_url: str) -> None:
    stub = Migration(version=1, name="first", sql=FIRST.sql + PARTITIONS.sql)
    await migrate(empty_database_url, [stub])
    assert await migrate(empty_database_url, [stub, SECOND]) == [SECOND]


async def test_a_changed_migration_is_refused(empty_database_url: str) -> None:
    await migrate(empty_database_url, PLAIN)
    edited = Migration(version=1, name="first", sql=FIRST.sql + " -- harmless?")
    with pytest.raises(MigrationError, match="0001_first was changed after it was applied"):
        await migrate(empty_database_url, (edited, SECOND, PARTITIONS))


async def test_a_database_of_a_newer_release_is_refused(empty_database_url: str) -> None:
    await migrate(empty_database_url, PLAIN)
    with pytest.raises(MigrationError, match="has migration 0003_partitions, which this release"):
        await migrate(empty_database_url, (FIRST, SECOND))


async def test_a_failing_migration_leaves_nothing_of_itself_and_keeps_those_before(empty_database_url: str) -> None:
    broken = Migration(version=2, name="broken", sql="CREATE TABLE half (id bigint); SELECT 1 / 0;")
    with pytest.raises(RecordRefusedError, match="division by zero"):
        await migrate(empty_database_url, (FIRST, broken))
    connection = await asyncpg.connect(empty_database_url)
    try:
        assert await connection.fetchval("SELECT to_regclass('half') IS NULL AND to_regclass('first') IS NOT NULL")
        assert await connection.fetch("SELECT version FROM schema_migrations") == [(1,)]
    finally:
        await connection.close()


async def test_keys_of_the_previous_release_fall_to_their_customers_default_project(empty_database_url: str) -> None:
    known = load_migrations()
    before = [migration for migration in known if migration.version < 8]
    insert = "INSERT INTO api_keys (id, customer_id, name, sha256, prefix, role) VALUES ($1, $2, $3, $4, 'sk', $5)"
    customers = [uuid.uuid4(), uuid.uuid4()]
    connection = await asyncpg.connect(empty_database_url)
    try:
        await migrate(empty_database_url, before)
        for customer in customers:
            await connection.execute("INSERT INTO customers (id, name) VALUES ($1, $2)", customer, str(customer))
            for name, role in (("a", "customer"), ("b", "worker")):
                key = uuid.uuid4()
                await connection.execute(insert, key, customer, name, key.bytes * 2, role)
        await migrate(empty_database_url, known)
        # The previous release still runs, and knows no projects.
        await connection.execute(insert, uuid.uuid4(), customers[0], "c", uuid.uuid4().bytes * 2, "customer")
        placed = await connection.fetch(
            "SELECT p.customer_id = k.customer_id AS own, p.name, p.customer_id, count(*) AS keys FROM api_keys AS k "
            "JOIN projects AS p ON p.id = k.project_id GROUP BY 1, 2, 3 ORDER BY 4 DESC"
        )
        assert [tuple(row) for row in placed] == [
            (True, "default", customers[0], 3), (True, "default", customers[1], 2)
        ]  # fmt: skip
        theirs = await connection.fetchval("SELECT id FROM projects WHERE customer_id = $1", customers[1])
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await connection.execute(
                "INSERT INTO api_keys (id, customer_id, name, sha256, prefix, role, project_id) "
                "VALUES ($1, $2, 'd', $3, 'sk', 'customer', $4)",
                uuid.uuid4(), customers[0], uuid.uuid4().bytes * 2, theirs,
            )  # fmt: skip
        with pytest.raises(asyncpg.RestrictViolationError, match="a key stays in its project"):
            await connection.execute("UPDATE api_keys SET project_id = $1 WHERE customer_id = $2", theirs, customers[0])
    finally:
        await connection.close()


async def test_two_runners_at_once_apply_each_migration_once(empty_database_url: str) -> None:
    applied = await asyncio.gather(migrate(empty_database_url), migrate(empty_database_url))
    assert sorted(len(run) for run in applied) == [0, len(load_migrations())]


async def test_a_migration_gives_up_soon_when_a_table_is_locked(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MIGRATION_LOCK_TIMEOUT_S", 0.1)
    await migrate(empty_database_url, PLAIN)
    change = Migration(version=4, name="change", sql="ALTER TABLE first ADD COLUMN more bigint;")
    connection = await asyncpg.connect(empty_database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE first IN ACCESS SHARE MODE")
            with pytest.raises(LedgerUnavailableError, match="lock timeout"):
                await migrate(empty_database_url, (*PLAIN, change))
        assert await migrate(empty_database_url, (*PLAIN, change)) == [change]
    finally:
        await connection.close()


async def test_an_unreachable_database_is_a_typed_error() -> None:
    with pytest.raises(LedgerUnavailableError):
        await migrate("postgresql://cocoon@127.0.0.1:1/nothing")


@pytest.mark.usefixtures("one_day")
async def test_day_partitions_are_created_once_by_concurrent_callers(empty_database_url: str) -> None:
    # Migrated here: the template that tests share may be of yesterday.
    await migrate(empty_database_url, load_migrations())
    connection = await asyncpg.connect(empty_database_url)
    try:
        before = await connection.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = 'transfers'::regclass")
        assert before == 9  # yesterday, today and seven days ahead
        await connection.execute("DROP TABLE transfers_" + await connection.fetchval(
            "SELECT to_char(now() AT TIME ZONE 'utc' + interval '7 days', 'YYYYMMDD')"
        ))  # fmt: skip
        async with open_pool(empty_database_url, application="test") as pool:
            created = await asyncio.gather(ensure_partitions(pool), ensure_partitions(pool))
        assert sorted(created) == [0, 1]
        # A partition must carry its parent's indexes and its insert-only trigger.
        today = await connection.fetchval("SELECT 'usage_' || to_char(now() AT TIME ZONE 'utc', 'YYYYMMDD')")
        triggers = await connection.fetchval(
            "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::text::regclass", today
        )
        indexes = await connection.fetchval("SELECT count(*) FROM pg_index WHERE indrelid = $1::text::regclass", today)
        assert (triggers, indexes) == (1, 2)
    finally:
        await connection.close()


async def test_usage_from_before_the_rollups_is_in_them(empty_database_url: str) -> None:
    migrations = load_migrations()
    rollups = next(number for number, one in enumerate(migrations) if one.name == "usage_daily")
    await migrate(empty_database_url, migrations[:rollups])
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute(USAGE_ROW, 0)
        await migrate(empty_database_url, migrations)
        # What the previous release, which does not know of rollups, writes while it still runs.
        await connection.execute(USAGE_ROW, 1)
        [row] = await connection.fetch("SELECT requests, broken, prompt_tokens, charge_nano FROM usage_daily")
        assert tuple(row) == (1, 1, 5, 7)
        assert [line for line in await broken_invariants(connection) if line.invariant == "rollups_equal_usage"] == []
    finally:
        await connection.close()
