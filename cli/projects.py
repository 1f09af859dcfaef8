"""`cocoon projects`: parts of an organisation with limits of their own."""

import uuid
from typing import Any

import click
import msgspec

from billing.postgres.pool import Pool
from cli.database import run_on_pool
from cli.limits import LIMIT_COLUMNS, allowance, limit_cells, limit_options
from cli.orgs import LISTED_MAX, organisations_of
from cli.tables import print_table
from gateway.postgres.organisations import StoredProject

_ORGANISATION = click.option("--org", "organisation", required=True, help="The organisation's name.")


@click.group()
def command() -> None:
    """Projects in the database of COCOON_DATABASE_URL. Every key belongs to one, and its limits apply to them all."""


@command.command("create")
@_ORGANISATION
@click.argument("name")
@limit_options
def create(organisation: str, name: str, **limits: Any) -> None:
    """Make a project and print its id."""

    async def work(pool: Pool) -> StoredProject:
        store = organisations_of(pool)
        owner = await store.find_by_name(organisation)
        return (await store.create_project(owner.id, name, allowance(**limits)))[0]

    click.echo(run_on_pool(work).id)


@command.command("list")
@_ORGANISATION
@click.option("--archived", is_flag=True, help="Archived projects too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_projects(organisation: str, *, archived: bool, as_json: bool) -> None:
    """Show an organisation's projects by age."""

    async def work(pool: Pool) -> list[StoredProject]:
        store = organisations_of(pool)
        owner = await store.find_by_name(organisation)
        return await store.list_projects(owner.id, archived=archived, limit=LISTED_MAX)

    found = run_on_pool(work)
    if as_json:
        for project in found:
            click.echo(msgspec.json.encode(project).decode())
        return
    rows = [
        (str(p.id), p.name, *limit_cells(p.limits),
         "live" if p.archived_at is None else "archived")
        for p in found
    ]  # fmt: skip
    print_table(("id", "name", *LIMIT_COLUMNS, "state"), rows)


@command.command("limit")
@_ORGANISATION
@click.argument("name")
@limit_options
def limit(organisation: str, name: str, **limits: Any) -> None:
    """Give a project exactly these limits; every gateway knows them within a second."""

    async def work(pool: Pool) -> uuid.UUID:
        store = organisations_of(pool)
        owner = await store.find_by_name(organisation)
        project = await store.find_project_by_name(owner.id, name)
        return (await store.limit_project(project.id, allowance(**limits))).id

    click.echo(f"limited {run_on_pool(work)}")


@command.command("archive")
@_ORGANISATION
@click.argument("name")
def archive(organisation: str, name: str) -> None:
    """Close a project and revoke its keys, everywhere within a second."""

    async def work(pool: Pool) -> uuid.UUID:
        store = organisations_of(pool)
        owner = await store.find_by_name(organisation)
        project = await store.find_project_by_name(owner.id, name)
        return (await store.archive_project(project.id)).id

    click.echo(f"archived {run_on_pool(work)}")
