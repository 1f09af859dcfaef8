"""What is used of asyncpg, which has no types of its own, and the one place where its errors become ours."""

import contextlib
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, Protocol, cast

import asyncpg

from audit.postgres.transient import TRANSIENT
from workers.errors import EnrolmentStoreUnavailableError

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0
ACQUIRE_TIMEOUT_S = 5.0

Record = Mapping[str, Any]


class Connection(Protocol):
    """What is used of `asyncpg.Connection`; parameters are `$n`."""

    async def fetch(self, query: str, *args: object) -> list[Record]:
        """Every row."""
        ...

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement."""
        ...

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first column of the first row."""
        ...

    def transaction(self) -> contextlib.AbstractAsyncContextManager[object]:
        """All of it or nothing."""
        ...


class ListeningConnection(Connection, Protocol):
    """A connection that also hears notifications."""

    async def add_listener(self, channel: str, callback: Callable[[object, int, str, str], None]) -> None:
        """LISTEN; the callback gets connection, process id, channel, payload."""
        ...

    def add_termination_listener(self, callback: Callable[[object], None]) -> None:
        """Hear when the connection is gone."""
        ...

    def terminate(self) -> None:
        """Cut the socket."""
        ...


class Pool(Protocol):
    """What is used of `asyncpg.Pool`; the gateway shares one."""

    def acquire(self, *, timeout: float | None = None) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection, waiting `timeout` seconds for a free one."""
        ...


async def connect(database_url: str, *, application: str) -> ListeningConnection:
    """A connection of one's own, for LISTEN.

    Raises:
        EnrolmentStoreUnavailableError: Postgres cannot be reached.
    """
    open_connection = cast("Callable[..., Awaitable[ListeningConnection]]", asyncpg.connect)
    with translated():
        return await open_connection(
            database_url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings={"application_name": application},
        )


@contextlib.contextmanager
def translated() -> Generator[None]:
    """Raise `EnrolmentStoreUnavailableError` for what time may heal; let programmers' errors through."""
    try:
        yield
    except TRANSIENT as error:
        raise EnrolmentStoreUnavailableError from error
