"""The limits that keys and projects share, as options of a command."""

from collections.abc import Callable
from typing import Any

import click

from cli.amounts import TON
from cli.tables import shown
from cocoon.money import Amount
from gateway.postgres.keys import Allowance

_COUNT = click.IntRange(min=1, max=2**31 - 1)
LIMIT_COLUMNS = ("rpm", "tpm", "concurrency", "spend/day", "spend/month")


def limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that become the arguments of `allowance`."""
    for option in (
        click.option("--spend-month", type=TON, help="TON that may be spent in a UTC month."),
        click.option("--spend-day", type=TON, help="TON that may be spent on a UTC day."),
        click.option("--concurrency", type=_COUNT, help="Requests at the same time."),
        click.option("--tpm", type=click.IntRange(min=1, max=2**63 - 1), help="Tokens a minute."),
        click.option("--rpm", type=_COUNT, help="Requests a minute."),
    ):
        function = option(function)
    return function


def allowance(
    *, rpm: int | None, tpm: int | None, concurrency: int | None, spend_day: int | None, spend_month: int | None
) -> Allowance:
    """The limits as given; what is left out is unlimited.

    Raises:
        click.BadParameter: a spend limit of zero, which would be a revoked key in disguise.
    """
    if spend_day == 0 or spend_month == 0:
        raise click.BadParameter("a spend limit is above zero")
    return Allowance(
        requests_per_min=rpm,
        tokens_per_min=tpm,
        concurrency_max=concurrency,
        spend_day_nano_max=spend_day,
        spend_month_nano_max=spend_month,
    )


def limit_cells(limits: Allowance) -> tuple[str, ...]:
    """One cell for each of `LIMIT_COLUMNS`; spend in TON."""
    counts = (limits.requests_per_min, limits.tokens_per_min, limits.concurrency_max)
    spends = (limits.spend_day_nano_max, limits.spend_month_nano_max)
    return (*(shown(count) for count in counts), *("-" if nano is None else str(Amount(nano)) for nano in spends))
