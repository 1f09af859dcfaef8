"""`cocoon billing check` as an operator runs it."""

import asyncpg
from click.testing import CliRunner

from cli.main import main
from tests.fixtures_postgres import run_apart


def check(database_url: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["billing", "check"], env={"COCOON_DATABASE_URL": database_url})
    return result.exit_code, result.output


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def test_balanced_books_pass(database_url: str) -> None:
    assert check(database_url) == (0, "The books balance.\n")


def test_one_nano_out_of_place_is_found_and_named(database_url: str) -> None:
    run_apart(
        execute(
            database_url,
            "INSERT INTO accounts (kind, owner, asset, debits_posted)"
            " VALUES ('suspense', NULL, 'TON', 1)"
            " ON CONFLICT (kind, owner, asset) DO UPDATE SET debits_posted = accounts.debits_posted + 1",
        )
    )
    code, output = check(database_url)
    assert code == 1
    assert "suspense" in output
    assert "The books balance." not in output
