"""Every named statement is understood by a freshly migrated database."""

from pathlib import Path

from billing.postgres.pool import Connection
from cocoon.sql import named_statements

ROOT = Path(__file__).parents[3]


async def test_every_statement_prepares(connection: Connection) -> None:
    files = [
        path
        for package in ("audit", "billing", "gateway", "workers")
        for path in (ROOT / package).glob("postgres/*.sql")
    ]
    statements = {
        f"{path.parent}/{path.name}: {name}": statement
        for path in files
        for name, statement in named_statements(path.read_text()).items()
    }
    assert len(statements) > 30
    refused: dict[str, str] = {}
    for name, statement in statements.items():
        try:
            await connection.prepare(statement)
        except Exception as error:  # noqa: BLE001  every refusal is listed
            refused[name] = str(error)
    assert refused == {}
