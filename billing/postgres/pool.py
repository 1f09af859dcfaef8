"""Connections to Postgres, and the one place where its errors become billing's.

Owns pool size and timeouts; knows nothing of what is asked. asyncpg has no types of its own, so the few methods that
are used are declared here.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from typing import Any, ClassVar, Protocol, cast

import asyncpg

from audit.postgres.transient import TRANSIENT
from billing.ports import LedgerUnavailableError, RecordRefusedError

POOL_CONNECTIONS_MAX = 8
"""Per process: one each for the hold and the settle lane, the rest for balances, sweeps and pages."""
CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 5.0
IDLE_IN_TRANSACTION_TIMEOUT_S = 10.0
"""A process that stops inside a transaction must not keep everybody's accounts locked."""
COMMAND_TIMEOUT_S = STATEMENT_TIMEOUT_S + 2.0
"""The client's own limit, for a server that no longer answers at all."""
CLOSE_TIMEOUT_S = 2.0

Record = Mapping[str, Any]


class DuplicateRecordError(RecordRefusedError):
    """A record with the same unique key exists."""

    code: ClassVar[str] = "duplicate_record"


class Connection(Protocol):
    """What is used of `asyncpg.Connection`; parameters are `$n`."""

    async def execute(self, query: str, *args: object) -> str:
        """Run statements; several at once when there are no parameters."""
        ...

    async def fetch(
        self,
        query: str,
        *args: object,
        timeout: float | None = None,  # noqa: ASYNC109  as asyncpg has it
    ) -> list[Record]:
        """Every row."""
        ...

    async def fetchrow(self, query: str, *args: object) -> Record | None:
        """The first row."""
        ...

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first column of the first row."""
        ...

    async def prepare(self, query: str) -> object:
        """Have the server parse and plan a statement."""
        ...

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False
    ) -> contextlib.AbstractAsyncContextManager[object]:
        """A transaction, or a savepoint inside of one."""
        ...

    async def add_listener(self, channel: str, callback: Callable[[object, int, str, str], None]) -> None:
        """LISTEN; the callback gets connection, process id, channel, payload."""
        ...

    def add_termination_listener(self, callback: Callable[[object], None]) -> None:
        """Hear when the connection is gone."""
        ...

    async def close(self) -> None:
        """Close politely."""
        ...

    def terminate(self) -> None:
        """Cut the socket."""
        ...


class Pool(Protocol):
    """What is used of `asyncpg.Pool`."""

    def acquire(self, *, timeout: float | None = None) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection, waiting `timeout` seconds for a free one."""
        ...

    async def close(self) -> None:
        """Close when every connection has come back."""
        ...

    def terminate(self) -> None:
        """Cut every connection."""
        ...


@contextlib.asynccontextmanager
async def open_pool(
    database_url: str, *, application: str, connections_max: int = POOL_CONNECTIONS_MAX
) -> AsyncGenerator[Pool]:
    """A pool that connects when it is first used, so that a process can start before its database does.

    Closing waits `CLOSE_TIMEOUT_S` for connections in use, then cuts them.
    """
    create = cast("Callable[..., Awaitable[Pool]]", asyncpg.create_pool)
    pool = await create(
        database_url,
        min_size=0,
        max_size=connections_max,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings=server_settings(application),
    )
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()


@contextlib.asynccontextmanager
async def connect(database_url: str, *, application: str) -> AsyncGenerator[Connection]:
    """One connection outside of any pool.

    Raises:
        LedgerUnavailableError: no connection within `CONNECT_TIMEOUT_S`.
    """
    open_connection = cast("Callable[..., Awaitable[Connection]]", asyncpg.connect)
    with translated():
        connection = await open_connection(
            database_url, timeout=CONNECT_TIMEOUT_S, server_settings=server_settings(application)
        )
    try:
        yield connection
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connection.close()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()


@contextlib.asynccontextmanager
async def transaction(pool: Pool) -> AsyncGenerator[Connection]:
    """A connection inside a transaction; errors leave translated."""
    with translated():
        async with pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection, connection.transaction():
            yield connection


@contextlib.asynccontextmanager
async def acquired(pool: Pool) -> AsyncGenerator[Connection]:
    """A connection for single statements; errors leave translated."""
    with translated():
        async with pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
            yield connection


@contextlib.contextmanager
def translated() -> Generator[None]:
    """Turn what asyncpg and the operating system raise into billing's errors.

    Raises:
        LedgerUnavailableError: the same call may succeed later.
        DuplicateRecordError: somebody else wrote the same unique key.
        RecordRefusedError: the statement cannot succeed.
    """
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise DuplicateRecordError(f"{type(error).__name__}: {error}") from error
    except TRANSIENT as error:
        raise LedgerUnavailableError(f"{type(error).__name__}: {error}") from error
    except asyncpg.PostgresError as error:
        raise RecordRefusedError(f"{type(error).__name__}: {error}") from error


def server_settings(application: str) -> dict[str, str]:
    """Session settings of every connection: its name in pg_stat_activity and the server-side time limits."""
    return {
        "application_name": application,
        "timezone": "UTC",
        "statement_timeout": _ms(STATEMENT_TIMEOUT_S),
        "lock_timeout": _ms(LOCK_TIMEOUT_S),
        "idle_in_transaction_session_timeout": _ms(IDLE_IN_TRANSACTION_TIMEOUT_S),
    }


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
