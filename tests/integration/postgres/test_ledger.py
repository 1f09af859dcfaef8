"""The Postgres ledger conforms, and its books balance after every test."""

import pytest

from billing.postgres.pool import Connection
from tests.ledger_conformance import LedgerConformance, MakeOverdue


class TestPostgresLedger(LedgerConformance):
    @pytest.fixture
    def make_overdue(self, connection: Connection) -> MakeOverdue:
        async def age() -> None:
            await connection.execute("UPDATE open_holds SET expires_at = now() - interval '1 second'")

        return age
