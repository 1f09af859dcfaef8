"""The agent's HTTP surface: the job endpoint of the gateway-agent hop, and a health check."""

import random
import re
from collections.abc import Mapping

import msgspec
import structlog

from cocoon import hop, telemetry
from cocoon.canonical import base64url, from_base64url
from cocoon.clock import Clock
from cocoon.endpoints import BY_JOB_PATH, Endpoint, EndpointName
from cocoon.errors import MalformedError
from cocoon.openai import FieldError, ModelRequest
from cocoon.receipt_batch import STUB_CHARS_MAX
from cocoon.sealed import CONTENT_TYPE as SEALED_TYPE
from cocoon.statement_request import REQUEST_BYTES_MAX as STATEMENT_BYTES_MAX
from cocoon.statement_request import STATEMENT_PATH
from cocoon.ticket import Ticket
from cocoon.tracing import Attribute, SpanRecord, Tracer
from workers.agent import refusals
from workers.agent.admission import Admission
from workers.agent.asgi import GatewayGoneError, Receive, Scope, Send, header, read_body, send_json, send_refusal
from workers.agent.cache_salts import CacheSalts
from workers.agent.credit import OperatorCredit
from workers.agent.engines.ports import Engine
from workers.agent.exchange import Ending, Exchange, Job
from workers.agent.keys import Identity
from workers.agent.receipt_store import ReceiptStore
from workers.agent.refusals import RefusedError
from workers.agent.sealing import check_sealed, open_sealed, read_sealed
from workers.agent.signatures import Unsigned
from workers.agent.stating import Stater

_log: structlog.stdlib.BoundLogger = structlog.get_logger()

HEALTH_PATH = "/healthz"
SALT_BYTES_MIN = 16
SALT_BYTES_MAX = 64
_OWN_SALT_BYTES = 32
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class AgentApp:
    """Raw ASGI: nothing stands between the socket and the job."""

    def __init__(
        self,
        *,
        admission: Admission,
        engine: Engine,
        clock: Clock,
        rng: random.Random,
        store: ReceiptStore,
        unsigned: Unsigned,
        tracer: Tracer,
        served_model: str,
        endpoints: tuple[EndpointName, ...],
        context_tokens: int,
        tee_type: str,
        job_s_max: float,
        credit: OperatorCredit,
        stater: Stater | None = None,
    ) -> None:
        self._credit = credit
        self._stater = stater
        self._admission = admission
        self._engine = engine
        self._clock = clock
        self._rng = rng
        self._cache_salts = CacheSalts(rng)
        self._store = store
        self._unsigned = unsigned
        self._tracer = tracer
        self._served_model = served_model
        self._endpoints = endpoints
        self._context_tokens = context_tokens
        self._tee_type = tee_type
        self._job_s_max = job_s_max
        self._exchanges: set[Exchange] = set()

    def stop_jobs(self) -> None:
        """End every running job as broken; they finish on their own."""
        for exchange in self._exchanges:
            exchange.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        match scope["path"], scope["method"]:
            case path, "POST" if (endpoint := BY_JOB_PATH.get(path)) is not None:
                await self._job(endpoint, scope, receive, send)
            case path, "POST" if path == STATEMENT_PATH and self._stater is not None:
                await self._state(self._stater, scope, receive, send)
            case "/healthz", "GET":
                await self._health(send)
            case path, _ if path in BY_JOB_PATH or path == HEALTH_PATH:
                await send_refusal(send, refusals.WRONG_METHOD, body_read=False)
            case _:
                await send_refusal(send, refusals.NOT_FOUND, body_read=False)

    async def _state(self, stater: Stater, scope: Scope, receive: Receive, send: Send) -> None:
        """Evidence for a nonce that a gateway hands on."""
        read = False
        try:
            body = await read_body(scope, receive, STATEMENT_BYTES_MAX)
            read = True
            await send_json(send, 200, await stater.state(body), [])
        except RefusedError as error:
            await send_refusal(send, error.refusal, body_read=read)
        except GatewayGoneError:
            return

    async def _health(self, send: Send) -> None:
        state = "draining" if self._admission.draining else "ok" if self._engine.ready else "starting"
        body = {"status": state, "running": self._admission.running, "capacity": self._admission.capacity}
        await send_json(send, 200 if state == "ok" else 503, msgspec.json.encode(body), [])

    async def _job(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        body: bytes | None = None
        started = _StartWatcher(send)
        try:
            ticket, ticket_bytes, identity = self._admission.authenticate(header(scope, hop.TICKET_HEADER))
            self._admission.check_room()
            if not self._store.accepting:
                raise RefusedError(refusals.RECEIPTS_FULL)
            if not self._credit.accepting:
                raise RefusedError(refusals.OWED)
            self._check_signed()
            if not self._engine.ready:
                raise RefusedError(refusals.ENGINE_UNAVAILABLE)
            body = await read_body(scope, receive)
            job = self._admitted_job(endpoint, scope, ticket, ticket_bytes, identity, body)
            self._check_signed()
            with self._admission.slot(ticket, identity):
                if job.sealed is not None:
                    self._admission.admit_sealed(identity, job.sealed.header.job_id)
                self._unsigned.add(ticket_bytes, job.ticket_header, job.stub, identity.digest)
                await self._exchange(job, receive, started.send)
        except RefusedError as error:
            await send_refusal(send, error.refusal, body_read=body is not None)
        except GatewayGoneError:
            return
        except Exception as error:  # noqa: BLE001  the request's top frame: one broken job must not look like another
            # Only the type: a message could quote the prompt.
            _log.error("job_crashed", error=type(error).__name__)
            if not started.started:
                await send_refusal(send, refusals.CRASHED, body_read=False)

    def _check_signed(self) -> None:
        """Work for no more tickets that prove nothing to others than were agreed to.

        Raises:
            RefusedError: too many are unsigned, or one for too long.
        """
        if not self._unsigned.accepting:
            raise RefusedError(refusals.UNSIGNED)

    def _admitted_job(
        self, endpoint: Endpoint, scope: Scope, ticket: Ticket, ticket_bytes: bytes, identity: Identity, body: bytes
    ) -> Job:
        """The job in a body, which the ticket is for.

        Raises:
            RefusedError: it is for another body, or what is in it cannot be done.
        """
        if header(scope, "content-type") != SEALED_TYPE:
            self._admission.check_body(ticket, body)
            return self._read_job(endpoint, scope, ticket, ticket_bytes, identity, body)
        request = read_sealed(ticket, body)
        opened = open_sealed(ticket, request, identity, self._clock.now().timestamp())
        job = self._read_job(endpoint, scope, ticket, ticket_bytes, identity, opened.body)
        check_sealed(
            opened,
            endpoint,
            job.request,
            context_tokens=self._context_tokens,
            manifest=identity.keyset.model_manifest_sha256,
        )
        return msgspec.structs.replace(
            job, sealed=opened, salt=opened.secret, salt_header=None, cache_salt=self._cache_salts.sealed(opened)
        )

    def _read_job(
        self, endpoint: Endpoint, scope: Scope, ticket: Ticket, ticket_bytes: bytes, identity: Identity, body: bytes
    ) -> Job:
        """What the body and the headers say.

        Raises:
            RefusedError: not a request of this endpoint, for another model, or more choices than the ticket has tokens.
        """
        try:
            request = endpoint.decode(body)
            if request.model != self._served_model:
                raise RefusedError(refusals.unknown_model(self._served_model))
            request.check()
        except FieldError as error:
            raise RefusedError(refusals.bad_field(error)) from error
        except MalformedError as error:
            raise RefusedError(refusals.BAD_BODY) from error
        if endpoint.name not in self._endpoints:
            raise RefusedError(refusals.unsupported(endpoint.name))
        if request.choices > request.copies * request.prompts:
            raise RefusedError(refusals.BEST_OF)
        salt, salt_header = self._salt(header(scope, hop.SALT_HEADER))
        incoming = header(scope, "traceparent")
        trace = self._tracer.begin(incoming)
        passed_on = incoming if incoming is not None and _TRACEPARENT.fullmatch(incoming) else None
        return Job(
            ticket=ticket,
            ticket_bytes=ticket_bytes,
            ticket_header=header(scope, hop.TICKET_HEADER) or "",
            stub=_stub(header(scope, hop.STUB_HEADER)),
            identity=identity,
            body=body,
            endpoint=endpoint,
            request=request,
            completion_max=_completion_max(ticket, request),
            salt=salt,
            salt_header=salt_header,
            trace=trace,
            traceparent=trace.child_header if self._tracer.enabled else passed_on,
            cache_salt=self._cache_salts.plain(header(scope, hop.TENANT_HEADER)),
        )

    def _salt(self, given: str | None) -> tuple[bytes, str | None]:
        """The salt of the commitments, and the header that returns it when it is ours."""
        if given is None:
            own = self._rng.randbytes(_OWN_SALT_BYTES)
            return own, base64url(own)
        try:
            salt = from_base64url(given)
        except MalformedError as error:
            raise RefusedError(refusals.BAD_SALT) from error
        if not SALT_BYTES_MIN <= len(salt) <= SALT_BYTES_MAX:
            raise RefusedError(refusals.BAD_SALT)
        return salt, None

    async def _exchange(self, job: Job, receive: Receive, send: Send) -> None:
        exchange = Exchange(
            job,
            engine=self._engine,
            clock=self._clock,
            store=self._store,
            tee_type=self._tee_type,
            seconds_max=self._job_s_max,
            random=self._rng.randbytes,
        )
        self._exchanges.add(exchange)
        try:
            ending = await exchange.run(receive, send)
        finally:
            self._exchanges.discard(exchange)
        _log.info(
            "job_ended",
            job_id=str(job.ticket.job_id),
            attempt=job.ticket.attempt,
            outcome=ending.outcome,
            prompt=ending.usage.prompt,
            cached=ending.usage.cached,
            completion=ending.usage.completion,
            seconds=round((ending.ended - ending.began).total_seconds(), 3),
        )
        if self._tracer.enabled:
            self._tracer.export(job.trace, _spans(job, ending))


class _StartWatcher:
    """Notes whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def send(self, message: dict[str, object]) -> None:
        self.started = True
        await self._send(message)


def _stub(given: str | None) -> str:
    """The gateway's note of the attempt, opaque to us.

    Raises:
        RefusedError: longer than a stub can be.
    """
    if given is not None and len(given) > STUB_CHARS_MAX:
        raise RefusedError(refusals.BAD_TICKET)
    return given or ""


def _completion_max(ticket: Ticket, request: ModelRequest) -> int:
    """Tokens per choice: what the client asks for, within an equal share of the ticket. None at all for embeddings.

    Raises:
        RefusedError: the share is nothing.
    """
    share = ticket.max_completion // request.choices
    asked = request.asked_completion
    allowed = share if asked is None else min(share, asked)
    if allowed < 1 and asked != 0:
        raise RefusedError(refusals.NO_ALLOWANCE)
    return allowed


def _spans(job: Job, ending: Ending) -> list[SpanRecord]:
    attributes: Mapping[str, Attribute] = {
        telemetry.OPERATION: job.endpoint.operation,
        telemetry.REQUEST_MODEL: job.request.model,
        telemetry.REQUEST_MAX_TOKENS: job.completion_max,
        telemetry.RESPONSE_FINISH_REASONS: (ending.finish_reason,),
        telemetry.USAGE_INPUT_TOKENS: ending.usage.prompt,
        telemetry.USAGE_OUTPUT_TOKENS: ending.usage.completion,
        telemetry.CACHED_TOKENS: ending.usage.cached,
        telemetry.STREAM: job.request.streams,
        telemetry.JOB_ID: str(job.ticket.job_id),
        telemetry.ATTEMPT: job.ticket.attempt,
        telemetry.OUTCOME: ending.outcome,
    }
    if ending.first_token is not None:
        waited_ms = (ending.first_token - ending.began).total_seconds() * 1000
        attributes = {**attributes, telemetry.TIME_TO_FIRST_TOKEN_MS: waited_ms}
    error = None if ending.outcome in ("complete", "abandoned") else ending.outcome
    start_ns, end_ns = (int(moment.timestamp() * 1_000_000) * 1000 for moment in (ending.began, ending.ended))
    trace = job.trace
    root = SpanRecord(
        name=telemetry.SPAN_AGENT_JOB, span_id=trace.root_id, parent_id=trace.parent_id, kind="server",
        start_ns=start_ns, end_ns=end_ns, attributes=attributes, error=error,
    )  # fmt: skip
    engine = SpanRecord(
        name=telemetry.SPAN_ENGINE, span_id=trace.hop_id, parent_id=trace.root_id, kind="client",
        start_ns=start_ns, end_ns=end_ns, error=error,
    )  # fmt: skip
    return [root, engine]
