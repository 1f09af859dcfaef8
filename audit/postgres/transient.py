"""What asyncpg and the operating system raise when the same call may succeed later.

One list for everybody who talks to Postgres: audit, billing and workers each raise their own error for it. Here because
all of them may import `audit`.
"""

from typing import Final

import asyncpg

TRANSIENT: Final[tuple[type[Exception], ...]] = (
    OSError,  # includes TimeoutError and every refused or reset connection
    asyncpg.InterfaceError,  # the connection or the pool is closed
    asyncpg.InternalClientError,  # the protocol was cut in the middle
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.TransactionRollbackError,  # class 40: deadlock, serialization
    asyncpg.InsufficientResourcesError,  # class 53
    asyncpg.LockNotAvailableError,  # 55P03
    asyncpg.OperatorInterventionError,  # class 57: shutting down, starting up, statement timeout
    asyncpg.IdleInTransactionSessionTimeoutError,  # 25P03
    asyncpg.UndefinedTableError,  # the migrations have not run yet
)
