"""`cocoon alerts`: thresholds of customers, and the webhooks that hear of them."""

import os
import uuid

import click
import msgspec

from billing.alerts import AlertKind
from billing.postgres.alerts import (
    AlertRule,
    SentAlert,
    add_rule,
    list_alerts,
    list_rules,
    put_webhook,
    remove_rule,
    remove_webhook,
)
from billing.postgres.pool import Pool
from cli.amounts import TON
from cli.database import run_on_pool
from cocoon.clock import SystemClock, system_random
from cocoon.ids import new_job_id
from cocoon.webhooks import SECRET_BYTES, secret_text
from gateway.webhooks import require_sound_url

SHOWN_MAX = 1000


@click.group()
def command() -> None:
    """Tell customers by signed webhook that their balance is low or their spending high."""


@command.command("webhook")
@click.argument("customer")
@click.argument("url", required=False)
@click.option("--remove", is_flag=True, help="Tell the customer nothing more.")
@click.option("--allow-private", is_flag=True, help="Accept http and private addresses, as gateways in development do.")
def webhook(customer: str, url: str | None, *, remove: bool, allow_private: bool) -> None:
    """Send CUSTOMER's alerts to URL. The secret that signs them is printed alone, once and never again."""
    if remove == (url is not None):
        raise click.UsageError("give a URL, or --remove")
    if url is None:
        removed = run_on_pool(lambda pool: remove_webhook(pool, customer))
        click.echo("removed" if removed else "there was none")
        return
    require_sound_url(url, allow_private=allow_private)
    secret = os.urandom(SECRET_BYTES)
    webhook_id = new_job_id(SystemClock(), system_random())
    run_on_pool(lambda pool: put_webhook(pool, customer, webhook_id=webhook_id, url=url, secret=secret))
    click.echo("Keep the secret now, it is not shown again:", err=True)
    click.echo(secret_text(secret))


@command.command("add")
@click.argument("customer")
@click.option("--balance-below", type=TON, multiple=True, help="When less than this is left.")
@click.option("--spend-day", type=TON, multiple=True, help="When this was spent on one UTC day.")
@click.option("--spend-month", type=TON, multiple=True, help="When this was spent in one UTC month.")
def add(
    customer: str, balance_below: tuple[int, ...], spend_day: tuple[int, ...], spend_month: tuple[int, ...]
) -> None:
    """Watch thresholds of CUSTOMER, in TON; each is told of once per crossing. Prints their ids."""
    asked = [(AlertKind.BALANCE_LOW, nano) for nano in balance_below]
    asked += [(AlertKind.SPEND_DAY, nano) for nano in spend_day]
    asked += [(AlertKind.SPEND_MONTH, nano) for nano in spend_month]
    if not asked:
        raise click.UsageError("give at least one threshold")
    clock, rng = SystemClock(), system_random()

    async def work(pool: Pool) -> list[uuid.UUID]:
        return [await add_rule(pool, customer, kind, nano, rule_id=new_job_id(clock, rng)) for kind, nano in asked]

    for rule_id in run_on_pool(work):
        click.echo(str(rule_id))


@command.command("remove")
@click.argument("rule", type=click.UUID)
def remove(rule: uuid.UUID) -> None:
    """Watch the threshold RULE (an id) no longer."""
    if not run_on_pool(lambda pool: remove_rule(pool, rule)):
        raise click.ClickException(f"there is no threshold {rule}")
    click.echo(f"removed {rule}")


@command.command("list")
@click.argument("customer", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_command(customer: str | None, *, as_json: bool) -> None:
    """Show thresholds of CUSTOMER, or of all."""

    async def work(pool: Pool) -> list[AlertRule]:
        return await list_rules(pool, customer)

    for rule in run_on_pool(work):
        if as_json:
            click.echo(msgspec.json.encode(rule).decode())
        else:
            told = rule.url or "nowhere: no webhook"
            click.echo(f"{rule.rule_id} {rule.customer} {rule.kind} {rule.threshold} x{rule.occurrences} -> {told}")


@command.command("sent")
@click.argument("customer")
@click.option("--limit", type=click.IntRange(1, SHOWN_MAX), default=20, show_default=True)
def sent(customer: str, limit: int) -> None:
    """Show CUSTOMER's last messages and what became of them, newest first."""

    async def work(pool: Pool) -> list[SentAlert]:
        return await list_alerts(pool, customer, limit)

    for alert in run_on_pool(work):
        click.echo(
            f"{alert.created_at:%Y-%m-%d %H:%M:%S} msg_{alert.alert_id.hex} {alert.state} after {alert.attempts}"
            f" ({alert.last_outcome or 'not tried yet'}): {alert.body.decode()}"
        )
