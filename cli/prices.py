"""`cocoon prices`: what models cost, cost, and will cost."""

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import click
import msgspec

from billing.postgres.multipliers import MultiplierVersion, list_multipliers, set_multiplier
from billing.postgres.pool import Pool
from billing.postgres.prices import list_prices, set_model, set_price
from billing.pricing import ModelTerms, PriceVersion, effective, scheduled
from cli.amounts import TON
from cli.database import run_on_pool
from cocoon.money import BASIS_POINTS, CUSTOMER_BPS_MAX, NUMERATOR_PER_NANO, Price, decimal_units
from cocoon.openai import TEXT_PARTS

_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_PART_TYPE = re.compile(r"[a-z_]{1,32}")
_PART_TOKENS = re.compile(r"[0-9]{1,9}")
_TOKENS = click.IntRange(min=1, max=2**31 - 1)


def _numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a price."""
    for option in (
        click.option("--share-bps", type=click.IntRange(0, BASIS_POINTS), default=9_500, show_default=True),
        click.option("--cached", type=TON, help="TON per million cached prompt tokens; as --prompt when left out."),
        click.option("--completion", type=TON, required=True, help="TON per million completion tokens."),
        click.option("--prompt", type=TON, required=True, help="TON per million prompt tokens."),
    ):
        function = option(function)
    return function


def _media(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, int]:
    """`TYPE=TOKENS` by type."""
    media: dict[str, int] = {}
    for text in given:
        kind, equals, tokens = text.partition("=")
        known = bool(equals) and _PART_TYPE.fullmatch(kind) is not None and kind not in TEXT_PARTS
        if not known or _PART_TOKENS.fullmatch(tokens) is None:
            raise click.BadParameter(f"{text!r} is not TYPE=TOKENS, with a content part's type that is not text")
        media[kind] = int(tokens)
    return media


@click.group()
def command() -> None:
    """Show and set prices, in TON per million tokens.

    A price is a ceiling: workers may ask for less. Versions are never changed and never take effect in the past.
    """


@command.command("set")
@click.argument("model")
@click.option("--context", type=_TOKENS, required=True, help="Tokens of one request.")
@_numbers
@click.option("--max-completion", type=_TOKENS, default=4096, show_default=True)
@click.option(
    "--media",
    "media",
    multiple=True,
    metavar="TYPE=TOKENS",
    callback=_media,
    help="The most tokens of one content part of this type, such as image_url=1500; others count as the context.",
)
@click.option("--effective", type=_MOMENT, help="From when (UTC); now when left out.")
def set_command(
    model: str, context: int, prompt: int, completion: int, cached: int | None, share_bps: int, max_completion: int,
    media: dict[str, int], effective: dt.datetime | None,
) -> None:  # fmt: skip
    """Offer MODEL at a new price version; requests in flight keep theirs."""

    async def work(pool: Pool) -> PriceVersion:
        terms = ModelTerms(model=model, context_tokens=context, default_max_completion=max_completion, media_max=media)
        await set_model(pool, terms)
        return await _add(pool, model, prompt, completion, cached, share_bps, effective)

    _tell(run_on_pool(work))


@command.command("schedule")
@click.argument("model")
@click.option("--from", "moment", type=_MOMENT, required=True, help="From when (UTC); not in the past.")
@_numbers
def schedule(model: str, moment: dt.datetime, prompt: int, completion: int, cached: int | None, share_bps: int) -> None:
    """Give MODEL, which is known, a price from a later moment on."""

    async def work(pool: Pool) -> PriceVersion:
        return await _add(pool, model, prompt, completion, cached, share_bps, moment)

    _tell(run_on_pool(work))


@command.command("show")
@click.argument("model")
def show(model: str) -> None:
    """Show the terms of MODEL, its price now, and what is scheduled."""
    terms, versions, at = run_on_pool(list_prices)
    known = next((known for known in terms if known.model == model), None)
    if known is None:
        raise click.ClickException(f"there is no model {model!r}")
    click.echo(f"{model}: context {known.context_tokens}, completion {known.default_max_completion} when not asked")
    for kind, tokens in sorted(known.media_max.items()):
        click.echo(f"{kind}: at most {tokens} tokens each")
    own = [version for version in versions if version.model == model]
    current = effective(own, at).get(model)
    click.echo("no price in force: not offered" if current is None else f"now v{current.version}: {_shown(current)}")
    for version in scheduled(own, at):
        click.echo(_line(version))


@command.command("list")
def list_command() -> None:
    """Show every price version; `*` marks the one in force."""
    _echo_versions(None)


@command.command("history")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, amounts in nano per million tokens.")
def history(model: str | None, *, as_json: bool) -> None:
    """Show the price versions of MODEL, or of all; `*` marks the one in force."""
    if not as_json:
        _echo_versions(model)
        return
    _terms, versions, _at = run_on_pool(list_prices)
    for version in versions:
        if model in {None, version.model}:
            price = msgspec.structs.asdict(version.price)
            price.pop("customer_bps")
            shown = {"model": version.model, "effective_from": version.effective_from, **price}
            click.echo(msgspec.json.encode(shown).decode())


@command.command("multiply")
@click.argument("customer")
@click.argument("basis_points", type=click.IntRange(0, CUSTOMER_BPS_MAX))
@click.option("--from", "moment", type=_MOMENT, help="From when (UTC); now when left out.")
def multiply(customer: str, basis_points: int, moment: dt.datetime | None) -> None:
    """Let CUSTOMER pay BASIS_POINTS of every price: 9500 is a discount of 5 %, 10000 the price itself.

    Workers are paid as without it. Requests in flight keep what they were admitted under.
    """

    async def work(pool: Pool) -> MultiplierVersion:
        effective_from = moment.replace(tzinfo=dt.UTC) if moment is not None else None
        return await set_multiplier(pool, customer, basis_points, effective_from=effective_from)

    click.echo(_multiplier_line(run_on_pool(work)))


@command.command("multipliers")
def multipliers() -> None:
    """Show what single customers pay of the prices, every version."""
    for version in run_on_pool(list_multipliers):
        click.echo(_multiplier_line(version))


def _multiplier_line(version: MultiplierVersion) -> str:
    return (
        f"{version.customer} v{version.version} from {version.effective_from:%Y-%m-%d %H:%M:%S} UTC: "
        f"{version.customer_bps / 100:g} %"
    )


async def _add(
    pool: Pool, model: str, prompt: int, completion: int, cached: int | None, share_bps: int,
    moment: dt.datetime | None,
) -> PriceVersion:  # fmt: skip
    return await set_price(
        pool,
        model,
        prompt=prompt,
        cached=prompt if cached is None else cached,
        completion=completion,
        share_bps=share_bps,
        effective_from=moment.replace(tzinfo=dt.UTC) if moment is not None else None,
    )


def _tell(version: PriceVersion) -> None:
    click.echo(f"{version.model} version {version.price.version} from {version.effective_from:%Y-%m-%d %H:%M:%S} UTC")


def _echo_versions(model: str | None) -> None:
    _terms, versions, at = run_on_pool(list_prices)
    current = effective(versions, at)
    for version in versions:
        if model in {None, version.model}:
            mark = "*" if current.get(version.model) == version.price else " "
            click.echo(f"{mark} {_line(version)}")


def _line(version: PriceVersion) -> str:
    price = version.price
    return (
        f"{version.model} v{price.version} from {version.effective_from:%Y-%m-%d %H:%M:%S}: "
        f"{_shown(price)}, worker {price.share_bps / 100:g} %"
    )


def _shown(price: Price) -> str:
    parts = (("prompt", price.prompt), ("cached", price.cached), ("completion", price.completion))
    return ", ".join(f"{name} {decimal_units(nano * NUMERATOR_PER_NANO)} {price.asset}/Mtok" for name, nano in parts)
