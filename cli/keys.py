"""`cocoon keys`: create, list and revoke API keys."""

import datetime as dt

import click
import msgspec

from billing.postgres.account import Accounts
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Pool
from cli.amounts import TON
from cli.database import run_on_pool
from cocoon.clock import Clock, SystemClock, system_random
from cocoon.ids import new_job_id
from cocoon.money import Amount
from gateway.auth import Role
from gateway.postgres.keys import KeySpec, KeyStore, StoredKey

_COLUMNS = ("id", "prefix", "customer", "name", "role", "rpm", "tpm", "concurrency", "models", "expires", "state")


@click.group()
def command() -> None:
    """Create, list and revoke keys in the database of COCOON_DATABASE_URL."""


@command.command("create")
@click.option("--customer", required=True, help="Who pays; made when new.")
@click.option("--name", required=True, help="What the key is called; unique among the customer's live keys.")
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), default=Role.CUSTOMER.value, show_default=True
)
@click.option("--rpm", type=click.IntRange(min=1, max=2**31 - 1), help="Requests a minute.")
@click.option("--tpm", type=click.IntRange(min=1, max=2**63 - 1), help="Tokens a minute.")
@click.option("--concurrency", type=click.IntRange(min=1, max=2**31 - 1), help="Requests at the same time.")
@click.option("--models", help="The only models it may use, separated by commas.")
@click.option("--cors", multiple=True, help="A web origin that may use the key; repeat for more.")
@click.option("--expires", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="When it stops working (UTC).")
@click.option("--credit", type=TON, help="Credit the customer with this much TON, from suspense.")
def create(
    customer: str, name: str, role: str, rpm: int | None, tpm: int | None, concurrency: int | None,
    models: str | None, cors: tuple[str, ...], expires: dt.datetime | None, credit: int | None,
) -> None:  # fmt: skip
    """Make a key and print it: alone on standard output, once and never again."""
    clock = SystemClock()
    expires_at = expires.replace(tzinfo=dt.UTC) if expires is not None else None
    if expires_at is not None and expires_at <= clock.now():
        raise click.BadParameter("lies in the past", param_hint="--expires")

    async def work(pool: Pool) -> None:
        rng = system_random()
        customer_id = await Accounts(pool).open_customer(new_job_id(clock, rng), customer)
        created = await KeyStore(pool, rng).create(
            KeySpec(
                customer_id=customer_id,
                name=name,
                role=Role(role),
                requests_per_min=rpm,
                tokens_per_min=tpm,
                concurrency_max=concurrency,
                allowed_models=tuple(model.strip() for model in (models or "").split(",") if model.strip()),
                cors_origins=cors,
                expires_at=expires_at,
            )
        )
        click.echo(f"Key {created.key_id} of {customer}. Keep it now, it is not shown again:", err=True)
        click.echo(created.secret)
        if credit:
            # After the key is shown: a deposit that fails must not take the key with it.
            await PostgresLedger(pool).deposit(new_job_id(clock, rng), customer_id, Amount(credit))

    run_on_pool(work)


@command.command("list")
@click.option("--revoked", is_flag=True, help="Revoked keys too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_keys(*, revoked: bool, as_json: bool) -> None:
    """Show keys by customer. The keys themselves are not known any more."""

    async def work(pool: Pool) -> list[StoredKey]:
        return await KeyStore(pool, system_random()).list_keys(revoked=revoked)

    found = run_on_pool(work)
    if as_json:
        for key in found:
            click.echo(msgspec.json.encode(key).decode())
        return
    clock = SystemClock()
    rows = [_COLUMNS, *(_row(key, clock) for key in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command("revoke")
@click.argument("key")
def revoke(key: str) -> None:
    """Revoke KEY, given by its id or its displayed prefix. It stops working everywhere within a second."""

    async def work(pool: Pool) -> str:
        return str(await KeyStore(pool, system_random()).revoke(key))

    click.echo(f"revoked {run_on_pool(work)}")


def _row(key: StoredKey, clock: Clock) -> tuple[str, ...]:
    state = "live"
    if key.revoked_at is not None:
        state = "revoked"
    elif key.expires_at is not None and key.expires_at <= clock.now():
        state = "expired"
    limits = (key.requests_per_min, key.tokens_per_min, key.concurrency_max)
    return (
        str(key.key_id),
        key.prefix,
        key.customer,
        key.name,
        key.role.value,
        *("-" if limit is None else str(limit) for limit in limits),
        ",".join(key.allowed_models) or "any",
        "-" if key.expires_at is None else key.expires_at.strftime("%Y-%m-%d %H:%M"),
        state,
    )
