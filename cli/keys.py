"""`cocoon keys`: create, list, limit, rotate and revoke API keys."""

import datetime as dt
import uuid
from typing import Any

import click
import msgspec

from billing.ledger import Code
from billing.postgres.adjustments import Adjustment, post_adjustment
from billing.postgres.pool import Pool
from cli.actor import command_actor
from cli.amounts import TON
from cli.database import run_on_pool
from cli.limits import LIMIT_COLUMNS, allowance, limit_cells, limit_options
from cli.orgs import organisations_of
from cli.tables import print_table
from cocoon.clock import Clock, SystemClock, system_random
from cocoon.ids import new_job_id
from cocoon.money import Amount
from gateway.auth import Role
from gateway.postgres.keys import GRACE_S_MAX, Allowance, KeySpec, KeyStore, NewKey, StoredKey
from workers.targets import Requirement

_COLUMNS = (
    "id", "prefix", "customer", "project", "name", "role", *LIMIT_COLUMNS, "models", "expires", "state"
)  # fmt: skip


def keys_of(pool: Pool) -> KeyStore:
    """The store, with this command's account as the one who changes things."""
    return KeyStore(pool, system_random(), actor=command_actor())


@click.group()
def command() -> None:
    """Create, list, limit, rotate and revoke keys in the database of COCOON_DATABASE_URL."""


@command.command("create")
@click.option("--customer", "--org", "customer", required=True, help="The organisation that pays; made when new.")
@click.option("--project", help="One of its projects; 'default' when left out.")
@click.option("--name", required=True, help="What the key is called; unique among the customer's live keys.")
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), default=Role.CUSTOMER.value, show_default=True
)
@click.option("--org-admin", is_flag=True, help="It may manage its own organisation's projects and keys.")
@limit_options
@click.option("--models", help="The only models it may use, separated by commas.")
@click.option(
    "--require",
    "require",
    type=click.Choice(["any", "tdx", "tdx+gpu"]),
    default="any",
    show_default=True,
    help="What every worker that answers it must have shown.",
)
@click.option("--cors", multiple=True, help="A web origin that may use the key; repeat for more.")
@click.option("--expires", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="When it stops working (UTC).")
@click.option("--credit", type=TON, help="Credit the customer with this much TON, from suspense.")
def create(
    customer: str, project: str | None, name: str, role: str, models: str | None, cors: tuple[str, ...],
    expires: dt.datetime | None, credit: int | None, require: Requirement, *, org_admin: bool, **limits: Any,
) -> None:  # fmt: skip
    """Make a key and print it: alone on standard output, once and never again."""
    clock = SystemClock()
    expires_at = expires.replace(tzinfo=dt.UTC) if expires is not None else None
    if expires_at is not None and expires_at <= clock.now():
        raise click.BadParameter("lies in the past", param_hint="--expires")
    if org_admin and role != Role.CUSTOMER.value:
        raise click.BadParameter("is for customers' keys", param_hint="--org-admin")
    allowed = allowance(**limits)

    async def work(pool: Pool) -> None:
        organisations = organisations_of(pool)
        payer = await organisations.open(customer)
        chosen = None if project is None else (await organisations.find_project_by_name(payer.id, project)).id
        created = await keys_of(pool).create(
            KeySpec(
                customer_id=payer.id,
                name=name,
                project_id=chosen,
                role=Role(role),
                organisation_admin=org_admin,
                allowed_models=tuple(model.strip() for model in (models or "").split(",") if model.strip()),
                required_evidence=require,
                cors_origins=cors,
                expires_at=expires_at,
                **msgspec.structs.asdict(allowed),
            )
        )
        _show_secret(created, customer)
        if credit:
            # After the key is shown: a deposit that fails must not take the key with it.
            transfer_id = new_job_id(clock, system_random())
            deposit = Adjustment(
                transfer_id=transfer_id, customer_id=payer.id, code=Code.DEPOSIT, amount=Amount(credit),
                reason=f"with key {name}",
            )  # fmt: skip
            await post_adjustment(pool, deposit, actor=command_actor())

    run_on_pool(work)


@command.command("limit")
@click.argument("key")
@limit_options
def limit(key: str, **limits: Any) -> None:
    """Give KEY, an id or a displayed prefix, exactly these limits; what is left out is unlimited."""
    allowed = allowance(**limits)

    async def work(pool: Pool) -> uuid.UUID:
        store = keys_of(pool)
        return (await store.set_limits(await store.resolve(key), allowed)).key_id

    click.echo(f"limited {run_on_pool(work)}")


@command.command("rotate")
@click.argument("key")
@click.option(
    "--grace", type=click.IntRange(0, GRACE_S_MAX), default=0, show_default=True,
    help="Seconds for which the old secret still works.",
)  # fmt: skip
def rotate(key: str, grace: int) -> None:
    """Give KEY, an id or a displayed prefix, a new secret and print it, once and never again."""

    async def work(pool: Pool) -> None:
        store = keys_of(pool)
        rotated = await store.rotate(await store.resolve(key), rotation_id=uuid.uuid4(), grace_s=grace)
        _show_secret(rotated, (await store.find(rotated.key_id)).customer)

    run_on_pool(work)


@command.command("list")
@click.option("--revoked", is_flag=True, help="Revoked keys too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_keys(*, revoked: bool, as_json: bool) -> None:
    """Show keys by customer. The keys themselves are not known any more."""

    async def work(pool: Pool) -> list[StoredKey]:
        return await keys_of(pool).list_keys(revoked=revoked)

    found = run_on_pool(work)
    if as_json:
        for key in found:
            click.echo(msgspec.json.encode(key).decode())
        return
    clock = SystemClock()
    print_table(_COLUMNS, [_row(key, clock) for key in found])


@command.command("revoke")
@click.argument("key")
def revoke(key: str) -> None:
    """Revoke KEY, given by its id or its displayed prefix. It stops working everywhere within a second."""

    async def work(pool: Pool) -> str:
        return str(await keys_of(pool).revoke(key))

    click.echo(f"revoked {run_on_pool(work)}")


def _show_secret(key: NewKey, customer: str) -> None:
    click.echo(f"Key {key.key_id} of {customer}. Keep it now, it is not shown again:", err=True)
    click.echo(key.secret)


def _row(key: StoredKey, clock: Clock) -> tuple[str, ...]:
    state = "live"
    if key.revoked_at is not None:
        state = "revoked"
    elif key.expires_at is not None and key.expires_at <= clock.now():
        state = "expired"
    return (
        str(key.key_id),
        key.prefix,
        key.customer,
        key.project,
        key.name,
        "org-admin" if key.organisation_admin else key.role.value,
        *limit_cells(Allowance(**{name: getattr(key, name) for name in Allowance.__struct_fields__})),
        ",".join(key.allowed_models) or "any",
        "-" if key.expires_at is None else key.expires_at.strftime("%Y-%m-%d %H:%M"),
        state,
    )
