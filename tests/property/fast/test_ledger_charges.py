"""Charges, shares and fees of random settlements, without a store: nothing is lost, nobody is off by a nano."""

import math
import uuid
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from billing import ledger
from billing.ledger import Code, Numerators
from billing.ports import HoldRequest, InsufficientCreditError, Outcome
from cocoon.money import Amount, Price, ceiling
from cocoon.usage import TokenUsage
from tests.ledger_values import hold_request, job_id, settlement

tokens = st.integers(0, 2**32 - 1)
prices = st.builds(
    lambda prompt, cached, completion, share, customer: Price(
        version=1, prompt=prompt, cached=min(prompt, cached), completion=completion, share_bps=share,
        customer_bps=max(share, customer),
    ),
    st.integers(0, 10**12) | st.integers(0, 9),
    st.integers(0, 10**12),
    st.integers(0, 10**12) | st.integers(0, 9),
    st.integers(0, 10_000),
    st.just(10_000) | st.integers(0, 100_000),
)  # fmt: skip
usages = st.builds(
    lambda prompt, cached, completion: TokenUsage(prompt=prompt, cached=min(prompt, cached), completion=completion),
    tokens,
    tokens,
    tokens,
)
jobs = st.tuples(prices, usages, st.booleans(), st.sampled_from(Outcome))


@given(st.lists(jobs, max_size=30))
def test_sums_round_once_and_are_fully_distributed(done: list[tuple[Price, TokenUsage, bool, Outcome]]) -> None:
    customer, worker = uuid.uuid4(), uuid.uuid4()
    numerators = Numerators()
    charged = shared = kept = 0
    exact = exact_share = Fraction(0)
    for price, usage, attested, outcome in done:
        ended = settlement(
            job_id(), customer, worker=worker if attested else None, price=price, usage=usage, outcome=outcome
        )
        result = ledger.charge(ended, numerators)
        assert min(result.posted.charge.nano, result.posted.worker_share.nano, result.posted.fee.nano) >= 0
        assert result.posted.charge <= ceiling(ended.numerator)
        numerators = result.after
        charged += result.posted.charge.nano
        shared += result.posted.worker_share.nano
        kept += result.posted.fee.nano
        if outcome is not Outcome.BROKEN:
            uncached = usage.prompt - usage.cached
            worth = uncached * price.prompt + usage.cached * price.cached + usage.completion * price.completion
            paid = price.as_charged()
            cost = uncached * paid.prompt + usage.cached * paid.cached + usage.completion * paid.completion
            exact += Fraction(cost, 10**6)
            # A worker's part is of the price itself, whatever its customer pays.
            exact_share += Fraction(worth * price.share_bps, 10**10) if attested else 0
    assert charged == math.ceil(exact)
    assert shared == math.floor(exact_share)
    assert kept == math.floor(exact - exact_share)
    assert 0 <= charged - shared - kept <= 2


@given(prices, usages)
def test_a_broken_answer_moves_nothing(price: Price, usage: TokenUsage) -> None:
    ended = settlement(job_id(), uuid.uuid4(), worker=uuid.uuid4(), price=price, usage=usage, outcome=Outcome.BROKEN)
    before = Numerators(customer=17, worker=23, revenue=42)
    result = ledger.charge(ended, before)
    assert (result.posted.charge, result.posted.worker_share, result.posted.fee) == (Amount(0), Amount(0), Amount(0))
    assert result.after == before


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(0, 2**62))
def test_a_grant_lies_within_what_was_asked_and_what_is_there(available: int, least: int, more: int) -> None:
    request: HoldRequest = hold_request(uuid.uuid4(), least, least + more)
    try:
        granted = ledger.grant(available, request)
    except InsufficientCreditError:
        assert available < least
    else:
        assert granted == Amount(min(available, least + more))
        assert granted >= request.amount_min


@given(st.lists(st.tuples(st.uuids(version=4), st.integers(0, 255)), min_size=1, unique=True))
def test_a_batch_is_its_members_in_any_order(members: list[tuple[uuid.UUID, int]]) -> None:
    digest = ledger.batch_digest(members)
    assert ledger.batch_digest(reversed(members)) == digest
    assert ledger.batch_digest(members[1:]) != digest
    legs = {ledger.leg_id(digest, code, account) for code in (Code.CHARGE, Code.FEE) for account in (1, 2, 256)}
    assert len(legs) == 6


def test_a_resolution_has_an_id_of_its_own() -> None:
    job = job_id()
    resolution = ledger.resolution_id(job)
    assert (resolution != job, resolution.version, resolution.variant) == (True, 8, job.variant)
