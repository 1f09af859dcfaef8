"""One request, one straight walk: authenticate -> admit -> route -> relay -> settle -> receipt.

`Pipeline.serve` is the map; each step is a method or a module of its own. Nothing here knows HTTP: the client is a
port with six operations, errors are typed, and `gateway/http` translates both.
"""

import asyncio
import datetime as dt
import random

from billing.ports import Ledger, Posted, Settlement
from cocoon.clock import Clock
from cocoon.errors import CocoonError
from cocoon.ids import new_job_id
from cocoon.money import NUMERATOR_PER_NANO
from cocoon.openai import ChatRequest
from cocoon.tracing import Tracer
from cocoon.usage import TokenUsage
from gateway import relay
from gateway.admission import Admission, bound, choose_offer, hold_credit, parse_chat
from gateway.attempt import Attempt, AttemptFailedError
from gateway.attempts import Attempts
from gateway.auth import KeyTable, Principal, Role, require_role
from gateway.client import Client, ClientGoneError, KeepAlive, Limits
from gateway.errors import AnswerBrokenError, AnswerTimeoutError, OverloadedError, UpstreamRefusedError
from gateway.exchange import Event, Exchange, Money, State
from gateway.headers import answer_headers, cors_headers
from gateway.limits import Limiter
from gateway.live import LiveExchanges
from gateway.prices import Prices
from gateway.settle import SETTLE_S_MAX, Settler
from gateway.spans import spans_of
from gateway.walk import Call, Walk
from workers.transport import Batch

HOLD_MARGIN_S = 60
"""Holds outlive the longest request and the longest settlement by this much."""


class Pipeline:
    """The walk and what it needs. One per process."""

    def __init__(
        self, *, keys: KeyTable, limiter: Limiter, ledger: Ledger, prices: Prices, attempts: Attempts, settler: Settler,
        tracer: Tracer, clock: Clock, rng: random.Random, limits: Limits,
    ) -> None:  # fmt: skip
        self._keys = keys
        self._limiter = limiter
        self._ledger = ledger
        self._prices = prices
        self._attempts = attempts
        self._settler = settler
        self._tracer = tracer
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._hold_ttl = dt.timedelta(seconds=limits.request_s_max + SETTLE_S_MAX + HOLD_MARGIN_S)
        self.live = LiveExchanges()

    async def serve(self, call: Call, client: Client) -> None:
        """Answer one chat request. Returns when the client has its answer or is gone; never raises CocoonError."""
        walk = Walk(new_job_id(self._clock, self._rng), Exchange(self._clock), self._tracer.begin(call.traceparent))
        client.always([(b"x-request-id", str(walk.job_id).encode())])
        try:
            principal, request = self._authenticate(walk, call, client)
            admission = await self._admit(walk, principal, request, call, client)
            await self._relay(walk, admission, request, call, client)
        except ClientGoneError:
            walk.exchange.end(Event.LEAVE)
        except CocoonError as error:
            walk.error = error
            walk.exchange.end(_ending(walk.exchange, error))
        except asyncio.CancelledError:
            # The process is stopping and its patience is over: the network breaks this answer, nobody pays.
            walk.error = AnswerBrokenError("the gateway is stopping")
            walk.exchange.end(_ending(walk.exchange, walk.error))
            raise
        finally:
            self._settle(walk)
        if walk.error is not None:
            await client.fail(walk.error)

    def allows_origin(self, origin: str) -> bool:
        """Whether a browser may try at all from this origin."""
        return self._keys.allows_origin(origin)

    # The steps

    def _authenticate(self, walk: Walk, call: Call, client: Client) -> tuple[Principal, ChatRequest]:
        principal = walk.principal = self._keys.authenticate(call.authorization, now=self._clock.now())
        require_role(principal, Role.CUSTOMER, Role.ADMIN)
        walk.exchange.note(Event.AUTHENTICATE)
        client.always(cors_headers(call.origin, principal))
        walk.request = parse_chat(call.body)
        return principal, walk.request

    async def _admit(
        self, walk: Walk, principal: Principal, request: ChatRequest, call: Call, client: Client
    ) -> Admission:
        self._settler.require_room()
        if len(self.live) > self._limits.exchanges_max:
            raise OverloadedError
        offer = choose_offer(self._prices.book, principal, request.model)
        bounds = bound(request, call.body, offer)
        walk.permit = await self._limiter.acquire(
            key_id=principal.key_id,
            requests_per_min=principal.requests_per_min,
            tokens_per_min=principal.tokens_per_min,
            concurrency_max=principal.concurrency_max,
            tokens_estimate=len(call.body) // 4 + bounds.completion,
        )
        walk.admission = await hold_credit(self._ledger, principal, walk.job_id, request, bounds, offer, self._hold_ttl)
        walk.exchange.note(Event.ADMIT)
        client.require_present()
        return walk.admission

    async def _relay(self, walk: Walk, admission: Admission, request: ChatRequest, call: Call, client: Client) -> None:
        """Route and relay under one deadline, which the client's leaving brings forward to now."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.first_byte_s) as deadline:
                client.on_gone(lambda: None if deadline.expired() else deadline.reschedule(loop.time()))
                if request.streams:
                    await self._stream(walk, admission, request, call, client, deadline)
                else:
                    await self._unary(walk, admission, request, call, client)
        except TimeoutError:
            # A client that stopped reading has left as surely as one that hung up.
            if client.gone or client.blocked:
                raise ClientGoneError from None
            raise AnswerTimeoutError from None
        finally:
            client.on_gone(None)

    async def _unary(self, walk: Walk, admission: Admission, request: ChatRequest, call: Call, client: Client) -> None:
        attempt, batch = await self._attempts.first(walk, admission, request, call, client)
        assert batch.end is not None, "a unary answer comes whole"
        usage = attempt.usage(admission.bounds)
        body = relay.priced_answer(batch.data, admission.offer.price, usage)
        walk.exchange.note(Event.COMPLETE)
        await client.answer(answer_headers(walk, streams=False), body)

    async def _stream(
        self, walk: Walk, admission: Admission, request: ChatRequest, call: Call, client: Client,
        deadline: asyncio.Timeout,
    ) -> None:  # fmt: skip
        async with KeepAlive(client, self._limits.keep_alive_s, lambda: answer_headers(walk, streams=True)):
            attempt, batch = await self._attempts.first(walk, admission, request, call, client)
        if not client.began:
            await client.begin_stream(answer_headers(walk, streams=True))
        while batch.end is None:
            await self._pass_on(batch, admission, request, attempt, client)
            self._extend(walk, deadline)
            try:
                batch = await attempt.next()
            except AttemptFailedError as error:
                client.require_present()
                raise AnswerBrokenError from error
        data, done = relay.without_done(batch.data)
        await self._pass_on(batch._replace(data=data), admission, request, attempt, client)
        walk.exchange.note(Event.COMPLETE)
        await client.write(attempt.held_back or done)
        await client.finish()

    async def _pass_on(
        self, batch: Batch, admission: Admission, request: ChatRequest, attempt: Attempt, client: Client
    ) -> None:
        data, done = relay.without_done(batch.data)
        attempt.held_back = attempt.held_back or done
        if request.wants_usage:
            data = relay.priced_events(data, admission.offer.price, admission.bounds)
        if data:
            await client.write(data)
            client.require_present()

    def _extend(self, walk: Walk, deadline: asyncio.Timeout) -> None:
        if deadline.expired():
            return
        elapsed = self._clock.monotonic() - walk.exchange.entered[State.RECEIVED]
        remaining = min(self._limits.idle_s, self._limits.request_s_max - elapsed)
        deadline.reschedule(asyncio.get_running_loop().time() + max(0.0, remaining))

    def _settle(self, walk: Walk) -> None:
        """The end of every request, exactly once, without an await: nothing can come between."""
        exchange, attempt = walk.exchange, walk.attempt
        usage = TokenUsage()
        if attempt is not None:
            attempt.finish(exchange.state)
            if walk.admission is not None:
                usage = attempt.usage(walk.admission.bounds)
        if walk.permit is not None:
            walk.permit.release(usage.total)
        ended = self._clock.monotonic()
        match exchange.money:
            case Money.NOTHING:
                self._trace(walk, usage, None, ended)
            case Money.VOID:
                assert walk.admission is not None, "a hold was admitted"
                assert walk.principal is not None, "somebody was admitted"
                self._settler.submit_void(walk.job_id, walk.principal.customer_id)
                self._trace(walk, usage, None, ended)
            case Money.SETTLE:
                self._settler.submit(
                    _settlement(walk, usage, self._clock), lambda posted: self._trace(walk, usage, posted, ended)
                )

    def _trace(self, walk: Walk, usage: TokenUsage, posted: Posted | None, ended: float) -> None:
        if walk.trace.sampled:
            self._tracer.export(
                walk.trace, spans_of(walk, usage, posted, ended, self._clock.monotonic(), self._tracer.new_span_id)
            )


def _ending(exchange: Exchange, error: CocoonError) -> Event:
    """An error while a worker is at work is a broken answer; before that, or by the engine's word, a refusal."""
    at_work = exchange.state in {State.DISPATCHED, State.RELAYING}
    return Event.BREAK if at_work and not isinstance(error, UpstreamRefusedError) else Event.REFUSE


def _settlement(walk: Walk, usage: TokenUsage, clock: Clock) -> Settlement:
    admission, attempt, principal = walk.admission, walk.attempt, walk.principal
    assert admission is not None, "settled requests were admitted"
    assert attempt is not None, "settled requests were dispatched"
    assert principal is not None, "settled requests have a payer"
    exchange = walk.exchange
    first = exchange.seconds_since_start(State.RELAYING)
    settlement = Settlement(
        job_id=walk.job_id,
        attempt=attempt.number,
        customer_id=principal.customer_id,
        key_id=principal.key_id,
        worker_id=attempt.worker_id,
        model=admission.offer.model,
        price=admission.offer.price,
        usage=usage,
        outcome=exchange.outcome,
        finish_reason=attempt.finish_reason,
        started_at=exchange.started_at,
        first_token_at=None if first is None else exchange.started_at + dt.timedelta(seconds=first),
        ended_at=clock.now(),
        receipt_head=attempt.receipt_head,
        receipt_signature=attempt.receipt_signature,
    )
    assert settlement.numerator <= admission.held.nano * NUMERATOR_PER_NANO, "a charge never exceeds its hold"
    return settlement
