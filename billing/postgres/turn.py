"""Whose turn it is to be the biller: one process at a time, by an advisory lock that lives as long as its session.

Whatever is signed is stored on that very session, so a process that has lost it can sign nothing more: its write fails
before anything is sent. The server ends a session that has been silent for `SILENCE_S_MAX`, so that another process
takes over from one that froze.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import ClassVar

import structlog

from billing.ports import BillingError, LedgerUnavailableError
from billing.postgres.pool import Connection, connect, translated
from billing.postgres.statements import load_statements

TURN_LOCK = 4848484811
ASK_S = 1.0
"""How often a process that waits asks for the turn."""
HEARTBEAT_S = 2.0
SILENCE_S_MAX = 7.0
"""With `ASK_S`, below the 10 s within which another process takes over."""
_SQL = load_statements("biller.sql")
log = structlog.get_logger()


class TurnLostError(BillingError):
    """The session that held the turn is gone: another process may be the biller now."""

    code: ClassVar[str] = "turn_lost"
    transient: ClassVar[bool] = True


class Turn:
    """The turn, while its session lives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self._lost = False
        connection.add_termination_listener(self._hear)

    @property
    def is_lost(self) -> bool:
        """Whether the session is known to be gone; `require` asks."""
        return self._lost

    async def require(self) -> None:
        """Have the server answer on the session that has the lock.

        Raises:
            TurnLostError: it does not.
        """
        async with self.session():
            pass

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncGenerator[Connection]:
        """The session itself inside a transaction, for what only the biller may write.

        Raises:
            TurnLostError: it is gone; nothing was written, or a COMMIT is in doubt.
        """
        async with self._lock:
            if self._lost:
                raise TurnLostError
            try:
                with translated():
                    async with self._connection.transaction():
                        await self._connection.fetchval(_SQL["keep_turn"])
                        yield self._connection
            except LedgerUnavailableError as error:
                self._lost = True
                self._connection.terminate()
                raise TurnLostError(str(error)) from error

    async def keep(self) -> None:
        """Let the server hear from us until the turn is lost.

        Raises:
            TurnLostError: always, in the end.
        """
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.require()

    def _hear(self, _connection: object) -> None:
        self._lost = True


@contextlib.asynccontextmanager
async def turn(database_url: str, *, application: str) -> AsyncGenerator[Turn]:
    """Wait until it is this process' turn; leaving gives it back.

    Raises:
        LedgerUnavailableError: the database cannot be reached; ask again.
    """
    async with connect(database_url, application=application) as connection:
        with translated():
            for name in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
                await connection.execute(_SQL["bound_silence"], name, f"{int(SILENCE_S_MAX * 1000)}ms")
            stands_by = False
            while not await connection.fetchval(_SQL["take_turn"], TURN_LOCK):
                if not stands_by:
                    stands_by = True
                    log.info("biller_stands_by")
                await asyncio.sleep(ASK_S)
        log.info("biller_turn_taken")
        yield Turn(connection)
