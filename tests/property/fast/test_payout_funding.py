"""What an epoch pays of what is due: never above the budget, all of it when it is short, nobody above their due."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from billing.payouts import funded

DUE = st.dictionaries(st.uuids(), st.integers(0, 10**18), max_size=20)


@given(due=DUE, budget=st.integers(0, 10**19))
def test_an_epoch_pays_all_that_is_due_or_all_that_it_has(due: dict[uuid.UUID, int], budget: int) -> None:
    given_ = funded(due, budget)
    assert sum(given_.values()) == min(budget, sum(due.values()))
    assert all(0 < nano <= due[worker] for worker, nano in given_.items())


@given(due=DUE, budget=st.integers(0, 10**19))
def test_whoever_is_due_as_much_gets_as_much_but_for_one_nano(due: dict[uuid.UUID, int], budget: int) -> None:
    given_ = funded(due, budget)
    for first, nano in due.items():
        for second, other in due.items():
            if nano == other:
                assert abs(given_.get(first, 0) - given_.get(second, 0)) <= 1
