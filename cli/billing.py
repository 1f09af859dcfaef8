"""`cocoon billing`: whether the books add up."""

import click

from billing.postgres.check import BrokenInvariant, broken_invariants
from billing.postgres.pool import Pool, acquired
from cli.database import run_on_pool


@click.group()
def command() -> None:
    """Look into the books."""


@command.command("check")
@click.pass_context
def check_command(context: click.Context) -> None:
    """Run every invariant; exit 1 and name the rows that break one."""

    async def work(pool: Pool) -> list[BrokenInvariant]:
        async with acquired(pool) as connection:
            return await broken_invariants(connection)

    broken = run_on_pool(work)
    for row in broken:
        click.echo(f"{row.invariant}: {row.subject}: expected {row.expected}, found {row.actual}")
    if broken:
        context.exit(1)
    click.echo("The books balance.")
