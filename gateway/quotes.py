"""What a request would cost where: the network's price, a worker's ask below it, and what the customer is ready to pay.

The only place that knows both sides: workers ask without knowing what anything costs here, and the books charge
without knowing who asked. Pure; every price is frozen at admission, and an ask when its attempt is dispatched.

    ceiling   what the hold covers: the network's price, or the request's own limit where that is lower
    price     what an attempt at one target costs: the worker's ask, else the network's price; never above the ceiling
"""

import re

import msgspec

from billing.pricing import ModelOffer
from cocoon.enrolment import Ask
from cocoon.money import Price
from cocoon.openai import MaxPrice, Provider
from cocoon.usage import TokenUsage
from gateway.errors import InvalidRequestError, PriceLimitError
from workers.errors import AskRefusedError
from workers.routing import Quote
from workers.targets import PostedAsk, Target, Worker

HEADER = "x-cocoon-max-price"
_HEADER_FORM = re.compile(r"(?:(\d{1,18})/)?(\d{1,18})", re.ASCII)


class PriceLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a customer pays, in nano per million tokens of its own price; None is no limit of that kind.

    A cached prompt token is under the limit of prompt tokens.
    """

    prompt: int | None = None
    completion: int | None = None

    def allows(self, price: Price) -> bool:
        """Whether what the customer pays stays within it."""
        charged = price.as_charged()
        return (self.prompt is None or charged.prompt <= self.prompt) and (
            self.completion is None or charged.completion <= self.completion
        )


def read_limit(provider: Provider | None, header: str | None) -> PriceLimit | None:
    """The lower of what body and header allow; None when neither names a limit.

    Raises:
        InvalidRequestError: the header is not `COMPLETION` or `PROMPT/COMPLETION`.
    """
    limits: list[MaxPrice] = []
    if provider is not None and provider.max_price is not None:
        asked = provider.max_price
        limits.append(asked if isinstance(asked, MaxPrice) else MaxPrice(completion=asked))
    if header is not None:
        form = _HEADER_FORM.fullmatch(header)
        if form is None:
            raise InvalidRequestError(
                f"{HEADER} is COMPLETION or PROMPT/COMPLETION, in nano per million tokens.",
                param=HEADER,
                code="invalid_value",
            )
        limits.append(MaxPrice(prompt=None if form[1] is None else int(form[1]), completion=int(form[2])))
    if not limits:
        return None
    return PriceLimit(
        prompt=min((limit.prompt for limit in limits if limit.prompt is not None), default=None),
        completion=min((limit.completion for limit in limits if limit.completion is not None), default=None),
    )


def ceiling_of(network: Price, limit: PriceLimit | None) -> Price:
    """What the hold is made of: no attempt of this request is priced above it in any kind of token."""
    if limit is None:
        return network
    charged = network.as_charged()
    prompt = charged.prompt if limit.prompt is None else min(charged.prompt, limit.prompt)
    completion = charged.completion if limit.completion is None else min(charged.completion, limit.completion)
    return msgspec.structs.replace(charged, prompt=prompt, cached=min(charged.cached, prompt), completion=completion)


def price_at(target: Target, model: str, network: Price) -> Price | None:
    """The price of an attempt there; None where the worker asks for more than the network pays.

    An ask is taken as a whole: one that is above the network's price in any kind of token is not in force.
    """
    ask = target.ask(model) if isinstance(target, Worker) else None
    if ask is None:
        return network
    if _within(ask, network):
        return msgspec.structs.replace(
            network, version=ask.version, prompt=ask.prompt, cached=ask.cached, completion=ask.completion
        )
    return network if ask.or_ceiling else None


def quote_for(model: str, network: Price, limit: PriceLimit | None, usage: TokenUsage) -> Quote:
    """For routing: what `usage` costs at a target (10^-6 nano), None where the request may not go."""

    def quote(target: Target) -> int | None:
        price = price_at(target, model, network)
        if price is None or (limit is not None and not limit.allows(price)):
            return None
        return price.numerator(usage)

    return quote


def require_offered(targets: list[Target], offer: ModelOffer, limit: PriceLimit) -> None:
    """Refuse at once what nobody could serve. Whether those who could have room is not asked here.

    Raises:
        PriceLimitError: everybody who is there costs more; names the cheapest.
    """
    prices = [price for target in targets if (price := price_at(target, offer.model, offer.price)) is not None]
    if not prices or any(limit.allows(price) for price in prices):
        return
    cheapest = min((price.as_charged() for price in prices), key=lambda price: (price.completion, price.prompt))
    raise PriceLimitError(
        f"Nobody serves {offer.model[:128]!r} at this price. The cheapest asks {cheapest.prompt} nano per million "
        f"prompt tokens and {cheapest.completion} nano per million completion tokens."
    )


def require_acceptable(ask: Ask, offer: ModelOffer | None) -> None:
    """Judge an ask by the network's price in force.

    Raises:
        AskRefusedError: it is above that price, and the worker does not accept the price instead.
    """
    if offer is None:
        raise AskRefusedError(f"{ask.model} has no network price to ask below")
    price = offer.price
    if not ask.or_ceiling and not _within(ask, price):
        raise AskRefusedError(
            f"the ask for {ask.model} is above the network's price of {price.prompt} nano per million prompt tokens, "
            f"{price.cached} cached, {price.completion} completion"
        )


def _within(ask: Ask | PostedAsk, price: Price) -> bool:
    return ask.prompt <= price.prompt and ask.cached <= price.cached and ask.completion <= price.completion
