"""Open an answer at a target: an agent (frames over pinned TLS) or a plain OpenAI upstream (spliced bytes).

Both give the same thing: an `Answer` of `Batch`es, each holding bytes that are ready for the client, the counts so
far, and at the end an `End`. Retrying, timeouts and charging are the caller's business; closing is the abort.
"""

import asyncio
import contextlib
import re
import uuid
from typing import ClassVar, NamedTuple, Protocol

import msgspec

from cocoon import hop, openai, receipt, splice, sse
from cocoon.clock import Clock
from cocoon.endpoints import EMBEDDINGS, Endpoint
from cocoon.errors import MalformedError
from cocoon.hop import FrameKind, FrameReader
from cocoon.http1 import Connection, Head, HopClosedError, HopError, request_bytes
from cocoon.sealed import CONTENT_TYPE
from cocoon.usage import TokenUsage
from workers.connections import IDLE_S_MAX, Connections, IdentityError, Route, TransportError
from workers.targets import Target, Upstream, Worker

__all__ = [
    "Answer", "Batch", "End", "IdentityError", "Job", "RefusedError", "Transport", "TransportError", "token_usage",
]  # fmt: skip

UPSTREAM_IDLE_S_MAX = 4.0
"""Engines close idle connections after 5 s (uvicorn's default): a request must not meet that close on its way."""
END_S_MAX = 0.5
"""How long the end of the HTTP answer may take to follow the end of what it says."""
REFUSAL_BYTES_MAX = 256 * 1024
ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""Longest unary answer."""
RETRY_AFTER_S_MAX = 3600.0
SEALED_TYPE = CONTENT_TYPE.encode()
_OK = 200
_SIGNATURE_BYTES = 64
_NOTABLE = re.compile(rb'"(?:usage"\s*:\s*\{|error"\s*:|finish_reason"\s*:\s*")')
"""Events that can carry usage, an end or a failure; only these are parsed. See `_is_notable`."""
_REASON = re.compile(r"[A-Za-z0-9_-]{0,32}")
_SALT = re.compile(rb"[A-Za-z0-9_-]{1,128}")


class RefusedError(TransportError):
    """The worker answered with an error before any answer. `retry_after_s` is its own wish.

    The body is an error for us to read, or, when `sealed`, one for the client alone.
    """

    code: ClassVar[str] = "worker_refused"

    def __init__(self, status: int, body: bytes, retry_after_s: float | None, *, sealed: bool = False) -> None:
        super().__init__(f"the worker answered {status}")
        self.status = status
        self.body = body
        self.sealed = sealed
        self.retry_after_s = retry_after_s


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt as the transport needs it.

    `max_completion` is per choice; `ticket` and `stub` are None for an upstream. The body of a `sealed` one is for an
    agent to open.
    """

    job_id: uuid.UUID
    endpoint: Endpoint
    model: str
    body: bytes
    stream: bool
    show_usage: bool
    asks_maximum: bool
    max_completion: int
    ticket: str | None
    stub: str | None
    salt: str | None
    traceparent: str | None
    sealed: bool = False
    tenant: bytes | None = None


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer ended. Receipt fields are None for an upstream; `failure` is None for a whole answer."""

    usage: TokenUsage
    finish_reason: str
    receipt_head: bytes | None = None
    receipt_signature: bytes | None = None
    failure: str | None = None


class Batch(NamedTuple):
    """What one read brought: bytes for the client (whole SSE events, or a unary JSON), counts so far, the end."""

    data: bytes
    usage: TokenUsage | None
    end: End | None


class Answer(Protocol):
    """An open answer."""

    salt: str | None

    async def next(self) -> Batch:
        """The next batch. Raises HopError or MalformedError when the answer breaks; not to be called after the end."""
        ...

    def close(self) -> None:
        """Give the connection back if the answer is complete, else abort it. Idempotent."""
        ...


class Transport:
    """Opens answers; owns the connections."""

    def __init__(self, clock: Clock, *, allow_private: bool) -> None:
        self._connections = Connections(clock, allow_private=allow_private)

    async def open(self, target: Target, job: Job) -> Answer:
        """Send the job; the answer is open once the worker has accepted it.

        Raises:
            RefusedError: the worker answered with an error, or the request cannot be put to it.
            TransportError: it cannot be reached, or its identity is wrong.
            HopError: the connection broke.
        """
        match target:
            case Worker():
                return await self._open_worker(target, job)
            case Upstream():
                return await self._open_upstream(target, job)

    async def ask(self, worker: Worker, path: str, body: bytes, bytes_max: int) -> bytes:
        """The whole answer of a worker to a question about itself, over its pinned connection.

        Raises:
            RefusedError: the worker answered with an error.
            TransportError: it cannot be reached, or its identity is wrong.
            HopError: the connection broke, or the answer is longer than `bytes_max`.
        """
        route = Route(worker.host, worker.port, tls=True, pin=worker.tls_spki_sha256)
        headers = [(b"host", worker.host.encode()), (b"content-type", b"application/json")]
        request = request_bytes(b"POST", path.encode(), headers, body)
        connection, head = await self._exchange(route, request, idle_s_max=IDLE_S_MAX, repeatable=True)
        if head.status != _OK:
            raise await self._refused(route, connection, head)
        try:
            return await connection.read_all(bytes_max)
        finally:
            self._connections.give_back(route, connection)

    def close(self) -> None:
        """Close idle connections."""
        self._connections.close()

    async def _open_worker(self, worker: Worker, job: Job) -> Answer:
        assert job.ticket is not None, "agents work for tickets"
        headers = [
            (b"host", worker.host.encode()),
            (b"content-type", SEALED_TYPE if job.sealed else b"application/json"),
            (hop.TICKET_HEADER.encode(), job.ticket.encode()),
            (hop.STUB_HEADER.encode(), (job.stub or "").encode()),
        ]
        if job.tenant is not None:
            headers.append((hop.TENANT_HEADER.encode(), job.tenant))
        if job.salt:
            headers.append((hop.SALT_HEADER.encode(), job.salt.encode()))
        if job.traceparent:
            headers.append((b"traceparent", job.traceparent.encode()))
        request = request_bytes(b"POST", job.endpoint.job_path.encode(), headers, job.body)
        route = Route(worker.host, worker.port, tls=True, pin=worker.tls_spki_sha256)
        # An agent works for a ticket once, so sending it again does no harm.
        connection, head = await self._exchange(route, request, idle_s_max=IDLE_S_MAX, repeatable=True)
        if head.status != _OK:
            raise await self._refused(route, connection, head, sealed=job.sealed)
        _require_type(connection, head, hop.CONTENT_TYPE.encode())
        salt = head.headers.get(hop.SALT_HEADER.encode())
        if salt is not None and _SALT.fullmatch(salt) is None:
            connection.abort()
            raise TransportError("the worker's salt is not one")
        return _FramedAnswer(self._connections, route, connection, salt.decode() if salt else None)

    async def _open_upstream(self, upstream: Upstream, job: Job) -> Answer:
        headers = [(b"host", upstream.host.encode()), (b"content-type", b"application/json")]
        if upstream.api_key:
            headers.append((b"authorization", b"Bearer " + upstream.api_key.encode()))
        if job.traceparent:
            headers.append((b"traceparent", job.traceparent.encode()))
        request = request_bytes(
            b"POST", (upstream.path + job.endpoint.engine_path).encode(), headers, upstream_body(upstream, job)
        )
        route = Route(upstream.host, upstream.port, tls=upstream.tls, pin=None)
        # Nothing tells an engine that it has seen a request before: one that may have reached it is not sent again.
        connection, head = await self._exchange(route, request, idle_s_max=UPSTREAM_IDLE_S_MAX, repeatable=False)
        if head.status != _OK:
            raise await self._refused(route, connection, head)
        if job.stream:
            _require_type(connection, head, b"text/event-stream")
            return _EventAnswer(self._connections, route, connection, show_usage=job.show_usage)
        if job.endpoint is EMBEDDINGS:
            return _EmbeddingAnswer(self._connections, route, connection)
        return _UnaryAnswer(self._connections, route, connection)

    async def _exchange(
        self, route: Route, request: bytes, *, idle_s_max: float, repeatable: bool
    ) -> tuple[Connection, Head]:
        """Send on a kept connection, else on a new one; and on a new one if the kept one closes without a byte."""
        kept = self._connections.take(route, idle_s_max)
        if kept is not None:
            try:
                return kept, await _answered(kept, request)
            except HopClosedError:
                if kept.bytes_received or not repeatable:
                    raise
        new = await self._connections.open(route)
        return new, await _answered(new, request)

    async def _refused(self, route: Route, connection: Connection, head: Head, *, sealed: bool = False) -> RefusedError:
        try:
            body = await connection.read_all(REFUSAL_BYTES_MAX)
        except HopError:
            body = b""
        finally:
            self._connections.give_back(route, connection)
        sealed = sealed and head.headers.get(b"content-type") == SEALED_TYPE
        return RefusedError(head.status, body, _retry_after(head.headers.get(b"retry-after")), sealed=sealed)


def _require_type(connection: Connection, head: Head, content_type: bytes) -> None:
    if not head.headers.get(b"content-type", b"").lower().startswith(content_type):
        connection.abort()
        raise TransportError(f"the answer is not {content_type.decode()}")


async def _answered(connection: Connection, request: bytes) -> Head:
    try:
        connection.send(request)
        return await connection.head()
    except BaseException:
        connection.abort()
        raise


class _PooledAnswer:
    """What every answer shares: its connection, given back once."""

    def __init__(self, connections: Connections, route: Route, connection: Connection) -> None:
        self.salt: str | None = None
        self._connections = connections
        self._route = route
        self._connection = connection
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._connections.give_back(self._route, self._connection)

    async def _run_out(self) -> None:
        """All is said: let HTTP's own end arrive, so that the connection can be kept. What else comes costs only it."""
        if not self._connection.reusable:
            with contextlib.suppress(TimeoutError, HopError):
                async with asyncio.timeout(END_S_MAX):
                    await self._connection.read()


class _FramedAnswer(_PooledAnswer):
    """An agent's answer."""

    def __init__(self, connections: Connections, route: Route, connection: Connection, salt: str | None) -> None:
        super().__init__(connections, route, connection)
        self.salt = salt
        self._frames = FrameReader()

    async def next(self) -> Batch:
        data: list[bytes] = []
        usage: TokenUsage | None = None
        while True:
            chunk = await self._connection.read()
            if not chunk:
                raise HopClosedError("the answer ended without a trailer")
            for kind, payload in self._frames.feed(chunk):
                if kind is FrameKind.DATA:
                    data.append(payload)
                elif kind is FrameKind.PROGRESS:
                    usage = hop.decode_progress(payload)
                else:
                    return await self._ended(b"".join(data), hop.decode_trailer(payload))
            if data or usage is not None:
                return Batch(b"".join(data), usage, None)

    async def _ended(self, data: bytes, trailer: hop.Trailer) -> Batch:
        if self._frames.pending:
            raise MalformedError("bytes after the trailer")
        head, signature = trailer.receipt_head, trailer.receipt_signature
        if receipt.ReceiptHead.decode(head).usage != trailer.usage or len(signature) != _SIGNATURE_BYTES:
            raise MalformedError("the receipt is not for this answer")
        await self._run_out()
        end = End(
            usage=trailer.usage,
            finish_reason=_known_reason(trailer.finish_reason),
            receipt_head=head,
            receipt_signature=signature,
            failure=None if trailer.failure is None else _known_reason(trailer.failure),
        )
        return Batch(data, trailer.usage, end)


class _UnaryAnswer(_PooledAnswer):
    """A plain upstream's unary answer, in one batch."""

    async def next(self) -> Batch:
        body = await self._connection.read_all(ANSWER_BYTES_MAX)
        answer = openai.decode_chunk(body)
        if answer.error is not None or not answer.choices:
            raise MalformedError("the upstream's answer is none")
        usage = token_usage(answer.usage) or TokenUsage()
        reason = next((c.finish_reason for c in answer.choices if c.finish_reason), "stop")
        return Batch(body, usage, End(usage=usage, finish_reason=_known_reason(reason)))


class _EmbeddingAnswer(_PooledAnswer):
    """A plain upstream's embeddings, in one batch."""

    async def next(self) -> Batch:
        body = await self._connection.read_all(ANSWER_BYTES_MAX)
        answer = openai.decode_embeddings(body)
        if answer.error is not None or not answer.data:
            raise MalformedError("the upstream's answer is none")
        usage = token_usage(answer.usage) or TokenUsage()
        return Batch(body, usage, End(usage=usage, finish_reason="stop"))


class _EventAnswer(_PooledAnswer):
    """A plain upstream's stream: events pass as they are, but for a usage chunk that the client did not ask for."""

    def __init__(self, connections: Connections, route: Route, connection: Connection, *, show_usage: bool) -> None:
        super().__init__(connections, route, connection)
        self._events = sse.EventSplitter()
        self._show_usage = show_usage
        self._reported: TokenUsage | None = None
        self._counted = 0
        self._finish_reason = ""

    async def next(self) -> Batch:
        while True:
            chunk = await self._connection.read()
            if not chunk:
                raise HopClosedError("the stream ended without [DONE]")
            shown: list[bytes] = []
            counted = self._counted
            done = False
            for event in self._events.feed(chunk):
                if done:
                    break
                done = self._take(event, shown)
            usage = self._reported or TokenUsage(completion=self._counted)
            if done:
                await self._run_out()
                reason = _known_reason(self._finish_reason or "stop")
                return Batch(b"".join(shown), usage, End(usage=usage, finish_reason=reason))
            if shown or self._counted != counted:
                return Batch(b"".join(shown), usage, None)

    def _take(self, event: bytes, shown: list[bytes]) -> bool:
        """Append the event if it is the client's to see; True at [DONE]."""
        payload = sse.data_of(event)
        if payload == b"[DONE]":
            shown.append(sse.DONE_EVENT)
            return True
        if payload is None:
            # A comment: harmless, and it keeps the client's connection alive as it kept ours. Before the first event
            # the gateway has its own, and a worker that has only commented can still be replaced.
            if self._counted:
                shown.append(event)
            return False
        self._counted += 1
        if _is_notable(payload):
            chunk = openai.decode_chunk(payload)
            if chunk.error is not None:
                raise MalformedError("the upstream reported an error in its stream")
            self._finish_reason = next((c.finish_reason for c in chunk.choices if c.finish_reason), self._finish_reason)
            usage = token_usage(chunk.usage)
            if usage is not None:
                self._reported = usage
                if not chunk.choices:
                    self._counted -= 1
                    if not self._show_usage:
                        return False
        shown.append(event)
        return False


def _is_notable(payload: bytes) -> bool:
    """Whether `_NOTABLE` is in it. Plain searches say no first, several times faster, for nearly every event."""
    if (
        b'"usage"' not in payload
        and b'"error"' not in payload
        and payload.count(b'"finish_reason"') == payload.count(b'"finish_reason":null')
    ):
        return False
    return _NOTABLE.search(payload) is not None


def upstream_body(upstream: Upstream, job: Job) -> bytes:
    """The client's bytes, changed only where a plain upstream needs it: model name, usage reporting, a maximum.

    Raises:
        RefusedError: the body cannot be edited (`splice.MEMBERS_MAX`); that is no upstream's fault.
    """
    changes: dict[str, bytes | None] = {}
    try:
        name = upstream.models[job.model]
        if name != job.model:
            changes["model"] = msgspec.json.encode(name)
        if job.stream and not job.show_usage:
            changes["stream_options"] = _with_usage(job.body)
        if not job.asks_maximum:
            changes["max_tokens"] = str(job.max_completion).encode()
        return splice.with_members(job.body, changes) if changes else job.body
    except MalformedError as error:
        message = "The body has too many members or is nested too deeply."
        raise RefusedError(400, openai.error_json(message, "invalid_request_error"), None) from error


def token_usage(usage: openai.Usage | None) -> TokenUsage | None:
    """An engine's usage as ours; impossible counts are refused.

    Raises:
        MalformedError: negative, or beyond 32 bits.
    """
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    try:
        return TokenUsage(prompt=usage.prompt_tokens, cached=cached, completion=usage.completion_tokens)
    except ValueError as error:
        raise MalformedError(str(error)) from error


def _known_reason(reason: str) -> str:
    """A finish reason as it may be recorded; what cannot be one is `other`."""
    return reason if _REASON.fullmatch(reason) else "other"


def _retry_after(value: bytes | None) -> float | None:
    """Seconds; a date is as good as nothing. A number of four hundred digits is a number too."""
    return min(float(value), RETRY_AFTER_S_MAX) if value is not None and value.isdigit() else None


def _with_usage(body: bytes) -> bytes:
    for member in reversed(splice.members(body)):
        if member.key == "stream_options" and body[member.value : member.value + 1] == b"{":
            return splice.with_members(body[member.value : member.end], {"include_usage": b"true"})
    return b'{"include_usage":true}'
