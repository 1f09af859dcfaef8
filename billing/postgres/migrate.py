"""Forward-only migrations: plain SQL files, applied in order, each in its own transaction, never changed afterwards.

A database that knows a migration this release does not know is refused: an older program must not write to a newer
schema. Two runners take turns by an advisory lock.
"""

import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import ClassVar

import msgspec

from billing.ports import BillingError
from billing.postgres.partitions import create_partitions
from billing.postgres.pool import Connection, connect, translated
from billing.postgres.statements import load_statements

MIGRATION_LOCK_KEY = 4848484800
RUNNER_WAIT_S_MAX = 120.0
"""How long a runner waits for another one."""
MIGRATION_LOCK_TIMEOUT_S = 5.0
"""How long one migration may stand in the way of running queries while it waits for a table."""
MIGRATION_STATEMENT_TIMEOUT_S = 60.0
_FILE_FORM = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_SQL = load_statements("migrate.sql")


class MigrationError(BillingError):
    """The database's migrations and this release's do not fit together."""

    code: ClassVar[str] = "migration_refused"


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """One migration file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> bytes:
        """Checksum of the text."""
        return hashlib.sha256(self.sql.encode()).digest()


def load_migrations(folder: Traversable | None = None) -> tuple[Migration, ...]:
    """The migrations of this release (or of `folder`), in order.

    Raises:
        MigrationError: a file is misnamed, or the numbers are not 1, 2, 3 and so on.
    """
    migrations: list[Migration] = []
    for entry in (folder or files("migrations")).iterdir():
        if not entry.name.endswith(".sql"):
            continue
        form = _FILE_FORM.fullmatch(entry.name)
        if form is None:
            raise MigrationError(f"{entry.name} is not named NNNN_what.sql")
        migrations.append(Migration(version=int(form[1]), name=form[2], sql=entry.read_text(encoding="utf-8")))
    migrations.sort(key=lambda migration: migration.version)
    if [migration.version for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise MigrationError("migrations must be numbered 1, 2, 3, ... without gaps")
    return tuple(migrations)


async def migrate(database_url: str, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing, create the day partitions, and return what was applied.

    Raises:
        MigrationError: an applied migration has changed or is unknown to this release.
        LedgerUnavailableError: no connection, or a lock was not to be had in time.
        RecordRefusedError: a migration failed; those before it stay applied.
    """
    wanted = load_migrations() if migrations is None else migrations
    async with connect(database_url, application="cocoon-migrate") as connection:
        with translated():
            return await _migrate(connection, wanted)


async def _migrate(connection: Connection, wanted: Sequence[Migration]) -> list[Migration]:
    await _set_timeouts(connection, lock_s=RUNNER_WAIT_S_MAX, statement_s=RUNNER_WAIT_S_MAX, local=False)
    await connection.execute(_SQL["lock_migrations"], MIGRATION_LOCK_KEY)
    await connection.execute(_SQL["create_schema_migrations"])
    missing = await _missing(connection, wanted)
    for migration in missing:
        async with connection.transaction():
            await _set_timeouts(
                connection, lock_s=MIGRATION_LOCK_TIMEOUT_S, statement_s=MIGRATION_STATEMENT_TIMEOUT_S, local=True
            )
            await connection.execute(migration.sql)
            await connection.execute(_SQL["record_applied"], migration.version, migration.name, migration.sha256)
    if wanted:
        await create_partitions(connection)
    return missing


async def _missing(connection: Connection, wanted: Sequence[Migration]) -> list[Migration]:
    known = {migration.version: migration for migration in wanted}
    applied = await connection.fetch(_SQL["list_applied"])
    for row in applied:
        version, name = row["version"], row["name"]
        if version not in known:
            raise MigrationError(
                f"the database has migration {version:04d}_{name}, which this release (up to {len(wanted):04d}) does "
                "not know: run a release at least as new as the database"
            )
        if row["sha256"] != known[version].sha256:
            raise MigrationError(
                f"migration {version:04d}_{name} was changed after it was applied: restore it and add a new one"
            )
    if [row["version"] for row in applied] != list(range(1, len(applied) + 1)):
        raise MigrationError("the database lacks a migration in between: it was edited by hand")
    return list(wanted[len(applied) :])


async def _set_timeouts(connection: Connection, *, lock_s: float, statement_s: float, local: bool) -> None:
    for name, seconds in (("lock_timeout", lock_s), ("statement_timeout", statement_s)):
        await connection.execute(_SQL["set_timeout"], name, str(int(seconds * 1000)), local)
