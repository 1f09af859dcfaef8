"""Whatever is asked, allowed and discounted: no attempt costs more than its hold, and nobody's part is negative."""

from hypothesis import given
from hypothesis import strategies as st

from cocoon.clock import ManualClock
from cocoon.money import BASIS_POINTS, CUSTOMER_BPS_MAX, Price, ceiling
from cocoon.usage import TokenUsage
from gateway.quotes import PriceLimit, ceiling_of, price_at, quote_for
from tests.unit.workers.worker_values import MODEL, a_worker
from workers.targets import PostedAsk

nano = st.integers(0, 10**12) | st.integers(0, 20)
tokens = st.integers(0, 2**31 - 1)
limits = st.none() | st.builds(PriceLimit, prompt=st.none() | nano, completion=st.none() | nano)
ASKED = 2**31


@st.composite
def prices(draw: st.DrawFn) -> Price:
    prompt, share = draw(nano), draw(st.integers(0, BASIS_POINTS))
    return Price(
        version=1,
        prompt=prompt,
        cached=draw(st.integers(0, prompt)),
        completion=draw(nano),
        share_bps=share,
        customer_bps=draw(st.integers(share, CUSTOMER_BPS_MAX)),
    )


@st.composite
def asks(draw: st.DrawFn) -> PostedAsk:
    prompt = draw(nano)
    return PostedAsk(
        version=ASKED,
        model=MODEL,
        prompt=prompt,
        cached=draw(st.integers(0, prompt)),
        completion=draw(nano),
        or_ceiling=draw(st.booleans()),
    )


@st.composite
def usages(draw: st.DrawFn) -> TokenUsage:
    prompt = draw(tokens)
    return TokenUsage(prompt=prompt, cached=draw(st.integers(0, prompt)), completion=draw(tokens))


@given(prices(), st.none() | asks(), limits, usages(), tokens, tokens)
def test_an_attempt_never_costs_more_than_its_hold(
    network: Price, ask: PostedAsk | None, limit: PriceLimit | None, used: TokenUsage, more: int, longer: int
) -> None:
    worker = a_worker(ManualClock(), asks=() if ask is None else (ask,))
    bound = TokenUsage(prompt=used.prompt + more, completion=used.completion + longer)
    price = price_at(worker, MODEL, network)
    quoted = quote_for(MODEL, network, limit, bound)(worker)
    held = ceiling(ceiling_of(network, limit).as_charged().numerator(bound))
    if price is None or (limit is not None and not limit.allows(price)):
        assert quoted is None
        return
    assert quoted == price.numerator(bound)
    assert ceiling(price.numerator(used)) <= held
    # The worker's part is of its own price, and the network never pays for a discount out of its own pocket.
    assert price.share_bps * price.worker_numerator(used) <= BASIS_POINTS * price.numerator(used)


@given(prices(), asks())
def test_an_ask_is_taken_as_a_whole_or_not_at_all(network: Price, ask: PostedAsk) -> None:
    price = price_at(a_worker(ManualClock(), asks=(ask,)), MODEL, network)
    below = ask.prompt <= network.prompt and ask.cached <= network.cached and ask.completion <= network.completion
    if below:
        assert price is not None
        assert (price.version, price.prompt, price.cached, price.completion) == (
            ASKED, ask.prompt, ask.cached, ask.completion,
        )  # fmt: skip
        assert (price.share_bps, price.customer_bps) == (network.share_bps, network.customer_bps)
    else:
        assert price == (network if ask.or_ceiling else None)


@given(prices(), usages())
def test_a_multiplied_price_is_rounded_once_and_up(price: Price, usage: TokenUsage) -> None:
    charged = price.as_charged()
    for before, after in (
        (price.prompt, charged.prompt), (price.cached, charged.cached), (price.completion, charged.completion),
    ):  # fmt: skip
        assert 0 <= after * BASIS_POINTS - before * price.customer_bps < BASIS_POINTS
    assert price.numerator(usage) == charged.numerator(usage) == charged.worker_numerator(usage)
