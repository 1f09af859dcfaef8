"""What the client gets to see: the stream it asked for, or one JSON document put together from it."""

from typing import Protocol

import msgspec

from cocoon import sse
from cocoon.receipt import Commitment
from cocoon.splice import with_members
from cocoon.usage import TokenUsage
from workers.agent.assemble import UnaryAssembler, usage_members
from workers.agent.chunks import Curtain, EngineChunk, EngineUsage

EVENT_STREAM = "text/event-stream"
JSON = "application/json"
_DONE = b"[DONE]"


class Sink(Protocol):
    """Takes the engine's events, gives bytes for `DATA` frames. Commits to what it gives."""

    @property
    def content_type(self) -> str:
        """Of the bytes it gives."""
        ...

    def add(self, chunk: EngineChunk, payload: bytes, event: bytes) -> None:
        """One event of the engine: decoded, its `data:` payload, its exact bytes."""
        ...

    def take(self) -> bytes:
        """What may be sent now; often b""."""
        ...

    def finish(self, usage: TokenUsage) -> bytes:
        """The end of a complete answer."""
        ...


class StreamSink:
    """Relays events as the bytes they came in, without what the client did not ask for."""

    content_type = EVENT_STREAM

    def __init__(self, curtain: Curtain, commitment: Commitment, *, wants_usage: bool) -> None:
        self._curtain = curtain
        self._commitment = commitment
        self._wants_usage = wants_usage
        self._out: list[bytes] = []
        self._usage_chunk: tuple[bytes, EngineUsage] | None = None
        self._last = b"{}"
        # Hidden chunks that name a choice's role, until the choice is first shown.
        self._openings: dict[int, bytes] = {}

    def add(self, chunk: EngineChunk, payload: bytes, event: bytes) -> None:
        """Show the event, or part of it; the usage chunk waits for the end."""
        if chunk.usage is not None and not chunk.choices:
            self._usage_chunk = (payload, chunk.usage)
            return
        if not self._curtain.shows(chunk):
            if len(chunk.choices) == 1:
                self._openings.update(dict.fromkeys(chunk.roles, payload))
            return
        self._open(chunk)
        self._show(payload, event)

    def _open(self, chunk: EngineChunk) -> None:
        """Name the role of a choice whose text is about to begin without one.

        llama.cpp forgets it where an answer's first token ends within a character (its progress names it always), and
        clients take an answer without a role for a broken one.
        """
        for choice in chunk.choices:
            opening = self._openings.pop(choice.index, None)
            if opening is not None and choice.index not in chunk.roles:
                self._show(opening, None)

    def _show(self, payload: bytes, event: bytes | None) -> None:
        shown = self._curtain.drawn(payload)
        self._commitment.response(shown)
        self._out.append(event if event is not None and shown is payload else sse.data_event(shown))
        self._last = payload

    def take(self) -> bytes:
        """Whole events."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def finish(self, usage: TokenUsage) -> bytes:
        """The usage chunk if it was asked for, which no commitment covers, and `[DONE]`."""
        if self._wants_usage:
            self._out.append(sse.data_event(self._usage_payload(usage)))
        self._commitment.response(_DONE)
        self._out.append(sse.DONE_EVENT)
        return self.take()

    def _usage_payload(self, usage: TokenUsage) -> bytes:
        """The engine's own usage chunk where it says what the receipt says, else one that does."""
        members = msgspec.json.encode(usage_members(usage))
        if self._usage_chunk is None:
            return with_members(_head_of(self._last), {"choices": b"[]", "usage": members})
        payload, reported = self._usage_chunk
        shown = self._curtain.drawn(payload, keep_usage=True)
        same = reported.prompt_tokens == usage.prompt and reported.completion_tokens == usage.completion
        if same and (reported.cached or 0) == usage.cached:
            return shown
        return with_members(shown, {"usage": members})


class UnarySink:
    """Collects the stream and gives one document at its end."""

    content_type = JSON

    def __init__(self, curtain: Curtain, commitment: Commitment, assembler: UnaryAssembler) -> None:
        self._curtain = curtain
        self._commitment = commitment
        self._assembler = assembler

    def add(self, chunk: EngineChunk, payload: bytes, event: bytes) -> None:
        """Merge the event."""
        del event
        if chunk.choices and self._curtain.shows(chunk):
            self._assembler.add(payload)

    def take(self) -> bytes:
        """Nothing before the end."""
        return b""

    def finish(self, usage: TokenUsage) -> bytes:
        """The document."""
        document = self._assembler.finish(usage)
        self._commitment.response(document)
        return document


class DocumentSink:
    """Gives a document that the engine made itself, with the counts that the receipt says."""

    content_type = JSON

    def __init__(self, document: bytes, commitment: Commitment) -> None:
        self._document = document
        self._commitment = commitment

    def add(self, chunk: EngineChunk, payload: bytes, event: bytes) -> None:
        """There are no events."""
        del chunk, payload, event
        raise AssertionError("a document has no events")

    def take(self) -> bytes:
        """Nothing before the end."""
        return b""

    def finish(self, usage: TokenUsage) -> bytes:
        """The document."""
        counts = {"prompt_tokens": usage.prompt, "total_tokens": usage.total}
        document = with_members(self._document, {"usage": msgspec.json.encode(counts)})
        self._commitment.response(document)
        return document


class _ChunkHead(msgspec.Struct, frozen=True):
    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""


def _head_of(payload: bytes) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(payload, type=_ChunkHead))
