"""One job, from the engine's request to the signed trailer, however it ends.

Ends: complete (trailer), refused by the engine before it began (HTTP error), broken (trailer with `failure` and no
usage: nothing is charged), or abandoned by the gateway (the engine is stopped; a receipt for what was generated is
kept).
"""

import asyncio
import datetime as dt

import msgspec
import structlog

from cocoon import hop
from cocoon.clock import Clock, unix_ms
from cocoon.endpoints import COMPLETIONS, EMBEDDINGS, Endpoint
from cocoon.errors import CocoonError, MalformedError
from cocoon.openai import ModelRequest
from cocoon.receipt import SEAL_PLAIN, SEAL_SEALED, Commitment, ReceiptBody
from cocoon.sealed import CONTENT_TYPE as SEALED_TYPE
from cocoon.sealed import SECRET_BYTES, OpenedRequest, RandomBytes
from cocoon.sealed_trailer import AnswerTrailer, SealedReceipt
from cocoon.sse import EventSplitter, data_of
from cocoon.ticket import Ticket
from cocoon.tracing import Trace
from cocoon.usage import TokenUsage
from workers.agent import refusals
from workers.agent.asgi import Receive, Send, send_refusal, send_sealed_refusal
from workers.agent.assemble import ANSWER_BYTES_MAX, UnaryAssembler
from workers.agent.chunks import BrokenStreamError, Curtain, Meter, read_chunk, read_embeddings
from workers.agent.engines.ports import (
    Engine,
    EngineCall,
    EngineError,
    EngineRefusedError,
    EngineUnavailableError,
    Generation,
)
from workers.agent.keys import Identity
from workers.agent.receipt_store import KeptReceipt, ReceiptStore
from workers.agent.receipts import SignedReceipt
from workers.agent.refusals import Refusal
from workers.agent.sealing import SealedAnswer
from workers.agent.sinks import DocumentSink, Sink, StreamSink, UnarySink

_log: structlog.stdlib.BoundLogger = structlog.get_logger()

KEEP_S_MAX = 0.01
"""How long a trailer waits for its receipt to be committed; a slow disk must not hold up an answer."""
PROGRESS_EVERY_S = 0.1
"""Counts without data are sent at most this often."""
RECEIPT_VERSION = 1
ABANDONED = "abort"
DRAINED = "worker_draining"
TIMED_OUT = "job_timeout"
_DONE = b"[DONE]"
_INTERRUPTIONS = {DRAINED: refusals.DRAINING, TIMED_OUT: refusals.TIMED_OUT}


class Job(msgspec.Struct, frozen=True):
    """An admitted job. `salt` opens its commitments; `salt_is_ours` when the client brought none.

    `ticket_header` and `stub` are kept with the receipt, exactly as they came. `sealed` is what was opened, `body` its
    body, when the job is sealed; its salt is then RS_i.
    """

    ticket: Ticket
    ticket_bytes: bytes
    ticket_header: str
    stub: str
    identity: Identity
    body: bytes
    endpoint: Endpoint
    request: ModelRequest
    completion_max: int
    salt: bytes
    salt_header: str | None
    trace: Trace
    traceparent: str | None
    sealed: OpenedRequest | None = None
    cache_salt: str = ""

    @property
    def rid(self) -> str:
        """The job's name in the engine, and so in many engines the answer's id."""
        return f"{self.endpoint.rid}-{self.ticket.job_id.hex}-{self.ticket.attempt}"


class Ending(msgspec.Struct, frozen=True):
    """How a job ended, for logs and traces. `outcome` is `complete`, `refused`, `abandoned` or a failure's code."""

    outcome: str
    usage: TokenUsage
    finish_reason: str
    began: dt.datetime
    first_token: dt.datetime | None
    ended: dt.datetime


class OverPromptError(EngineError):
    """The engine counts more prompt tokens than the ticket pays for."""

    code = "over_prompt"
    transient = False


class _InterruptedError(Exception):
    """The job must stop now; `reason` is a failure's code or `ABANDONED`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Exchange:
    """Runs one job against one engine."""

    def __init__(
        self,
        job: Job,
        *,
        engine: Engine,
        clock: Clock,
        store: ReceiptStore,
        tee_type: str,
        seconds_max: float,
        random: RandomBytes,
    ) -> None:
        self._job = job
        self._engine = engine
        self._clock = clock
        self._store = store
        self._tee_type = tee_type
        self._seconds_max = seconds_max
        self._call = EngineCall(
            body=job.body,
            endpoint=job.endpoint,
            request=job.request,
            completion_max=job.completion_max,
            rid=job.rid,
            traceparent=job.traceparent,
            cache_salt=job.cache_salt,
        )
        self._commitment = Commitment(job.salt)
        self._commitment.request(job.body)
        self._meter = Meter(
            engine.dialect, prompt_max=job.ticket.max_prompt, completion_max=job.ticket.max_completion,
            copies=job.request.copies,
        )  # fmt: skip
        self._sink = _sink(self._call, engine, self._commitment)
        self._random = random
        self._sealed = self._new_seal()
        self._began = clock.now()
        self._first_token: dt.datetime | None = None
        self._told = TokenUsage()
        self._told_at = clock.monotonic()
        self._head_sent = False
        # What a job that does not complete is told, before its head and after.
        self._refusal: Refusal = refusals.ENGINE_FAILED
        self._failure: str = refusals.ENGINE_FAILED.code
        self._complete = False
        self._last_frames = b""
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """End the job as broken: the agent is shutting down."""
        self._stop.set()

    async def run(self, receive: Receive, send: Send) -> Ending:
        """The whole exchange; returns once the engine has been told to stop and the answer is sent."""
        reasons: set[str] = set()
        try:
            async with asyncio.TaskGroup() as group:
                watchers = [group.create_task(_until_gone(receive)), group.create_task(self._until_stopped())]
                await self._converse(send)
                for watcher in watchers:
                    watcher.cancel()
        except* _InterruptedError as interruption:
            reasons = {error.reason for error in interruption.exceptions if isinstance(error, _InterruptedError)}
        # An interruption in the very moment of completion finds the receipt already signed.
        if self._complete:
            await self._send_last(send)
            return self._ending("complete")
        if ABANDONED in reasons:
            return self._abandoned()
        if reasons:
            self._failure, self._refusal = min(reasons), _INTERRUPTIONS[min(reasons)]
        await self._close_broken(send)
        return self._ending(self._failure if self._head_sent else "refused")

    async def _converse(self, send: Send) -> None:
        try:
            generation = await self._engine.generate(self._call)
        except EngineError as error:
            self._break(error)
            return
        try:
            if self._job.endpoint is EMBEDDINGS:
                await self._collect(generation, send)
            else:
                await self._relay(generation, send)
        except (EngineError, MalformedError) as error:
            self._break(error)
        finally:
            await generation.abort()

    def _break(self, error: CocoonError) -> None:
        """Before the head the engine's failure can still become an HTTP error."""
        _log.warning("engine_broke_job", job_id=str(self._job.ticket.job_id), reason=_loggable(error))
        if isinstance(error, EngineRefusedError):
            prompt = self._job.endpoint.prompt
            self._refusal = refusals.engine_refusal(error.status, error.body, error.retry_after, prompt)
        elif isinstance(error, OverPromptError):
            self._refusal = refusals.over_prompt(self._job.endpoint.prompt)
        elif isinstance(error, EngineUnavailableError):
            self._refusal = refusals.ENGINE_UNAVAILABLE

    async def _collect(self, generation: Generation, send: Send) -> None:
        """An answer that comes whole."""
        parts: list[bytes] = []
        size = 0
        while received := await generation.read():
            parts.append(received)
            size += len(received)
            if size > ANSWER_BYTES_MAX:
                raise BrokenStreamError("the answer is too large to assemble")
        document = read_embeddings(b"".join(parts), self._job.request.prompts)
        self._meter.add_document(document.usage)
        self._sink = DocumentSink(document.payload, self._commitment)
        await self._finish(send)

    async def _relay(self, generation: Generation, send: Send) -> None:
        splitter = EventSplitter()
        done = False
        while not done:
            received = await self._received(generation, send)
            if not received:
                raise BrokenStreamError("the engine ended its stream without its end mark")
            for event in splitter.feed(received):
                payload = data_of(event)
                if payload is None:
                    continue
                if payload.strip() == _DONE:
                    done = True
                    break
                chunk = read_chunk(payload)
                self._meter.add(chunk)
                self._sink.add(chunk, payload, event)
            # With llama.cpp this is after the first slice of the prefill. An engine that counts only with its tokens
            # has done the work already: it is paid for what the ticket allows.
            if self._meter.over_prompt and not self._meter.usage.completion and not self._head_sent:
                raise OverPromptError
            if done:
                await self._finish(send)
            else:
                await self._flush(send)

    async def _received(self, generation: Generation, send: Send) -> bytes:
        """What the engine sends next; meanwhile, sealed data that waits for its time is sent when it has come."""
        sealed = self._sealed
        while sealed is not None and sealed.waits:
            try:
                async with asyncio.timeout(sealed.wait_s):
                    return await generation.read()
            except TimeoutError:
                await self._flush(send)
        return await generation.read()

    async def _flush(self, send: Send) -> None:
        """What is ready, whole events and the counts in one write."""
        data = self._sink.take()
        usage = self._meter.usage
        told_with_data = bool(data)
        if self._sealed is not None:
            # Counts for every frame, beside its length, would tell something of what is in it.
            data, told_with_data = self._sealed.add(data), False
        frames = hop.data_frame(data) if data else b""
        now = self._clock.monotonic()
        if usage != self._told and (told_with_data or now - self._told_at >= PROGRESS_EVERY_S or not usage.completion):
            frames += hop.progress_frame(usage)
            self._told, self._told_at = usage, now
        if self._first_token is None and usage.completion > 0:
            self._first_token = self._clock.now()
        await self._open(send)
        if frames:
            await send({"type": "http.response.body", "body": frames, "more_body": True})

    async def _finish(self, send: Send) -> None:
        usage = self._meter.usage
        last = self._sink.finish(usage)
        if self._sealed is not None:
            last = self._sealed.rest(last)
        await self._open(send)
        # From here on the answer counts as given: its receipt is signed, once, and its last bytes are on their way.
        self._complete = True
        signed, committed = self._sign(usage, self._meter.finish_reason)
        trailer = _trailer(signed, usage, self._meter.finish_reason)
        counts = hop.progress_frame(usage) if usage != self._told else b""
        if self._sealed is not None:
            last += self._sealed.end(_sealed_trailer(signed, usage, self._meter.finish_reason))
        self._last_frames = hop.data_frame(last) + counts + hop.trailer_frame(trailer)
        # First the worker's copy, then the gateway's: whatever dies in between, one of the two knows.
        await asyncio.wait([committed], timeout=KEEP_S_MAX)
        await self._send_last(send)

    async def _send_last(self, send: Send) -> None:
        frames, self._last_frames = self._last_frames, b""
        if frames:
            await send({"type": "http.response.body", "body": frames, "more_body": False})

    async def _open(self, send: Send) -> None:
        if self._head_sent:
            return
        headers = [
            (b"content-type", hop.CONTENT_TYPE.encode()),
            (
                hop.ANSWER_TYPE_HEADER.encode(),
                (self._sink.content_type if self._sealed is None else SEALED_TYPE).encode(),
            ),
        ]
        if self._job.salt_header is not None:
            headers.append((hop.SALT_HEADER.encode(), self._job.salt_header.encode()))
        self._head_sent = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _close_broken(self, send: Send) -> None:
        """Tell the gateway that nothing more comes and that nothing is charged."""
        if not self._head_sent:
            seal = self._new_seal()
            if seal is not None and self._refusal.quotes:
                await send_sealed_refusal(send, self._refusal, seal.refusal(self._refusal))
            else:
                await send_refusal(send, self._refusal, body_read=True)
            return
        nothing = TokenUsage()
        signed, _ = self._sign(nothing, self._failure)
        trailer = _trailer(signed, nothing, self._failure, failure=self._failure)
        await send({"type": "http.response.body", "body": hop.trailer_frame(trailer), "more_body": False})

    def _abandoned(self) -> Ending:
        """Nobody listens; what was generated is still owed, and the receipt proves how much it was."""
        usage = self._meter.usage
        if usage.total:
            self._sign(usage, ABANDONED)
        return self._ending("abandoned", finish_reason=ABANDONED)

    def _sign(self, usage: TokenUsage, finish_reason: str) -> "tuple[SignedReceipt, asyncio.Future[None]]":
        """The receipt, and when it is committed."""
        job = self._job
        body = ReceiptBody(
            v=RECEIPT_VERSION,
            receipt_id=str(job.ticket.job_id),
            attempt=job.ticket.attempt,
            keyset_digest=job.identity.digest,
            model_manifest_sha256=job.identity.keyset.model_manifest_sha256,
            tee_type=self._tee_type,
            seal=SEAL_PLAIN if job.sealed is None else SEAL_SEALED,
            c_req=self._commitment.c_req,
            c_resp=self._commitment.c_resp,
            finish_reason=finish_reason,
            started_ms=unix_ms(self._began),
            ended_ms=unix_ms(self._clock.now()),
            sealed_digest=None if job.sealed is None else job.sealed.digest,
            rolling=None if self._sealed is None else self._sealed.rolling,
        )
        signed = job.identity.signer.sign(job.ticket, job.ticket_bytes, body, usage)
        kept = KeptReceipt(
            signed=signed,
            ticket=job.ticket_header,
            stub=job.stub,
            keyset=job.identity.raw,
            keyset_digest=job.identity.digest,
        )
        return signed, self._store.keep(kept)

    def _ending(self, outcome: str, *, finish_reason: str | None = None) -> Ending:
        return Ending(
            outcome=outcome,
            usage=self._meter.usage,
            finish_reason=finish_reason or self._meter.finish_reason,
            began=self._began,
            first_token=self._first_token,
            ended=self._clock.now(),
        )

    def _new_seal(self) -> SealedAnswer | None:
        opened = self._job.sealed
        if opened is None:
            return None
        return SealedAnswer(opened, self._job.identity, self._random(SECRET_BYTES), self._clock)

    async def _until_stopped(self) -> None:
        try:
            async with asyncio.timeout(self._seconds_max):
                await self._stop.wait()
        except TimeoutError as error:
            raise _InterruptedError(TIMED_OUT) from error
        raise _InterruptedError(DRAINED)


async def _until_gone(receive: Receive) -> None:
    # Sends to a closed connection succeed silently: this is the only sign that the gateway has left.
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _InterruptedError(ABANDONED)


def _sink(call: EngineCall, engine: Engine, commitment: Commitment) -> Sink:
    curtain = Curtain(call, engine.dialect)
    if call.request.streams:
        return StreamSink(curtain, commitment, wants_usage=call.request.wants_usage)
    return UnarySink(curtain, commitment, UnaryAssembler(curtain.hidden, texts=call.endpoint is COMPLETIONS))


def _trailer(signed: SignedReceipt, usage: TokenUsage, finish_reason: str, failure: str | None = None) -> hop.Trailer:
    return hop.Trailer(
        usage=usage,
        finish_reason=finish_reason,
        receipt_head=signed.head,
        receipt_signature=signed.signature,
        receipt_body=signed.body,
        failure=failure,
    )


def _sealed_trailer(signed: SignedReceipt, usage: TokenUsage, finish_reason: str) -> AnswerTrailer:
    return AnswerTrailer(
        v=1,
        usage=usage,
        finish_reason=finish_reason,
        receipt=SealedReceipt(ticket=signed.ticket, head=signed.head, signature=signed.signature, body=signed.body),
    )


def _loggable(error: CocoonError) -> str:
    """Our own words about a broken stream; of anything else the kind only, since it could quote the answer."""
    return str(error) if isinstance(error, BrokenStreamError) else type(error).__name__
