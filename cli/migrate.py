"""`cocoon migrate`: bring the database's schema up to date."""

import asyncio

import click

from billing.postgres.migrate import migrate
from billing.settings import read_database_settings


@click.command()
def command() -> None:
    """Bring the database of COCOON_DATABASE_URL up to date; forward only, safe to run twice and from two places."""
    applied = asyncio.run(migrate(read_database_settings().database_url))
    for migration in applied:
        click.echo(f"applied {migration.version:04d}_{migration.name}")
    if not applied:
        click.echo("up to date")
