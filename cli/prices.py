"""`cocoon prices`: what models cost."""

import datetime as dt

import click

from billing.postgres.pool import Pool
from billing.postgres.prices import list_prices, set_model, set_price
from billing.pricing import ModelTerms, PriceVersion, effective
from cli.amounts import TON
from cli.database import run_on_pool
from cocoon.money import BASIS_POINTS, NUMERATOR_PER_NANO, Price, decimal_units


@click.group()
def command() -> None:
    """Show and set prices, in TON per million tokens."""


@command.command("set")
@click.argument("model")
@click.option("--context", type=click.IntRange(min=1, max=2**31 - 1), required=True, help="Tokens of one request.")
@click.option("--prompt", type=TON, required=True, help="TON per million prompt tokens.")
@click.option("--completion", type=TON, required=True, help="TON per million completion tokens.")
@click.option("--cached", type=TON, help="TON per million cached prompt tokens; as --prompt when left out.")
@click.option("--share-bps", type=click.IntRange(0, BASIS_POINTS), default=9_500, show_default=True)
@click.option("--max-completion", type=click.IntRange(min=1, max=2**31 - 1), default=4096, show_default=True)
@click.option("--effective", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="From when (UTC).")
def set_command(
    model: str, context: int, prompt: int, completion: int, cached: int | None, share_bps: int, max_completion: int,
    effective: dt.datetime | None,
) -> None:  # fmt: skip
    """Offer MODEL at a new price version; requests in flight keep theirs."""

    async def work(pool: Pool) -> PriceVersion:
        terms = ModelTerms(model=model, context_tokens=context, default_max_completion=max_completion)
        await set_model(pool, terms)
        return await set_price(
            pool,
            model,
            prompt=prompt,
            cached=prompt if cached is None else cached,
            completion=completion,
            share_bps=share_bps,
            effective_from=effective.replace(tzinfo=dt.UTC) if effective is not None else None,
        )

    version = run_on_pool(work)
    click.echo(f"{model} version {version.price.version} from {version.effective_from:%Y-%m-%d %H:%M:%S} UTC")


@command.command("list")
def list_command() -> None:
    """Show every price version; `*` marks the one in force."""
    _terms, versions, at = run_on_pool(list_prices)
    current = effective(versions, at)
    for version in versions:
        price = version.price
        mark = "*" if current.get(version.model) == price else " "
        click.echo(
            f"{mark} {version.model} v{price.version} from {version.effective_from:%Y-%m-%d %H:%M:%S}: "
            f"{_shown(price)}, worker {price.share_bps / 100:g} %"
        )


def _shown(price: Price) -> str:
    parts = (("prompt", price.prompt), ("cached", price.cached), ("completion", price.completion))
    return ", ".join(f"{name} {decimal_units(nano * NUMERATOR_PER_NANO)} {price.asset}/Mtok" for name, nano in parts)
