from typing import Any

import pytest

from cocoon.money import Amount, Price, ceiling, charge_nano, decimal_units, share_nano
from cocoon.usage import TokenUsage


def test_a_numerator_is_tokens_times_price_with_the_cached_part_at_its_own_price() -> None:
    price = Price(version=1, prompt=300, cached=30, completion=900)

    assert price.numerator(TokenUsage(prompt=10, cached=4, completion=7)) == 6 * 300 + 4 * 30 + 7 * 900


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": -1},
        {"completion": -1},
        {"cached": -1},
        {"version": -1},
        {"cached": 11},
        {"share_bps": -1},
        {"share_bps": 10_001},
    ],
)
def test_a_price_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"version": 1, "prompt": 10, "cached": 10, "completion": 10}
    with pytest.raises(ValueError, match=r"prices|share_bps"):
        Price(**usual | fields)


@pytest.mark.parametrize(
    ("numerator", "text"),
    [
        (0, "0"),
        (1, "0.000000000000001"),
        (10**15, "1"),
        (15 * 10**14, "1.5"),
        (10**6, "0.000000001"),
        (123 * 10**15 + 1, "123.000000000000001"),
        (-1, "-0.000000000000001"),
        (-15 * 10**14, "-1.5"),
    ],
)
def test_units_are_written_exactly(numerator: int, text: str) -> None:
    assert decimal_units(numerator) == text


def test_an_amount_reads_as_units_of_its_asset() -> None:
    assert str(Amount(1_500_000_000)) == "1.5 TON"
    assert str(Amount(-1)) == "-0.000000001 TON"


def test_the_ceiling_covers_the_smallest_fraction() -> None:
    assert ceiling(0) == Amount(0)
    assert ceiling(1) == Amount(1)
    assert ceiling(10**6) == Amount(1)
    assert ceiling(10**6 + 1) == Amount(2)


def test_a_customer_pays_the_first_fraction_and_then_nothing_until_it_is_used_up() -> None:
    assert [charge_nano(before, 400_000) for before in (0, 400_000, 800_000, 1_200_000)] == [1, 0, 1, 0]


def test_a_worker_is_paid_only_once_a_whole_nano_is_earned() -> None:
    step = 4 * 10**9

    assert [share_nano(before, step) for before in (0, step, 2 * step, 3 * step, 4 * step)] == [0, 0, 1, 0, 1]


def test_cumulative_numerators_neither_shrink_nor_start_below_zero() -> None:
    with pytest.raises(AssertionError):
        charge_nano(0, -1)
    with pytest.raises(AssertionError):
        charge_nano(-1, 0)


@pytest.mark.parametrize(
    "counts",
    [(-1, 0, 0), (0, 0, -1), (1, 2, 0), (2**32, 0, 0), (0, 0, 2**32), (1, -1, 0)],
)
def test_impossible_token_counts_are_refused(counts: tuple[int, int, int]) -> None:
    prompt, cached, completion = counts
    with pytest.raises(ValueError, match="token counts"):
        TokenUsage(prompt=prompt, cached=cached, completion=completion)


def test_usage_is_cut_to_what_a_ticket_allows() -> None:
    usage = TokenUsage(prompt=100, cached=90, completion=50)

    assert usage.capped(prompt_max=80, completion_max=60) == TokenUsage(prompt=80, cached=80, completion=50)
    assert usage.total == 150
