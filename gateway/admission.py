"""What a request may cost at most, and the hold that covers it.

The prompt's tokens are not known before the engine has counted them, so its bound is its bytes (no tokenizer
makes more tokens than bytes) plus what the template adds; a modality that is not text counts as the whole context.
Each endpoint's request knows its own (`cocoon.openai.ModelRequest.prompt_max`).
"""

import uuid

import msgspec

from billing.ports import HoldRequest, Ledger
from billing.pricing import ModelOffer, PriceBook
from cocoon.endpoints import Endpoint
from cocoon.money import NUMERATOR_PER_NANO, Amount, ceiling
from cocoon.openai import FieldError, ModelRequest, PromptTerms
from cocoon.usage import TokenUsage
from gateway.auth import Principal
from gateway.errors import InvalidRequestError, ModelForbiddenError, ModelUnknownError
from gateway.quotes import PriceLimit, ceiling_of


class Bounds(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Upper bounds of one attempt in tokens; `completion` is the total over `choices`."""

    prompt: int
    completion: int
    choices: int

    @property
    def usage(self) -> TokenUsage:
        """The most that can be charged for."""
        return TokenUsage(prompt=self.prompt, completion=self.completion)

    @property
    def completion_per_choice(self) -> int:
        """The maximum that the engine is given."""
        return self.completion // self.choices


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """A request with credit behind it. `lease` is what its ticket names: the credit lease, or the job's own hold.

    `offer` has the network's price at admission. An attempt may cost less, and is never priced above `limit`.
    """

    job_id: uuid.UUID
    lease: uuid.UUID
    offer: ModelOffer
    bounds: Bounds
    held: Amount
    limit: PriceLimit | None = None


def parse_request(endpoint: Endpoint, body: bytes) -> ModelRequest:
    """Decode what we act on.

    Raises:
        InvalidRequestError: not JSON, not UTF-8, a wrong type, or an impossible value; names the field.
    """
    try:
        if not body.isascii():
            body.decode()
        request = endpoint.decoder.decode(body)
        request.check()
    except UnicodeDecodeError:
        raise InvalidRequestError("The body is not valid UTF-8.", code="invalid_utf8") from None
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        param = path.rstrip("`").removeprefix("$").lstrip(".") or None
        if param is None and "required field" in message:
            param = message.split("`")[1]
        raise InvalidRequestError(message + ".", param=param, code="invalid_type") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequestError("The body is not valid JSON.", code="invalid_json") from None
    except FieldError as error:
        raise _invalid(error) from None
    return request


def choose_offer(prices: PriceBook, principal: Principal, model: str) -> ModelOffer:
    """The price of the model for this customer, and its limits.

    Raises:
        ModelForbiddenError: the key is confined to other models.
        ModelUnknownError: it has no price.
    """
    if principal.allowed_models and model not in principal.allowed_models:
        raise ModelForbiddenError(f"This API key may not use the model {_shown(model)}.")
    offer = prices.offer(model, principal.customer_id)
    if offer is None:
        raise ModelUnknownError(f"The model {_shown(model)} does not exist.")
    return offer


def bound(request: ModelRequest, body: bytes, offer: ModelOffer) -> Bounds:
    """Token bounds before the balance is looked at.

    Raises:
        InvalidRequestError: more tokens asked for than the model's context has, or a prompt that cannot be read.
    """
    context = offer.context_tokens
    asked = request.asked_completion
    if asked is not None and asked > context:
        raise InvalidRequestError(
            f"max_tokens is {asked}, but the model's context has {context} tokens.",
            param="max_tokens" if request.max_tokens is not None else "max_completion_tokens",
            code="context_length_exceeded",
        )
    if asked is None:
        asked = request.completion_default or offer.default_max_completion
    choices = request.choices
    try:
        terms = PromptTerms(context, offer.base_tokens, offer.template_tokens_per_message, offer.media_max)
        prompt = request.prompt_max(len(body), terms)
    except FieldError as error:
        raise _invalid(error) from None
    return Bounds(prompt=prompt, completion=min(asked, context) * choices, choices=choices)


def worst_cost(bounds: Bounds, offer: ModelOffer, limit: PriceLimit | None) -> Amount:
    """The most that the request can be charged, whatever its answer."""
    price = ceiling_of(offer.price, limit).as_charged()
    return ceiling(price.numerator(TokenUsage(prompt=bounds.prompt, completion=bounds.completion)))


async def hold_credit(
    ledger: Ledger, principal: Principal, job_id: uuid.UUID, request: ModelRequest, bounds: Bounds, offer: ModelOffer,
    ttl_s: int, limit: PriceLimit | None = None,
) -> Admission:  # fmt: skip
    """Reserve the worst case at the highest price that `limit` allows.

    Without `max_tokens` it is as much of it as the balance affords (PROTOCOL §6).

    Raises:
        InsufficientCreditError: the balance does not cover the request.
        LedgerUnavailableError: the books cannot be reached.
    """
    price = ceiling_of(offer.price, limit).as_charged()
    worst = price.numerator(bounds.usage)
    least, prompt_cost = worst, worst - bounds.completion * price.completion
    if request.asked_completion is None:
        least = prompt_cost + bounds.choices * price.completion
    most = ceiling(worst)
    hold = await ledger.hold(
        HoldRequest(
            job_id=job_id,
            customer_id=principal.customer_id,
            amount_min=most if least == worst else ceiling(least),
            amount_max=most,
            ttl_s=ttl_s,
        )
    )
    if hold.amount.nano * NUMERATOR_PER_NANO < worst:
        affordable = (hold.amount.nano * NUMERATOR_PER_NANO - prompt_cost) // price.completion
        affordable -= affordable % bounds.choices
        bounds = Bounds(prompt=bounds.prompt, completion=affordable, choices=bounds.choices)
    return Admission(
        job_id=job_id,
        lease=hold.lease_id or job_id,
        offer=offer,
        bounds=bounds,
        held=hold.amount,
        limit=limit,
    )


def _invalid(error: FieldError) -> InvalidRequestError:
    return InvalidRequestError(str(error), param=error.param, code=error.reason)


def _shown(model: str) -> str:
    """A name from outside, quoted and cut: it may hold anything."""
    return repr(model[:128])
