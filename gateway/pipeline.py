"""One request, one straight walk: authenticate -> admit -> route -> relay -> settle -> receipt.

`Pipeline.serve` is the map; each step is a method or a module of its own. Nothing here knows HTTP: the client is a
port, errors are typed, and `gateway/http` translates both.
"""

import asyncio
import datetime as dt
import random

import structlog

from billing.ports import Ledger, Posted, Settlement
from cocoon.clock import Clock
from cocoon.errors import CocoonError, MalformedError
from cocoon.ids import new_job_id
from cocoon.openai import ModelRequest
from cocoon.sealed_answer import KEEP_ALIVE as SEALED_KEEP_ALIVE
from cocoon.sse import DONE_EVENT, KEEP_ALIVE
from cocoon.tracing import Tracer
from cocoon.usage import TokenUsage
from gateway import relay
from gateway.admission import Admission, bound, choose_offer, hold_credit, parse_request, worst_cost
from gateway.alarms import Alarms
from gateway.attempt import Attempt, AttemptFailedError
from gateway.attempts import Attempts
from gateway.auth import KeyTable, Principal, Role, require_role
from gateway.client import Client, ClientGoneError, KeepAlive, Limits, require_present
from gateway.deadline import Deadline
from gateway.errors import AnswerBrokenError, AnswerTimeoutError, OverloadedError
from gateway.exchange import Event, Exchange, Money, State
from gateway.headers import answer_headers, cors_headers
from gateway.idempotency import Idempotency
from gateway.limits import Limiter
from gateway.live import LiveExchanges
from gateway.over_claims import OverClaims
from gateway.pins import read_pin
from gateway.prices import Prices
from gateway.quotes import read_limit
from gateway.sealed import SealedAsk, SealedRequests, sealed_bounds
from gateway.settle import SETTLE_S_MAX, Settler
from gateway.spans import spans_of
from gateway.walk import Call, Walk
from workers.transport import Batch

log = structlog.get_logger()
_NONE = TokenUsage()
HOLD_MARGIN_S = 60
"""Holds outlive the longest request and the longest settlement by this much."""


class Pipeline:
    """The walk and what it needs. One per process."""

    def __init__(
        self, *, keys: KeyTable, limiter: Limiter, ledger: Ledger, prices: Prices, attempts: Attempts, settler: Settler,
        idempotency: Idempotency, tracer: Tracer, clock: Clock, rng: random.Random, limits: Limits,
        over_claims: OverClaims, sealed: SealedRequests,
    ) -> None:  # fmt: skip
        self._keys = keys
        self._limiter = limiter
        self._ledger = ledger
        self._prices = prices
        self._attempts = attempts
        self._settler = settler
        self._idempotency = idempotency
        self._tracer = tracer
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._over_claims = over_claims
        self._sealed = sealed
        self._hold_ttl_s = int(limits.request_s_max + SETTLE_S_MAX + HOLD_MARGIN_S)
        self.live = LiveExchanges()
        self.alarms = Alarms()

    async def serve(self, call: Call, client: Client) -> None:
        """Answer one request. Returns when the client has its answer or is gone; only cancellation leaves it."""
        trace = self._tracer.begin(call.traceparent)
        walk = Walk(new_job_id(self._clock, self._rng), Exchange(self._clock), trace, call.endpoint)
        client.always([(b"x-request-id", walk.name.encode())])
        try:
            principal = self._authenticate(walk, call, client)
            request = await self._read(walk, call, client)
            if call.idempotency_key is not None and await self._idempotency.replayed(walk, call, client):
                return
            if walk.sealed is not None:
                await self._sealed.take(walk, walk.sealed)
            admission = await self._admit(walk, principal, request, call, client)
            await self._relay(walk, admission, request, call, client)
        except ClientGoneError:
            walk.exchange.end(Event.LEAVE)
        except CocoonError as error:
            walk.fail(error)
        except asyncio.CancelledError:
            # The process is stopping and its patience is over: the network breaks this answer, nobody pays.
            walk.fail(AnswerBrokenError("the gateway is stopping"))
            raise
        except Exception:  # the request's top frame: a mistake of ours must not keep the customer's money
            log.exception("request_failed", job_id=walk.name, state=walk.exchange.state.value)
            walk.fail(CocoonError())
        finally:
            self._settle(walk)
        if walk.sealed is not None:
            await self._sealed.over(walk)
        if walk.error is not None:
            await client.fail(walk.error)

    def allows_origin(self, origin: str) -> bool:
        """Whether a browser may try at all from this origin."""
        return self._keys.allows_origin(origin)

    # The steps

    def _authenticate(self, walk: Walk, call: Call, client: Client) -> Principal:
        """Before anything is read: who has no key does not get to upload."""
        principal = walk.principal = self._keys.authenticate(call.authorization, now=self._clock.now())
        require_role(principal, Role.CUSTOMER, Role.ADMIN)
        walk.exchange.note(Event.AUTHENTICATE)
        client.always(cors_headers(call.origin, principal))
        return principal

    async def _read(self, walk: Walk, call: Call, client: Client) -> ModelRequest:
        self._settler.require_room()
        if len(self.live) > self._limits.exchanges_max:
            raise OverloadedError
        walk.body = await client.body()
        request = walk.request = (
            self._sealed.read(walk, call, client) if call.sealed else parse_request(walk.endpoint, walk.body)
        )
        return request

    async def _admit(
        self, walk: Walk, principal: Principal, request: ModelRequest, call: Call, client: Client
    ) -> Admission:
        offer = choose_offer(self._prices.book, principal, request.model)
        limit = read_limit(request.provider, call.max_price)
        walk.manifest = read_pin(
            request.provider, call.manifest, request.header.manifest if isinstance(request, SealedAsk) else None
        )
        if limit is not None or walk.manifest is not None:
            self._attempts.require_offered(walk.endpoint, offer, request, limit, walk.manifest)
        if isinstance(request, SealedAsk):
            bounds = sealed_bounds(request, walk.endpoint, offer)
        else:
            bounds = bound(request, walk.body, offer)
        walk.permit = await self._limiter.acquire(
            principal,
            job_id=walk.job_id,
            tokens=len(walk.body) // 4 + bounds.completion,
            nano=worst_cost(bounds, offer, limit).nano if principal.limits_spend else 0,
        )
        try:
            walk.admission = await hold_credit(
                self._ledger, principal, walk.job_id, request, bounds, offer, self._hold_ttl_s, limit
            )
        except Exception as error:
            if not isinstance(error, CocoonError) or error.transient:
                # The hold may have been granted all the same, and then nobody else would release it for long.
                self._settler.submit_void(walk.job_id, principal.customer_id)
            raise
        walk.exchange.note(Event.ADMIT)
        require_present(client)
        return walk.admission

    async def _relay(self, walk: Walk, admission: Admission, request: ModelRequest, call: Call, client: Client) -> None:
        """Route and relay under one deadline, which the client's leaving brings forward to now."""
        try:
            with Deadline(self._limits, self.alarms) as deadline:
                client.on_gone(deadline.end_now)
                if request.streams:
                    await self._stream(walk, admission, request, call, client, deadline)
                else:
                    await self._unary(walk, admission, request, call, client, deadline)
        except TimeoutError:
            # A client that stopped reading has left as surely as one that hung up.
            if client.gone or client.blocked:
                raise ClientGoneError from None
            raise AnswerTimeoutError from None
        finally:
            client.on_gone(None)

    async def _unary(
        self, walk: Walk, admission: Admission, request: ModelRequest, call: Call, client: Client, deadline: Deadline
    ) -> None:
        attempt, batch = await self._attempts.first(walk, admission, request, call, client, deadline)
        body = batch.data
        if walk.sealed is None:
            body = relay.priced_answer(body, attempt.price, attempt.usage(admission.bounds))
        walk.exchange.note(Event.COMPLETE)
        deadline.alive()
        await client.answer(answer_headers(walk, streams=False), body)

    async def _stream(
        self, walk: Walk, admission: Admission, request: ModelRequest, call: Call, client: Client, deadline: Deadline
    ) -> None:
        silence = KEEP_ALIVE if walk.sealed is None else SEALED_KEEP_ALIVE
        async with KeepAlive(client, self._limits.keep_alive_s, lambda: answer_headers(walk, streams=True), silence):
            attempt, batch = await self._attempts.first(walk, admission, request, call, client, deadline)
        deadline.progressed()
        if not client.began:
            await client.begin_stream(answer_headers(walk, streams=True))
        while batch.end is None:
            if events := _shown(walk, batch, attempt, admission, request):
                await client.write(events)
                require_present(client)
            deadline.progressed()
            try:
                batch = await attempt.next()
            except AttemptFailedError as error:
                require_present(client)
                raise AnswerBrokenError from error
            deadline.progressed()
        last = _shown(walk, batch, attempt, admission, request)
        walk.exchange.note(Event.COMPLETE)
        await client.finish(last if walk.sealed is not None else last + DONE_EVENT)

    def _settle(self, walk: Walk) -> None:
        """The end of every request, exactly once, without an await: nothing can come between. The money first."""
        exchange, attempt = walk.exchange, walk.attempt
        usage = _NONE
        if attempt is not None and walk.admission is not None:
            usage = attempt.usage(walk.admission.bounds)
        settlement: Settlement | None = None
        ended = self._clock.monotonic()
        match exchange.money:
            case Money.SETTLE:
                settlement = end = _settlement(walk, usage, self._clock)
                self._settler.submit(end, lambda posted: self._settled(walk, end, posted, ended))
            case Money.VOID:
                assert walk.principal is not None, "somebody was admitted"
                self._settler.submit_void(walk.job_id, walk.principal.customer_id)
            case Money.NOTHING:
                pass
        _release(walk, usage, settlement)
        if attempt is not None:
            attempt.finish(exchange.state)
            if settlement is None:
                attempt.dispatch.uncover()
            if settlement is not None and attempt.worker_id is not None and usage != (claimed := attempt.reported()):
                self._over_claims.note(settlement, claimed)
        if exchange.money is not Money.SETTLE:
            if walk.turn is not None:
                self._idempotency.forget(walk.turn)
            self._trace(walk, usage, None, ended)

    def _settled(self, walk: Walk, settlement: Settlement, posted: Posted | None, ended: float) -> None:
        if walk.permit is not None:
            walk.permit.settled()
        if walk.attempt is not None:
            walk.attempt.dispatch.uncover(0 if posted is None else posted.worker_share.nano)
        if walk.turn is not None:
            self._idempotency.settled(walk.turn, settlement, posted)
        self._trace(walk, settlement.usage, posted, ended)

    def _trace(self, walk: Walk, usage: TokenUsage, posted: Posted | None, ended: float) -> None:
        if not walk.trace.sampled:
            return
        settled = self._clock.monotonic()
        try:
            self._tracer.export(walk.trace, spans_of(walk, usage, posted, ended, settled, self._tracer.new_span_id))
        except Exception:  # the exporter's affairs must not cost anybody an answer
            log.exception("trace_failed", job_id=walk.name)


def _shown(walk: Walk, batch: Batch, attempt: Attempt, admission: Admission, request: ModelRequest) -> bytes:
    if walk.sealed is not None:
        return batch.data
    try:
        return relay.shown(batch.data, attempt.price, admission.bounds, with_cost=request.wants_usage)
    except MalformedError as error:
        raise AnswerBrokenError from error


def _release(walk: Walk, usage: TokenUsage, settlement: Settlement | None) -> None:
    """Tell the limits that the request is over, what it used, and the most that it will be charged."""
    if walk.permit is None:
        return
    charge_nano = 0
    if settlement is not None and walk.principal is not None and walk.principal.limits_spend:
        charge_nano = settlement.charge_max.nano
    walk.permit.release(usage.total, charge_nano)


def _settlement(walk: Walk, usage: TokenUsage, clock: Clock) -> Settlement:
    admission, attempt, principal = walk.admission, walk.attempt or walk.failed, walk.principal
    assert admission is not None, "settled requests were admitted"
    assert attempt is not None, "settled requests were dispatched"
    assert principal is not None, "settled requests have a payer"
    exchange = walk.exchange
    first = exchange.seconds_since_start(State.RELAYING)
    return Settlement(
        job_id=walk.job_id,
        attempt=attempt.number,
        customer_id=principal.customer_id,
        key_id=principal.key_id,
        worker_id=attempt.worker_id,
        model=admission.offer.model,
        price=attempt.price,
        usage=usage,
        outcome=exchange.outcome,
        finish_reason=attempt.finish_reason,
        started_at=exchange.started_at,
        first_token_at=None if first is None else exchange.started_at + dt.timedelta(seconds=first),
        ended_at=clock.now(),
        receipt_head=attempt.receipt_head,
        receipt_signature=attempt.receipt_signature,
    )
