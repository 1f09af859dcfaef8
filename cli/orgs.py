"""`cocoon orgs`: organisations, which pay, and money that no request moves."""

import uuid

import click
import msgspec

from billing.ledger import Code
from billing.postgres.adjustments import Adjustment, post_adjustment
from billing.postgres.audit import AuditRow, list_changes
from billing.postgres.ceilings import set_unsigned_max
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Pool
from cli.actor import command_actor
from cli.amounts import SOME_TON, TON
from cli.database import run_on_pool
from cli.tables import print_table
from cocoon.clock import SystemClock, system_random
from cocoon.ids import new_job_id
from cocoon.money import Amount
from gateway.postgres.organisations import Organisation, Organisations

LISTED_MAX = 10_000
NANO_MAX = 2**63 - 1


def organisations_of(pool: Pool) -> Organisations:
    """The store, with this command's account as the one who changes things."""
    return Organisations(pool, system_random(), actor=command_actor())


@click.group()
def command() -> None:
    """Organisations in the database of COCOON_DATABASE_URL: who pays, owns projects and keys."""


@command.command("create")
@click.argument("name")
@click.option("--id", "organisation_id", type=click.UUID, help="An id of your choice: the same command may run twice.")
def create(name: str, organisation_id: uuid.UUID | None) -> None:
    """Make an organisation and print its id."""

    async def work(pool: Pool) -> Organisation:
        return (await organisations_of(pool).create(name, organisation_id))[0]

    click.echo(run_on_pool(work).id)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_organisations(*, as_json: bool) -> None:
    """Show organisations by age."""

    async def work(pool: Pool) -> list[Organisation]:
        return await organisations_of(pool).list_organisations(after=None, limit=LISTED_MAX)

    found = run_on_pool(work)
    if as_json:
        for organisation in found:
            click.echo(msgspec.json.encode(organisation).decode())
        return
    print_table(("id", "name", "created"), [(str(o.id), o.name, f"{o.created_at:%Y-%m-%d %H:%M}") for o in found])


@command.command("balance")
@click.argument("name")
def balance(name: str) -> None:
    """Show what an organisation can spend, what is reserved, and all it ever spent."""

    async def work(pool: Pool) -> tuple[Amount, Amount, Amount]:
        organisation = await organisations_of(pool).find_by_name(name)
        found = await PostgresLedger(pool).balance(organisation.id)
        return found.available, found.held, found.spent

    for label, amount in zip(("available", "held", "spent"), run_on_pool(work), strict=True):
        click.echo(f"{label:9}  {amount}")


@command.command("move")
@click.argument("kind", type=click.Choice([Code.DEPOSIT.value, Code.CREDIT.value, Code.REVERSAL.value]))
@click.argument("name")
@click.argument("amount", type=SOME_TON)
@click.option("--reason", required=True, help="Why, for the audit log.")
@click.option("--transfer-id", type=click.UUID, help="A UUIDv7 of your choice: the same command may run twice.")
def move(kind: str, name: str, amount: int, reason: str, transfer_id: uuid.UUID | None) -> None:
    """Move AMOUNT TON: a deposit that arrived, a credit that the network gives, or the reversal of a deposit."""
    chosen = transfer_id or new_job_id(SystemClock(), system_random())
    # Before it is tried: when the answer gets lost, this is the id to try again with.
    click.echo(f"transfer {chosen}", err=True)

    async def work(pool: Pool) -> bool:
        organisation = await organisations_of(pool).find_by_name(name)
        return await post_adjustment(
            pool,
            Adjustment(
                transfer_id=chosen, customer_id=organisation.id, code=Code(kind), amount=Amount(amount), reason=reason
            ),
            actor=command_actor(),
        )

    click.echo("moved" if run_on_pool(work) else "moved before: nothing was changed")


@command.command("unsigned")
@click.argument("name")
@click.argument("amount", type=TON)
@click.option("--reason", required=True, help="Why, for the audit log.")
def unsigned(name: str, amount: int, reason: str) -> None:
    """Let an organisation use up to AMOUNT TON of its escrows beyond what its session keys have signed.

    That is what the operator risks with it; with 0 everything is signed before it is used.
    """
    if amount > NANO_MAX:
        raise click.BadParameter("more than there is", param_hint="AMOUNT")

    async def work(pool: Pool) -> int:
        organisation = await organisations_of(pool).find_by_name(name)
        return await set_unsigned_max(pool, organisation.id, amount, reason=reason, actor=command_actor())

    click.echo(f"{Amount(amount)}; it was {Amount(run_on_pool(work))}")


@command.command("audit")
@click.option("--org", "name", help="Only changes of this organisation.")
@click.option("--limit", type=click.IntRange(1, LISTED_MAX), default=100, show_default=True)
def audit(name: str | None, limit: int) -> None:
    """Show who changed what, newest first, one JSON object a line."""

    async def work(pool: Pool) -> list[AuditRow]:
        organisation = None if name is None else (await organisations_of(pool).find_by_name(name)).id
        return await list_changes(pool, organisation, before=None, limit=limit)

    for row in run_on_pool(work):
        click.echo(msgspec.json.encode(row).decode())
