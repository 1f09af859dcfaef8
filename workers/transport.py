"""Open an answer at a target: an agent (frames over pinned TLS) or a plain OpenAI upstream (spliced bytes).

Both give the same thing: an `Answer` of `Batch`es, each holding bytes that are ready for the client, the counts so
far, and at the end an `End`. Retrying, timeouts and charging are the caller's business; closing is the abort.
"""

import asyncio
import hashlib
import re
import ssl
import uuid
from collections import deque
from typing import ClassVar, NamedTuple, Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cocoon import hop, openai, splice, sse
from cocoon.clock import Clock
from cocoon.errors import CocoonError, MalformedError
from cocoon.hop import FrameKind, FrameReader
from cocoon.http1 import Connection, Head, HopClosedError, HopError, request_bytes
from cocoon.usage import TokenUsage
from workers.addresses import is_permitted_peer
from workers.targets import Target, Upstream, Worker

CONNECT_S_MAX = 5.0
IDLE_S_MAX = 20.0
IDLE_CONNECTIONS_MAX = 64
"""Kept open per target."""
REFUSAL_BYTES_MAX = 256 * 1024
ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""Longest unary answer."""
PINS_MAX = 4096
_NOTABLE = re.compile(rb'"usage":\s*\{|"error":|"finish_reason":\s*"')
"""Events that can carry usage, an end or a failure; only these are parsed."""


class TransportError(CocoonError):
    """The worker cannot be reached or does not keep to the protocol."""

    code: ClassVar[str] = "worker_unreachable"
    transient: ClassVar[bool] = True


class IdentityError(TransportError):
    """The worker's TLS key is not the one it enrolled with."""

    code: ClassVar[str] = "worker_identity"


class RefusedError(TransportError):
    """The worker answered with an error before any answer. `retry_after_s` is its own wish."""

    code: ClassVar[str] = "worker_refused"

    def __init__(self, status: int, body: bytes, retry_after_s: float | None) -> None:
        super().__init__(f"the worker answered {status}")
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt as the transport needs it.

    `max_completion` is per choice; `ticket` and `stub` are None for an upstream.
    """

    job_id: uuid.UUID
    body: bytes
    stream: bool
    show_usage: bool
    asks_maximum: bool
    max_completion: int
    ticket: str | None
    stub: str | None
    salt: str | None
    traceparent: str | None


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
    """Opens answers; owns the connection pools."""

    def __init__(self, clock: Clock, *, allow_private: bool) -> None:
        self._clock = clock
        self._allow_private = allow_private
        self._pools: dict[tuple[str, int, bytes | None], deque[Connection]] = {}
        self._pins: dict[bytes, bytes] = {}
        self._pinned = _pinned_context()
        self._public = ssl.create_default_context()

    async def open(self, target: Target, job: Job) -> Answer:
        """Send the job; the answer is open once the worker has accepted it.

        Raises:
            RefusedError: the worker answered with an error.
            TransportError: it cannot be reached, or its identity is wrong.
            HopError: the connection broke.
        """
        match target:
            case Worker():
                return await self._open_worker(target, job)
            case Upstream():
                return await self._open_upstream(target, job)

    def close(self) -> None:
        """Close idle connections."""
        for pool in self._pools.values():
            for connection in pool:
                connection.abort()
        self._pools.clear()

    async def _open_worker(self, worker: Worker, job: Job) -> Answer:
        headers = [
            (b"host", worker.host.encode()),
            (b"content-type", b"application/json"),
            (hop.TICKET_HEADER.encode(), (job.ticket or "").encode()),
            (hop.STUB_HEADER.encode(), (job.stub or "").encode()),
        ]
        if job.salt:
            headers.append((hop.SALT_HEADER.encode(), job.salt.encode()))
        if job.traceparent:
            headers.append((b"traceparent", job.traceparent.encode()))
        request = request_bytes(b"POST", hop.JOB_PATH.encode(), headers, job.body)
        key = (worker.host, worker.port, worker.tls_spki_sha256)
        connection, head = await self._exchange(key, self._pinned, request)
        await self._require_ok(key, connection, head)
        if head.headers.get(b"content-type") != hop.CONTENT_TYPE.encode():
            connection.abort()
            raise TransportError("the worker's answer is not framed")
        salt = head.headers.get(hop.SALT_HEADER.encode())
        return _FramedAnswer(self, key, connection, salt.decode("latin-1") if salt else None)

    async def _open_upstream(self, upstream: Upstream, job: Job) -> Answer:
        headers = [(b"host", upstream.host.encode()), (b"content-type", b"application/json")]
        if upstream.api_key:
            headers.append((b"authorization", b"Bearer " + upstream.api_key.encode()))
        if job.traceparent:
            headers.append((b"traceparent", job.traceparent.encode()))
        request = request_bytes(
            b"POST", (upstream.path + "/chat/completions").encode(), headers, upstream_body(upstream, job)
        )
        key = (upstream.host, upstream.port, None)
        connection, head = await self._exchange(key, self._public if upstream.tls else None, request)
        await self._require_ok(key, connection, head)
        if job.stream:
            return _EventAnswer(self, key, connection, show_usage=job.show_usage)
        return _UnaryAnswer(self, key, connection)

    async def _exchange(
        self, key: tuple[str, int, bytes | None], context: ssl.SSLContext | None, request: bytes
    ) -> tuple[Connection, Head]:
        """Send on a kept connection, or on a fresh one when the kept one turns out to be closed already."""
        pool = self._pools.get(key)
        while pool:
            connection = pool.pop()
            if connection.reusable and self._clock.monotonic() - connection.idle_since < IDLE_S_MAX:
                try:
                    connection.send(request)
                    return connection, await connection.head()
                except HopClosedError:
                    # The other side closed it while it was idle: nothing was answered. Any other failure counts.
                    if connection.bytes_received:
                        raise
                except asyncio.CancelledError:
                    connection.abort()
                    raise
            else:
                connection.abort()
        connection = await self._connect(key, context)
        try:
            connection.send(request)
            return connection, await connection.head()
        except BaseException:
            connection.abort()
            raise

    async def _connect(self, key: tuple[str, int, bytes | None], context: ssl.SSLContext | None) -> Connection:
        host, port, pin = key
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, host, port, ssl=context, server_hostname=host if context is not None else None
                )
        except (OSError, ssl.SSLError, TimeoutError) as error:
            raise TransportError("the worker cannot be reached") from error
        if pin is not None:
            self._check_peer(connection, pin)
        return connection

    def _check_peer(self, connection: Connection, pin: bytes) -> None:
        """A worker's address came from outside: what it resolved to, and who answers there, must be what we expect."""
        peer: str = connection.transport.get_extra_info("peername")[0]
        if not is_permitted_peer(peer, allow_private=self._allow_private):
            connection.abort()
            raise TransportError("the worker's name resolves to an address that is not permitted")
        if self._peer_pin(connection) != pin:
            connection.abort()
            raise IdentityError

    def _peer_pin(self, connection: Connection) -> bytes:
        tls = connection.transport.get_extra_info("ssl_object")
        certificate: bytes = tls.getpeercert(binary_form=True) or b""
        digest = hashlib.sha256(certificate).digest()
        if digest not in self._pins:
            if len(self._pins) >= PINS_MAX:
                self._pins.clear()
            self._pins[digest] = spki_sha256(certificate)
        return self._pins[digest]

    def _release(self, key: tuple[str, int, bytes | None], connection: Connection) -> None:
        pool = self._pools.setdefault(key, deque())
        if len(pool) >= IDLE_CONNECTIONS_MAX:
            connection.abort()
            return
        connection.idle_since = self._clock.monotonic()
        pool.append(connection)

    async def _require_ok(self, key: tuple[str, int, bytes | None], connection: Connection, head: Head) -> None:
        if head.status == 200:  # noqa: PLR2004  HTTP's own name
            return
        try:
            body = await connection.read_all(REFUSAL_BYTES_MAX)
        except HopError:
            body = b""
        finally:
            self.finish(key, connection)
        raise RefusedError(head.status, body, _retry_after(head.headers.get(b"retry-after")))

    def finish(self, key: tuple[str, int, bytes | None], connection: Connection) -> None:
        """Keep the connection when its answer is complete, else abort it."""
        if connection.reusable:
            self._release(key, connection)
        else:
            connection.abort()


class _PooledAnswer:
    """What every answer shares: its connection, given back once."""

    def __init__(self, transport: Transport, key: tuple[str, int, bytes | None], connection: Connection) -> None:
        self.salt: str | None = None
        self._transport = transport
        self._key = key
        self._connection = connection
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._transport.finish(self._key, self._connection)


class _FramedAnswer(_PooledAnswer):
    """An agent's answer."""

    def __init__(
        self, transport: Transport, key: tuple[str, int, bytes | None], connection: Connection, salt: str | None
    ) -> None:
        super().__init__(transport, key, connection)
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
        if self._frames.pending or await self._connection.read():
            raise MalformedError("bytes after the trailer")
        end = End(
            usage=trailer.usage,
            finish_reason=trailer.finish_reason,
            receipt_head=trailer.receipt_head,
            receipt_signature=trailer.receipt_signature,
            failure=trailer.failure,
        )
        return Batch(data, trailer.usage, end)


class _UnaryAnswer(_PooledAnswer):
    """A plain upstream's unary answer, in one batch."""

    async def next(self) -> Batch:
        body = await self._connection.read_all(ANSWER_BYTES_MAX)
        answer = openai.decode_chunk(body)
        usage = token_usage(answer.usage) or TokenUsage()
        reason = next((c.finish_reason for c in answer.choices if c.finish_reason), "stop")
        failure = "upstream_error" if answer.error is not None else None
        return Batch(body, usage, End(usage=usage, finish_reason=reason, failure=failure))


class _EventAnswer(_PooledAnswer):
    """A plain upstream's stream: events pass as they are, but for a usage chunk that the client did not ask for."""

    def __init__(
        self, transport: Transport, key: tuple[str, int, bytes | None], connection: Connection, *, show_usage: bool
    ) -> None:
        super().__init__(transport, key, connection)
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
                if await self._connection.read():
                    raise MalformedError("bytes after [DONE]")
                return Batch(b"".join(shown), usage, End(usage=usage, finish_reason=self._finish_reason or "stop"))
            if shown or self._counted != counted:
                return Batch(b"".join(shown), usage, None)

    def _take(self, event: bytes, shown: list[bytes]) -> bool:
        """Append the event if it is the client's to see; True at [DONE]."""
        payload = sse.data_of(event)
        if payload == b"[DONE]":
            shown.append(sse.DONE_EVENT)
            return True
        if payload is None:
            # A comment: harmless, and it keeps the client's connection alive as it kept ours.
            shown.append(event)
            return False
        self._counted += 1
        if _NOTABLE.search(payload):
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


def upstream_body(upstream: Upstream, job: Job) -> bytes:
    """The client's bytes, changed only where a plain upstream needs it: model name, usage reporting, a maximum."""
    changes: dict[str, bytes | None] = {}
    request = openai.decode_chat(job.body)
    name = upstream.models[request.model]
    if name != request.model:
        changes["model"] = msgspec.json.encode(name)
    if request.streams and not request.wants_usage:
        changes["stream_options"] = _with_usage(job.body)
    if not job.asks_maximum:
        changes["max_tokens"] = str(job.max_completion).encode()
    return splice.with_members(job.body, changes) if changes else job.body


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


def spki_sha256(certificate: bytes) -> bytes:
    """SHA-256 of a DER certificate's SubjectPublicKeyInfo.

    Raises:
        IdentityError: not a certificate.
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except ValueError as error:
        raise IdentityError from error
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _retry_after(value: bytes | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None


def _with_usage(body: bytes) -> bytes:
    for member in reversed(splice.members(body)):
        if member.key == "stream_options" and body[member.value : member.value + 1] == b"{":
            return splice.with_members(body[member.value : member.end], {"include_usage": b"true"})
    return b'{"include_usage":true}'


def _pinned_context() -> ssl.SSLContext:
    """TLS 1.3 without a public PKI: the key is compared with the enrolled one instead."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
