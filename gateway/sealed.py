"""Sealed requests as the gateway sees them: the clear header, and nothing else (PROTOCOL §3).

Everything that admission, limits and routing need stands in the header, which the client fixed together with its keys:
a header that was altered opens nowhere. The job's id is the client's own; `JobBook` sees to it that nobody, at any
replica, has a job charged or answered under an id that was used before.
"""

import datetime as dt
import hmac
import uuid
from typing import ClassVar, Protocol

import structlog

from billing.pricing import ModelOffer
from cocoon import sealed
from cocoon.clock import Clock, unix_ms
from cocoon.endpoints import Endpoint
from cocoon.errors import MalformedError
from cocoon.ids import job_day
from cocoon.money import Price, ceiling, decimal_units
from cocoon.openai import ModelRequest
from cocoon.sealed import SealedHeader, SealedRequest
from cocoon.usage import TokenUsage
from gateway.admission import Bounds
from gateway.auth import secret_of
from gateway.client import Client, Headers
from gateway.errors import GatewayError, InvalidRequestError
from gateway.exchange import Money
from gateway.walk import Call, Walk

JOB_AGE_S_MAX = 300
"""How far the time in a job's id may be from ours (PROTOCOL §2a)."""
JOB_KEPT_S = 3 * JOB_AGE_S_MAX
"""How long a used id is remembered: beyond it, its own time speaks against it."""
_TOKENS_MAX = 2**31
log = structlog.get_logger()


class KeyTagError(GatewayError):
    """The request was sealed for another API key."""

    code: ClassVar[str] = "sealed_key_tag"


class JobUsedError(GatewayError):
    """This sealed request was sent before. Seal it again, under a new job id."""

    code: ClassVar[str] = "sealed_job_used"


class RecipientsGoneError(GatewayError):
    """None of the workers that the request was sealed for serves the model now. Seal it for others."""

    code: ClassVar[str] = "sealed_recipients_gone"


class JobBook(Protocol):
    """The ids of sealed jobs, shared by all replicas; kept for `JOB_KEPT_S` at least."""

    async def take(self, job_id: uuid.UUID) -> bool:
        """Whether the id is new; from now on it is not.

        Raises:
            LedgerUnavailableError: nobody can say.
        """
        ...

    async def give_back(self, job_id: uuid.UUID) -> None:
        """Nothing was done under the id: it may be used. Never raises; an id that cannot be given back stays used."""
        ...


class SealedAsk(ModelRequest, frozen=True, kw_only=True):
    """What a sealed header asks for, as admission reads any request."""

    header: SealedHeader

    @property
    def asked_completion(self) -> int | None:
        """The maximum per choice; the total is the header's."""
        return self.header.max_completion // self.copies


class SealedRequests:
    """Reads sealed requests, and owns what their jobs are called."""

    def __init__(self, jobs: JobBook, clock: Clock) -> None:
        self._jobs = jobs
        self._clock = clock

    def read(self, walk: Walk, call: Call, client: Client) -> SealedAsk:
        """What the header in `walk.body` asks for. Whether it may run is asked later, by `take`.

        Raises:
            InvalidRequestError: malformed, or maxima that make no sense.
            KeyTagError: it was sealed for another API key.
        """
        assert call.authorization is not None, "authenticated before"
        request = walk.sealed = _parsed(walk.body, secret_of(call.authorization))
        header = request.header
        _require_maxima(header, walk.endpoint)
        client.seal()
        return SealedAsk(model=header.model, stream=header.stream, n=header.n, header=header)

    async def take(self, walk: Walk, request: SealedRequest) -> None:
        """Let the walk go on under the job id that the client chose, if it is a new one.

        Before this an Idempotency-Key was asked, which may have the answer of the same bytes for longer than they may
        run, and decides between two of them that come at once.

        Raises:
            InvalidRequestError: late, or the id is not one of now.
            JobUsedError: the id was used before.
            LedgerUnavailableError: nobody can say whether it was.
        """
        job_id = uuid.UUID(bytes=request.header.job_id)
        _require_timely(request.header, job_id, self._clock.now())
        if not await self._jobs.take(job_id):
            raise JobUsedError
        # Two names for one thing: the client knows the one from its answer's headers, the other from its receipt.
        log.info("sealed_job_taken", request_id=walk.name, job_id=str(job_id))
        walk.job_id, walk.name = job_id, str(job_id)

    async def over(self, walk: Walk) -> None:
        """The exchange has ended: an id under which no worker was asked can be used again."""
        assert walk.sealed is not None, "called for sealed requests"
        if walk.exchange.money is not Money.SETTLE and walk.job_id.bytes == walk.sealed.header.job_id:
            await self._jobs.give_back(walk.job_id)


def sealed_bounds(ask: SealedAsk, endpoint: Endpoint, offer: ModelOffer) -> Bounds:
    """Token bounds: the header's, and of a prompt no more than the model takes.

    Raises:
        InvalidRequestError: more completion tokens than the model's context has.
    """
    header = ask.header
    context = offer.context_tokens
    one_prompt = endpoint.name == "chat"
    most = context * header.n if one_prompt else _TOKENS_MAX
    if header.max_completion > most:
        raise InvalidRequestError(
            f"max_completion is {header.max_completion}, but the model's context has {context} tokens.",
            param="max_completion",
            code="context_length_exceeded",
        )
    prompt = min(header.max_prompt, context if one_prompt else _TOKENS_MAX)
    return Bounds(prompt=prompt, completion=header.max_completion, choices=header.n)


def price_headers(price: Price, usage: TokenUsage | None) -> Headers:
    """What an answer that nobody may edit costs: the price, and with the whole answer at hand also the charge.

    Nano per million tokens of prompt, cached prompt and completion; a client has its own count from the trailer.
    """
    charged = price.as_charged()
    headers = [(b"x-cocoon-price", b"%d/%d/%d" % (charged.prompt, charged.cached, charged.completion))]
    if usage is not None:
        numerator = price.numerator(usage)
        headers.append((b"x-cocoon-cost", decimal_units(numerator).encode()))
        headers.append((b"x-cocoon-cost-nano", b"%d" % ceiling(numerator).nano))
    return headers


def _parsed(body: bytes, secret: bytes) -> SealedRequest:
    try:
        request = sealed.parse_request(body)
    except MalformedError as error:
        raise InvalidRequestError(f"{error}.", code="sealed_malformed") from error
    if not hmac.compare_digest(request.header.key_tag, sealed.key_tag(secret.decode("latin-1"))):
        raise KeyTagError
    return request


def _require_maxima(header: SealedHeader, endpoint: Endpoint) -> None:
    if header.max_prompt < 1:
        raise InvalidRequestError("max_prompt must be at least 1.", param="max_prompt", code="integer_below_min_value")
    if header.max_completion < header.n and endpoint.name != "embeddings":
        raise InvalidRequestError(
            "max_completion must be at least 1 for each choice.", param="max_completion", code="integer_below_min_value"
        )


def _require_timely(header: SealedHeader, job_id: uuid.UUID, now: dt.datetime) -> None:
    if now.timestamp() > header.not_after:
        raise InvalidRequestError("The sealed request has expired.", param="not_after", code="sealed_expired")
    try:
        job_day(job_id)
    except MalformedError as error:
        raise InvalidRequestError(f"{error}.", param="job_id", code="sealed_job_id") from error
    if abs((job_id.int >> 80) - unix_ms(now)) > JOB_AGE_S_MAX * 1000:
        raise InvalidRequestError(
            f"The time in job_id lies more than {JOB_AGE_S_MAX} seconds from the gateway's.",
            param="job_id",
            code="sealed_job_id",
        )
