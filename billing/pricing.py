"""What a model costs now: an immutable snapshot of the offers in force at one instant.

Pure. Loading is `billing.postgres.prices`; how often a snapshot is replaced is the gateway's business. A job keeps
the `Price` that it was admitted under, so that a new snapshot never changes what is already running.
"""

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from cocoon.money import Price
from cocoon.openai import NO_MEDIA


class ModelTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model besides its price; all in tokens.

    `default_max_completion` applies when a request names no maximum. A prompt's bound is its bytes plus
    `template_tokens_per_message` a message plus `base_tokens` plus, for each content part that is not text, its type's
    `media_max`; a type that is not there counts as the whole context (PROTOCOL §2).
    """

    model: str
    context_tokens: int
    default_max_completion: int = 4096
    template_tokens_per_message: int = 16
    base_tokens: int = 64
    media_max: Mapping[str, int] = NO_MEDIA


class PriceVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One price of one model and the instant from which it holds (aware UTC)."""

    model: str
    price: Price
    effective_from: dt.datetime


class ModelOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be bought, with the price version in force."""

    model: str
    context_tokens: int
    default_max_completion: int
    template_tokens_per_message: int
    base_tokens: int
    price: Price
    media_max: Mapping[str, int] = NO_MEDIA


class PriceBook:
    """The offers in force at one instant. `multipliers` says who pays something else, in basis points of the price."""

    def __init__(
        self, offers: Iterable[ModelOffer] = (), multipliers: Mapping[uuid.UUID, int] = MappingProxyType({})
    ) -> None:
        self._offers = {offer.model: offer for offer in offers}
        self._multipliers = multipliers

    def offer(self, model: str, customer_id: uuid.UUID | None = None) -> ModelOffer | None:
        """The model's offer, to a customer or (None) to nobody in particular; None when it has no price yet."""
        offer = self._offers.get(model)
        customer_bps = self._multipliers.get(customer_id) if customer_id is not None else None
        return offer if offer is None or customer_bps is None else _multiplied(offer, customer_bps)

    def offers(self, customer_id: uuid.UUID | None = None) -> tuple[ModelOffer, ...]:
        """Every offer, by model name."""
        found = (self.offer(model, customer_id) for model in sorted(self._offers))
        return tuple(offer for offer in found if offer is not None)


def effective(versions: Iterable[PriceVersion], at: dt.datetime) -> dict[str, Price]:
    """The price in force at `at` by model: the last to take effect, the higher version where two do at once."""
    chosen: dict[str, PriceVersion] = {}
    for version in versions:
        if version.effective_from > at:
            continue
        rival = chosen.get(version.model)
        if rival is None or _rank(version) > _rank(rival):
            chosen[version.model] = version
    return {model: version.price for model, version in chosen.items()}


def scheduled(versions: Iterable[PriceVersion], at: dt.datetime) -> list[PriceVersion]:
    """The versions that are to take effect after `at`, in the order in which they do."""
    return sorted((version for version in versions if version.effective_from > at), key=_rank)


def price_book(
    terms: Iterable[ModelTerms], versions: Iterable[PriceVersion], *, at: dt.datetime,
    multipliers: Mapping[uuid.UUID, int] = MappingProxyType({}),
) -> PriceBook:  # fmt: skip
    """The snapshot at `at`, with the multipliers in force then.

    Models without a price in force are left out: they cannot be charged for.
    """
    prices = effective(versions, at)
    offers = (
        ModelOffer(
            model=model.model,
            context_tokens=model.context_tokens,
            default_max_completion=model.default_max_completion,
            template_tokens_per_message=model.template_tokens_per_message,
            base_tokens=model.base_tokens,
            media_max=model.media_max,
            price=prices[model.model],
        )
        for model in terms
        if model.model in prices
    )
    return PriceBook(offers, multipliers)


def _multiplied(offer: ModelOffer, customer_bps: int) -> ModelOffer:
    """The offer at a multiple of its price. A discount ends at the workers' part, whatever the multiplier says."""
    price = offer.price
    bps = max(customer_bps, price.share_bps)
    return msgspec.structs.replace(offer, price=msgspec.structs.replace(price, customer_bps=bps))


def _rank(version: PriceVersion) -> tuple[dt.datetime, int]:
    return version.effective_from, version.price.version
