"""What is used of asyncpg, which has no types of its own, and the one place where its errors become the log's."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from typing import Any, Protocol, cast

import asyncpg

from audit.errors import LogUnavailableError
from audit.postgres.transient import TRANSIENT

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 12.0
ACQUIRE_TIMEOUT_S = 5.0

Record = Mapping[str, Any]


class Writer(Protocol):
    """What queueing needs of a connection: any of asyncpg's, inside a transaction of the caller's."""

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement; parameters are `$n`."""
        ...


class Connection(Writer, Protocol):
    """What is used of `asyncpg.Connection`."""

    async def fetch(self, query: str, *args: object) -> list[Record]:
        """Every row."""
        ...

    async def fetchrow(self, query: str, *args: object) -> Record | None:
        """The first row."""
        ...

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first column of the first row."""
        ...

    def transaction(self) -> contextlib.AbstractAsyncContextManager[object]:
        """All of it or nothing."""
        ...

    def terminate(self) -> None:
        """Cut the socket."""
        ...


class Pool(Protocol):
    """What is used of `asyncpg.Pool`; the gateway shares one."""

    def acquire(self, *, timeout: float | None = None) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection, waiting `timeout` seconds for a free one."""
        ...


@contextlib.asynccontextmanager
async def connected(database_url: str, *, application: str, settings: Mapping[str, str]) -> AsyncGenerator[Connection]:
    """A connection of one's own, with server settings; cut at the end. Errors leave translated.

    Raises:
        LogUnavailableError: Postgres cannot be reached, or the connection was lost.
    """
    open_connection = cast("Callable[..., Awaitable[Connection]]", asyncpg.connect)
    with translated():
        connection = await open_connection(
            database_url, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S,
            server_settings={"application_name": application, "timezone": "UTC", **settings},
        )  # fmt: skip
        try:
            yield connection
        finally:
            connection.terminate()


@contextlib.asynccontextmanager
async def acquired(pool: Pool) -> AsyncGenerator[Connection]:
    """A connection of the pool; errors leave translated."""
    with translated():
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            yield connection


@contextlib.contextmanager
def translated() -> Generator[None]:
    """Raise `LogUnavailableError` for what time may heal; let programmers' errors through."""
    try:
        yield
    except TRANSIENT as error:
        raise LogUnavailableError from error
