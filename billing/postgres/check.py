"""Do the books balance? Every invariant, asked of one snapshot, while the network runs."""

import msgspec

from billing.postgres.pool import Connection, translated
from billing.postgres.statements import load_statements

CHECKS = {
    name: statement
    for file_name in ("check.sql", "check_prices.sql", "check_settlement.sql")
    for name, statement in load_statements(file_name).items()
}
"""Invariant name -> the statement that returns what breaks it."""
CHECK_S_MAX = 1800.0
"""Each reads every row there is: months of them, beside the network's own work."""
_SET_TIMEOUT = load_statements("migrate.sql")["set_timeout"]


class BrokenInvariant(msgspec.Struct, frozen=True, kw_only=True):
    """A row that breaks an invariant, with both sides' numbers (nano or numerators; -1 stands for a missing row)."""

    invariant: str
    subject: str
    expected: int
    actual: int


async def broken_invariants(connection: Connection) -> list[BrokenInvariant]:
    """Everything that does not add up; empty when the books balance. Must not be called inside a transaction.

    Raises:
        LedgerUnavailableError: the database cannot be reached.
    """
    found: list[BrokenInvariant] = []
    with translated():
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(_SET_TIMEOUT, "statement_timeout", str(int(CHECK_S_MAX * 1000)), True)
            for name, statement in CHECKS.items():
                found += [
                    BrokenInvariant(
                        invariant=name,
                        subject=row["subject"],
                        expected=int(row["expected"]),
                        actual=int(row["actual"]),
                    )
                    for row in await connection.fetch(statement, timeout=CHECK_S_MAX)
                ]
    return found
