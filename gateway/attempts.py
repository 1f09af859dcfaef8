"""Find a worker that answers: choose, send, and, before the first byte only, try another.

An attempt is never repeated at the same worker, and never beyond the retry budget: when everything fails, retries
must not make it worse.
"""

import asyncio
import contextlib
import functools
import hmac
import uuid
from collections.abc import Awaitable, Callable

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from billing.pricing import ModelOffer
from cocoon import openai
from cocoon.canonical import base64url
from cocoon.clock import Clock
from cocoon.endpoints import EMBEDDINGS, Endpoint
from cocoon.errors import CocoonError, MalformedError
from cocoon.http1 import HopError
from cocoon.money import ceiling
from cocoon.openai import ModelRequest
from cocoon.ticket import Ticket, plain_request_digest, seal_ticket, ticket_key
from gateway.admission import Admission
from gateway.attempt import Attempt, AttemptBusyError, AttemptFailedError
from gateway.client import Client, require_present
from gateway.deadline import Deadline
from gateway.errors import AnswerBrokenError, UpstreamRefusedError
from gateway.exchange import Event
from gateway.quotes import PriceLimit, price_at, quote_for, require_offered
from gateway.sealed import RecipientsGoneError
from gateway.stubs import Stub, seal_stub, stub_key
from gateway.walk import Call, Walk
from workers.errors import CoverMissedError, ModelNotFoundError, NoWorkerError, WorkersBusyError
from workers.routing import Dispatch, DispatchOutcome, RetryBudget, Router, stricter
from workers.targets import Requirement, Upstream, Worker
from workers.transport import (
    ANSWER_BYTES_MAX,
    Batch,
    IdentityError,
    Job,
    RefusedError,
    Transport,
    TransportError,
)

ATTEMPTS_MAX = 4
TICKET_MARGIN_S = 30
COOLDOWN_S_DEFAULT = 1.0
"""When a worker is busy and does not say for how long."""
CLAIM_S_MAX = 0.5
"""A request does not wait longer for more of the workers' stakes."""
KEYSETS_MAX = 4096
TENANTS_MAX = 65536
_TENANT_LABEL = b"cocoon/tenant/1\x00"
_NO_PREFERENCE = openai.Provider()
_REQUESTS_FAULT = frozenset({400, 413, 415, 422})
_BUSY = frozenset({429, 503})
log = structlog.get_logger()


class Attempts:
    """Routing with retries, on top of router and transport.

    `sealed_require` is the evidence without which no worker gets a sealed request, whoever it was sealed for.
    `claim_cover` asks for more of the workers' stakes, where this process has too little of them (`Router.staked`).
    """

    def __init__(
        self, router: Router, transport: Transport, budget: RetryBudget, clock: Clock, *,
        network_secret: bytes, global_id: int, request_s_max: float, sealed_require: Requirement = "any",
        claim_cover: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self._router = router
        self._transport = transport
        self._budget = budget
        self._clock = clock
        self._network_secret = network_secret
        self._global_id = global_id
        self._sealed_require: Requirement = sealed_require
        self._claim_cover = claim_cover
        self._ticket_s = request_s_max + TICKET_MARGIN_S
        self._keys: dict[bytes, tuple[bytes, AESGCM]] = {}
        self._tenants: dict[uuid.UUID, bytes] = {}

    def require_offered(
        self, endpoint: Endpoint, offer: ModelOffer, request: ModelRequest, limit: PriceLimit | None,
        manifest: bytes | None,
    ) -> None:  # fmt: skip
        """Refuse a request before it holds anything when nobody may take it: for its price, or for the pinned manifest.

        Raises:
            PriceLimitError: with the cheapest price.
            ManifestUnservedError: others serve the model, and nobody from this manifest.
        """
        provider = request.provider or _NO_PREFERENCE
        targets = self._router.targets(
            offer.model,
            endpoint=endpoint,
            require=provider.require,
            only=provider.only,
            ignore=provider.ignore,
            manifest=manifest,
        )
        if limit is not None:
            require_offered(targets, offer, limit)

    async def first(
        self, walk: Walk, admission: Admission, request: ModelRequest, call: Call, client: Client, deadline: Deadline
    ) -> tuple[Attempt, Batch]:
        """The first batch of a stream, or the whole of a unary answer, from the first worker that gives it.

        `deadline` hears of every sign of life meanwhile.

        Raises:
            UpstreamRefusedError: the engine refused the request itself.
            AnswerBrokenError, NoWorkerError, WorkersBusyError: nobody could answer.
            ClientGoneError: the client left meanwhile.
        """
        excluded: set[uuid.UUID] = set()
        failure: CocoonError | None = None
        self._budget.note_request()
        for number in range(ATTEMPTS_MAX):
            if failure is not None and not self._budget.try_spend():
                break
            attempt = await self._dispatch(walk, admission, request, number, excluded, failure)
            try:
                batch = await self._try(attempt, walk, admission, request, call, deadline)
            except AttemptFailedError as error:
                require_present(client)
                log.warning("attempt_failed", job_id=walk.name, worker=attempt.worker_name, reason=str(error))
                failure = error
                excluded.add(attempt.dispatch.target.target_id)
                walk.failed, walk.attempt = attempt, None
                walk.exchange.note(Event.RETRY)
            else:
                walk.exchange.note(Event.FIRST_BYTE)
                return attempt, batch
        raise _exhausted(failure)

    async def _dispatch(
        self, walk: Walk, admission: Admission, request: ModelRequest, number: int, excluded: set[uuid.UUID],
        failure: CocoonError | None,
    ) -> Attempt:  # fmt: skip
        provider = request.provider or _NO_PREFERENCE
        offer, limit, quote = admission.offer, admission.limit, None
        cheapest = provider.sort == "price"
        require = provider.require if walk.sealed is None else self._sealed_require
        if walk.principal is not None and walk.principal.required_evidence != "any":
            require = stricter(require, walk.principal.required_evidence)
        # Nearly every request goes without: then everybody costs the same.
        asked = self._router.has_asks(request.model)
        if asked or limit is not None:
            quote = quote_for(request.model, offer.price, limit, admission.bounds.usage)
        choose = functools.partial(
            self._router.choose,
            request.model,
            endpoint=walk.endpoint,
            exclude=frozenset(excluded),
            require=require,
            only=provider.only,
            ignore=provider.ignore,
            prompt_tokens_bound=admission.bounds.prompt,
            quote=quote,
            cheapest=cheapest,
            manifest=walk.manifest,
            keysets=None if walk.sealed is None else frozenset(walk.sealed.header.keyset_digests),
            exposed_nano=_exposed_nano(admission) if self._router.staked else 0,
        )
        try:
            dispatch = await self._covered(choose)
        except (NoWorkerError, WorkersBusyError, ModelNotFoundError) as error:
            if failure is not None:
                raise _exhausted(failure) from None
            if walk.sealed is not None and not isinstance(error, WorkersBusyError):
                raise RecipientsGoneError from None
            # The model has a price, so it exists: only nobody serves it now.
            raise (NoWorkerError() if isinstance(error, ModelNotFoundError) else error) from None
        price = price_at(dispatch.target, request.model, offer.price) if asked else offer.price
        assert price is not None, "nobody is chosen who asks for too much"
        attempt = walk.attempt = Attempt(number, dispatch, self._clock, price)
        walk.exchange.note(Event.DISPATCH)
        return attempt

    async def _covered(self, choose: Callable[[], Dispatch]) -> Dispatch:
        """What is chosen; a second time if more of the stakes may have been claimed meanwhile."""
        try:
            return choose()
        except CoverMissedError:
            if self._claim_cover is None:
                raise
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLAIM_S_MAX):
                await self._claim_cover()
        return choose()

    async def _try(
        self, attempt: Attempt, walk: Walk, admission: Admission, request: ModelRequest, call: Call, deadline: Deadline
    ) -> Batch:
        target = attempt.dispatch.target
        ticket, stub = None, None
        if isinstance(target, Worker):
            ticket, stub = self._ticket(target, attempt, walk, admission)
        job = Job(
            job_id=walk.job_id,
            endpoint=walk.endpoint,
            model=request.model,
            body=walk.body,
            stream=request.streams,
            show_usage=request.wants_usage,
            asks_maximum=request.asked_completion is not None,
            max_completion=admission.bounds.completion_per_choice,
            ticket=ticket,
            stub=stub,
            salt=call.salt,
            traceparent=walk.trace.child_header if walk.trace.sampled else call.traceparent,
            sealed=walk.sealed is not None,
            tenant=self._tenant(walk),
        )
        if not request.streams and (isinstance(target, Upstream) or walk.endpoint is EMBEDDINGS):
            deadline.expect_silence()
        else:
            deadline.expect_first_byte()
        try:
            attempt.opened(await self._transport.open(target, job))
            batch = await attempt.next()
            parts, size = [batch.data], len(batch.data)
            while batch.end is None and not (request.streams and size):
                deadline.alive()
                batch = await attempt.next()
                parts.append(batch.data)
                size += len(batch.data)
                if size > ANSWER_BYTES_MAX:
                    raise AttemptFailedError("the answer is too long")
            return batch if len(parts) == 1 else batch._replace(data=b"".join(parts))
        except RefusedError as error:
            raise self._refused(attempt, error) from error
        except IdentityError as error:
            log.error("worker_identity_changed", worker=attempt.worker_name)
            attempt.failed(DispatchOutcome.FAILED_BEFORE_FIRST_BYTE)
            raise AttemptFailedError from error
        except (AttemptFailedError, HopError, TransportError, MalformedError) as error:
            attempt.failed(DispatchOutcome.FAILED_BEFORE_FIRST_BYTE)
            raise AttemptFailedError(str(error)) from error

    def _refused(self, attempt: Attempt, error: RefusedError) -> CocoonError:
        if error.status in _REQUESTS_FAULT:
            attempt.failed(DispatchOutcome.OK)
            return UpstreamRefusedError(error.status, error.body, sealed=error.sealed)
        if error.status in _BUSY:
            retry_after_s = error.retry_after_s or COOLDOWN_S_DEFAULT
            attempt.failed(DispatchOutcome.THROTTLED, retry_after_s)
            return AttemptBusyError(retry_after_s)
        attempt.failed(DispatchOutcome.FAILED_BEFORE_FIRST_BYTE)
        return AttemptFailedError(str(error))

    def _tenant(self, walk: Walk) -> bytes | None:
        """What workers know a customer by, for the cache of plain prompts; a sealed request brings its own salt."""
        if walk.sealed is not None or walk.principal is None:
            return None
        customer_id = walk.principal.customer_id
        tenant = self._tenants.get(customer_id)
        if tenant is None:
            if len(self._tenants) >= TENANTS_MAX:
                self._tenants.clear()
            tag = hmac.digest(self._network_secret, _TENANT_LABEL + customer_id.bytes, "sha256")
            tenant = self._tenants[customer_id] = base64url(tag[:16]).encode()
        return tenant

    def _ticket(self, worker: Worker, attempt: Attempt, walk: Walk, admission: Admission) -> tuple[str, str]:
        """The ticket's header and its stub's."""
        assert walk.principal is not None, "dispatched requests have a payer"
        digest = attempt.dispatch.keyset_digest or worker.keyset_digest
        keys = self._keys.get(digest)
        if keys is None:
            if len(self._keys) >= KEYSETS_MAX:
                self._keys.clear()
            keys = ticket_key(self._network_secret, digest), stub_key(self._network_secret, digest)
            self._keys[digest] = keys
        ticket = Ticket(
            global_id=self._global_id,
            stake=worker.stake,
            job_id=walk.job_id,
            attempt=attempt.number,
            lease=admission.lease,
            price_version=attempt.price.version,
            max_prompt=admission.bounds.prompt,
            max_completion=admission.bounds.completion,
            not_after=int(self._clock.now().timestamp() + self._ticket_s),
            request_digest=plain_request_digest(walk.body) if walk.sealed is None else walk.sealed.digest,
        )
        stub = Stub(
            customer_id=walk.principal.customer_id,
            key_id=walk.principal.key_id,
            model=admission.offer.model,
            price=attempt.price,
        )
        return seal_ticket(keys[0], ticket), seal_stub(keys[1], worker.worker_id, ticket.encode(), stub)


def _exposed_nano(admission: Admission) -> int:
    """The most that a worker can earn by this request: no ask is above the network's price."""
    return ceiling(admission.offer.price.worker_numerator(admission.bounds.usage)).nano


def _exhausted(failure: CocoonError | None) -> CocoonError:
    """What the client hears when nobody answered: busy if that was all, else broken."""
    if isinstance(failure, AttemptBusyError):
        return WorkersBusyError(failure.retry_after_s)
    return AnswerBrokenError("No worker could answer the request; nothing was charged.")
