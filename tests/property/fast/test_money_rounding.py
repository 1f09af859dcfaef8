"""PROTOCOL §6: whatever the sequence of charges, a lifetime's rounding error stays below one nano."""

import decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from cocoon.money import (
    NUMERATOR_PER_NANO,
    SHARE_NUMERATOR_PER_NANO,
    charge_nano,
    decimal_units,
    share_nano,
)

numerators = st.lists(st.integers(0, 10**24) | st.integers(0, 3 * NUMERATOR_PER_NANO), max_size=60)
bps = st.integers(0, 10_000)


@given(numerators)
def test_charges_never_fall_below_the_exact_cost_nor_a_whole_nano_above(steps: list[int]) -> None:
    total = charged = 0
    for step in steps:
        charge = charge_nano(total, step)
        assert charge >= 0
        charged += charge
        total += step
        exact = Fraction(total, NUMERATOR_PER_NANO)
        assert exact <= charged < exact + 1


@given(numerators, bps)
def test_shares_never_exceed_what_was_earned_nor_lag_a_whole_nano(steps: list[int], share_bps: int) -> None:
    total = paid = 0
    for step in steps:
        share = share_nano(total, step * share_bps)
        assert share >= 0
        paid += share
        total += step * share_bps
        exact = Fraction(total, SHARE_NUMERATOR_PER_NANO)
        assert exact - 1 < paid <= exact


@given(numerators, bps)
def test_charges_always_cover_the_shares_of_worker_and_network(steps: list[int], share_bps: int) -> None:
    total = charged = worker = network = 0
    for step in steps:
        charged += charge_nano(total, step)
        worker += share_nano(total * share_bps, step * share_bps)
        network += share_nano(total * (10_000 - share_bps), step * (10_000 - share_bps))
        total += step
        # The rest is the rounding account: never below zero, never more than two nano for one customer and worker.
        assert 0 <= charged - worker - network <= 2


@given(numerators, st.randoms(use_true_random=False))
def test_the_order_and_the_slicing_of_requests_do_not_change_what_is_paid(steps: list[int], rng: object) -> None:
    shuffled = list(steps)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    total = charged = 0
    for step in shuffled:
        charged += charge_nano(total, step)
        total += step

    assert charged == charge_nano(0, sum(steps))


@given(st.integers(-(10**40), 10**40))
def test_decimal_units_are_exact(numerator: int) -> None:
    with decimal.localcontext() as context:
        context.prec = 100
        assert decimal.Decimal(decimal_units(numerator)) * 10**15 == numerator
    text = decimal_units(numerator)
    assert "." not in text or not text.endswith("0")
    assert "e" not in text.lower()
