"""`cocoon billing`: whether the books add up, and what receipts brought to light."""

import uuid

import click
import msgspec

from billing.postgres.check import BrokenInvariant, broken_invariants
from billing.postgres.discrepancies import (
    About,
    Discrepancy,
    RecoveredCharge,
    list_discrepancies,
    list_recoveries,
)
from billing.postgres.pool import Pool, acquired
from billing.recoveries import DiscrepancyKind
from cli.database import run_on_pool
from cli.tables import print_table, shown


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


@command.command("discrepancies")
@click.option("--kind", type=click.Choice([kind.value for kind in DiscrepancyKind]), help="Only of this kind.")
@click.option("--worker", type=click.UUID, help="Only of this worker.")
@click.option("--against-worker", is_flag=True, help="Only where a worker asked for more than it can be owed.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def discrepancies(
    kind: str | None, worker: uuid.UUID | None, limit: int, *, against_worker: bool, as_json: bool
) -> None:
    """Show receipts that say something else than the books, and recovered charges that were lost, newest first."""
    about = About(kind=None if kind is None else DiscrepancyKind(kind), worker_id=worker, against_worker=against_worker)

    async def work(pool: Pool) -> list[Discrepancy]:
        return await list_discrepancies(pool, about, after=None, limit=limit)

    found = run_on_pool(work)
    if as_json:
        for row in found:
            click.echo(msgspec.json.encode(row).decode())
        return
    print_table(
        ("created", "kind", "job", "attempt", "worker", "against worker", "booked nano", "claimed nano"),
        [
            (
                f"{row.created_at:%Y-%m-%d %H:%M}", row.kind.value, str(row.job_id), str(row.attempt),
                str(row.worker_id), "yes" if row.against_worker else "no",
                shown(None if row.booked is None else row.booked.nano), str(row.claimed.nano),
            )
            for row in found
        ],
    )  # fmt: skip


@command.command("recoveries")
@click.option("--worker", type=click.UUID, help="Only of this worker.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
def recoveries(worker: uuid.UUID | None, limit: int) -> None:
    """Show charges that came from receipts, newest first, one JSON object a line."""

    async def work(pool: Pool) -> list[RecoveredCharge]:
        return await list_recoveries(pool, About(worker_id=worker), after=None, limit=limit)

    for row in run_on_pool(work):
        click.echo(msgspec.json.encode(row).decode())
