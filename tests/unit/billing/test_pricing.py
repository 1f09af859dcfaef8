"""Which price is in force."""

import datetime as dt

from billing.pricing import ModelTerms, PriceVersion, effective, price_book
from cocoon.money import Price

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def version(model: str, number: int, at: dt.datetime) -> PriceVersion:
    return PriceVersion(
        model=model, price=Price(version=number, prompt=number, cached=0, completion=number), effective_from=at
    )


def test_the_last_price_to_take_effect_is_in_force_from_its_instant() -> None:
    versions = [version("m", 2, NOON), version("m", 1, NOON - HOUR), version("m", 3, NOON + HOUR)]
    found = [effective(versions, at)["m"].version for at in (NOON - HOUR, NOON, NOON + 2 * HOUR)]
    assert found == [1, 2, 3]
    assert effective(versions, NOON - 2 * HOUR) == {}


def test_a_later_version_for_an_earlier_instant_does_not_replace_a_newer_price() -> None:
    versions = [version("m", 1, NOON), version("m", 2, NOON - HOUR)]
    assert effective(versions, NOON)["m"].version == 1


def test_of_two_prices_at_one_instant_the_higher_version_wins() -> None:
    versions = [version("m", 2, NOON), version("m", 1, NOON)]
    assert effective(versions, NOON)["m"].version == 2


def test_a_model_is_offered_only_with_a_price_in_force() -> None:
    terms = [ModelTerms(model=name, context_tokens=2048) for name in ("b", "a", "later", "free")]
    versions = [
        version("a", 1, NOON),
        version("b", 4, NOON),
        version("later", 1, NOON + HOUR),
        version("gone", 1, NOON),
    ]
    book = price_book(terms, versions, at=NOON)
    assert [(offer.model, offer.price.version) for offer in book.offers()] == [("a", 1), ("b", 4)]
    assert book.offer("later") is None
    assert book.offer("gone") is None
