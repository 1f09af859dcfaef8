"""GCRA's arithmetic."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import PERIOD_S, spent, wait_s


@given(
    limit=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 200_000)), min_size=1, max_size=60),
)
def test_no_minute_brings_more_than_two_limits_and_no_window_more_than_its_share(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    full_at, now = 0.0, 0.0
    admitted: list[tuple[float, int]] = []
    for step, wanted in steps:
        now += step
        cost = min(wanted, limit)
        if wait_s(full_at, limit=limit, cost=cost, now=now) == 0:
            full_at = spent(full_at, limit=limit, cost=cost, now=now)
            admitted.append((now, cost))
    for first, (start, _) in enumerate(admitted):
        total = 0
        for end, cost in admitted[first:]:
            total += cost
            # A full bucket, and what has dripped in since.
            assert total <= limit + (end - start) * limit / PERIOD_S + 1


@given(limit=st.integers(1, 10**9), cost=st.integers(1, 10**9), used_s=st.floats(0, 200))
def test_waiting_as_long_as_told_is_enough_and_less_is_not(limit: int, cost: int, used_s: float) -> None:
    cost = min(cost, limit)
    wait = wait_s(used_s, limit=limit, cost=cost, now=0.0)
    assert wait_s(used_s, limit=limit, cost=cost, now=wait + 1e-9) == 0

    if wait > 1e-3:
        assert wait_s(used_s, limit=limit, cost=cost, now=wait - 1e-4) > 0


@given(limit=st.integers(1, 10**9))
def test_the_whole_limit_fits_into_a_full_bucket_whatever_its_size(limit: int) -> None:
    assert wait_s(0.0, limit=limit, cost=limit, now=0.0) == 0


def test_what_is_given_back_does_not_pile_up_above_the_limit() -> None:
    full_at = spent(0.0, limit=60, cost=-600, now=100.0)

    assert wait_s(full_at, limit=60, cost=60, now=100.0) == 0
    assert spent(full_at, limit=60, cost=60, now=100.0) == 160.0
