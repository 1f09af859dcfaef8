"""`cocoon workers`: what workers showed, what is held against them; the way out, and back for one that is suspended."""

import uuid

import click

from billing.postgres.covers import list_exposures
from billing.postgres.pool import Pool
from billing.stakes import Exposure
from cli.database import run_on_pool
from cli.tables import print_table, shown
from cocoon.clock import SystemClock, system_random
from cocoon.money import Amount
from gateway.postgres.standing import Held, Listed, StandingStore
from gateway.settings import AUDIT_WINDOW_S, read_stakes
from workers.postgres.attestations import Attestation, AttestationStore
from workers.postgres.enrolments import EnrolmentStore


@click.group()
def command() -> None:
    """Look at workers, their evidence and standing; take them out, and let suspended ones back."""


@command.command("evidence")
def evidence_command() -> None:
    """List enrolled workers with what was found about their evidence, and workers refused in the last day."""

    async def work(pool: Pool) -> list[Attestation]:
        return await AttestationStore(pool, system_random()).list_all()

    found = run_on_pool(work)
    if not found:
        click.echo("No worker has enrolled.")
    for one in found:
        until = f"  until {one.attested_until:%Y-%m-%d %H:%M:%S} UTC" if one.attested_until else ""
        click.echo(f"{one.worker_id}  {one.name}  {one.outcome}  {one.tee_type} ({one.level}){until}  {one.url}")
        for reason in one.reasons:
            click.echo(f"    {one.outcome} because {reason.message} [{reason.code}]")
        if one.refused_at is not None and one.outcome != "refused":
            for reason in one.refusal:
                click.echo(f"    refused at {one.refused_at:%H:%M:%S}: {reason.message} [{reason.code}]")


@command.command("list")
def list_command() -> None:
    """List workers that have enrolled, with the wallets that were proven for them."""

    async def work(pool: Pool) -> list[Listed]:
        return await StandingStore(pool).workers()

    rows = [
        (str(one.worker_id), one.name, one.state, shown(one.wallet), one.tee_type, ",".join(one.models), one.url,
         f"{one.enrolled_at:%Y-%m-%d %H:%M}")
        for one in run_on_pool(work)
    ]  # fmt: skip
    print_table(("id", "name", "state", "wallet", "tee", "models", "url", "enrolled (UTC)"), rows)


@command.command("stakes")
def stakes_command() -> None:
    """List workers' stakes: what they are worth in requests in flight, and what is exposed under them.

    Set COCOON_STAKE_PER_UNIT_NANO and COCOON_AUDIT_WINDOW_S as for the gateway.
    """
    terms = read_stakes()

    async def work(pool: Pool) -> list[Exposure]:
        return await list_exposures(pool, AUDIT_WINDOW_S if terms is None else terms.window_s)

    rows = [
        (shown(one.name), one.address, one.state.value, str(Amount(one.bond_nano)), str(Amount(one.unbonding_nano)),
         "-" if terms is None else f"{one.headroom_nano / terms.unit_nano:g}",
         str(Amount(one.earned_nano)), str(Amount(one.covered_nano)))
        for one in run_on_pool(work)
    ]  # fmt: skip
    print_table(
        ("worker", "stake", "state", "bonded", "unbonding", "weight", "earned in window", "in flight at most"), rows
    )


@command.command("standing")
def standing_command() -> None:
    """List workers with claims for more than they were owed in the last day, and suspended ones."""

    async def work(pool: Pool) -> list[Held]:
        return await StandingStore(pool).held()

    held = run_on_pool(work)
    if not held:
        click.echo("Nothing is held against any worker.")
    for one in held:
        state = f"suspended since {one.suspended_at:%Y-%m-%d %H:%M} UTC" if one.suspended_at else "in rotation"
        click.echo(
            f"{one.worker_id}  {one.name or '?'}  {state}  jobs {one.jobs}"
            f"  claimed {one.claimed_nano} nano, booked {one.booked_nano}  wallet {shown(one.wallet)}"
        )


@command.command("reinstate")
@click.argument("worker", type=click.UUID)
@click.option("--reason", required=True, help="Why it may come back; kept with the suspension.")
def reinstate_command(worker: uuid.UUID, reason: str) -> None:
    """Let WORKER (its id) back into rotation within seconds; what it claimed before counts no more."""

    async def work(pool: Pool) -> None:
        await StandingStore(pool).lift(worker, reason)

    run_on_pool(work)
    click.echo(f"{worker} is back in rotation.")


@command.command("remove")
@click.argument("worker", type=click.UUID)
def remove_command(worker: uuid.UUID) -> None:
    """Take WORKER (its id) out: it gets no more requests, and the log says that its keyset is over.

    For a worker that is gone for good, so that another may enrol with its stake and hardware now. What it answers just
    then is finished; receipts are taken, and what it has earned is paid. One that still runs enrols again: to keep it
    out, revoke its key.
    """

    async def work(pool: Pool) -> bool:
        return await EnrolmentStore(pool, SystemClock(), allow_private=True).remove(worker)

    if not run_on_pool(work):
        raise click.ClickException(f"no worker {worker} is enrolled")
    click.echo(f"{worker} gets no more requests; what it has earned is paid. To keep it out, revoke its key.")
