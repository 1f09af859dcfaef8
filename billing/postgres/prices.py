"""Models and price versions in Postgres."""

import datetime as dt

import msgspec

from billing.ports import RecordRefusedError
from billing.postgres.multipliers import read_multipliers
from billing.postgres.pool import Pool, acquired, transaction
from billing.postgres.statements import load_statements
from billing.pricing import ModelTerms, PriceBook, PriceVersion, price_book
from cocoon.money import Asset, Price

_media_decoder = msgspec.json.Decoder(dict[str, int])
_SQL = load_statements("prices.sql")


async def load_price_book(pool: Pool) -> PriceBook:
    """The offers in force at the database's now.

    Raises:
        LedgerUnavailableError: the database cannot be reached.
    """
    terms, versions, at = await list_prices(pool)
    async with acquired(pool) as connection:
        multipliers = await read_multipliers(connection)
    return price_book(terms, versions, at=at, multipliers=multipliers)


async def list_prices(pool: Pool) -> tuple[list[ModelTerms], list[PriceVersion], dt.datetime]:
    """Every model, every price version, and the database's now."""
    async with acquired(pool) as connection:
        models = await connection.fetch(_SQL["list_models"])
        prices = await connection.fetch(_SQL["list_prices"])
        at: dt.datetime = await connection.fetchval(_SQL["read_now"])
    terms = [
        ModelTerms(
            model=row["id"],
            context_tokens=row["context_tokens"],
            default_max_completion=row["default_max_completion"],
            template_tokens_per_message=row["template_tokens_per_message"],
            base_tokens=row["base_tokens"],
            media_max=_media_decoder.decode(row["media_max"]),
        )
        for row in models
    ]
    versions = [
        PriceVersion(
            model=row["model"],
            price=Price(
                version=row["version"],
                prompt=row["prompt_nano_per_mtok"],
                cached=row["cached_nano_per_mtok"],
                completion=row["completion_nano_per_mtok"],
                share_bps=row["share_bps"],
                asset=Asset(row["asset"]),
            ),
            effective_from=row["effective_from"],
        )
        for row in prices
    ]
    return terms, versions, at


async def set_model(pool: Pool, terms: ModelTerms) -> None:
    """Add a model, or change what is known of it. It is offered once it has a price."""
    async with acquired(pool) as connection:
        await connection.execute(
            _SQL["put_model"],
            terms.model,
            terms.context_tokens,
            terms.default_max_completion,
            terms.template_tokens_per_message,
            terms.base_tokens,
            msgspec.json.encode(dict(terms.media_max)).decode(),
        )


async def set_price(
    pool: Pool,
    model: str,
    *,
    prompt: int,
    cached: int,
    completion: int,
    share_bps: int,
    effective_from: dt.datetime | None = None,
    asset: Asset = Asset.TON,
) -> PriceVersion:
    """Add the model's next price version (nano per million tokens), effective now unless told otherwise.

    Raises:
        RecordRefusedError: there is no such model, the numbers are no price, or the moment lies in the database's past:
            what a request cost must be told from the versions for ever.
    """
    async with transaction(pool) as connection:
        if await connection.fetchval(_SQL["lock_model"], model) is None:
            raise RecordRefusedError(f"there is no model {model!r}")
        if effective_from is not None and effective_from < await connection.fetchval(_SQL["read_now"]):
            raise RecordRefusedError("a price cannot take effect in the past")
        row = await connection.fetchrow(
            _SQL["add_price"], model, asset.value, prompt, cached, completion, share_bps, effective_from
        )
    assert row is not None, "an INSERT that did not fail returns its row"
    price = Price(
        version=row["version"], prompt=prompt, cached=cached, completion=completion, share_bps=share_bps, asset=asset
    )
    return PriceVersion(model=model, price=price, effective_from=row["effective_from"])
