"""The gateway-agent hop: frames and headers (PROTOCOL §2a).

An answer that the agent accepts is a stream of frames `u8 kind ‖ u32 length ‖ payload`:

* `DATA` carries bytes for the client exactly as it asked for them: whole SSE events of a stream, or the JSON of a
  unary answer in one frame;
* `PROGRESS` carries the token counts so far (`u32 prompt ‖ u32 cached ‖ u32 completion`), so that an abandoned
  answer can be metered;
* `TRAILER` ends a complete answer; a stream without one was broken.

Answers that the agent refuses are ordinary HTTP errors with an OpenAI error body.
"""

import enum
import struct

import msgspec

from cocoon.errors import MalformedError
from cocoon.usage import TokenUsage

CONTENT_TYPE = "application/vnd.cocoon.frames"
TICKET_HEADER = "x-cocoon-ticket"
STUB_HEADER = "x-cocoon-ticket-stub"
"""The gateway's own sealed note of the attempt; opaque to the agent, which returns it with the receipt."""
SALT_HEADER = "x-cocoon-salt"
TENANT_HEADER = "x-cocoon-tenant"
"""The gateway's own name for the customer of a plain request: whose prompts may share the engine's cache."""
ANSWER_TYPE_HEADER = "x-cocoon-answer-type"
"""Content type of the data inside the frames."""
FRAME_BYTES_MAX = 64 * 1024 * 1024
TRAILER_BYTES_MAX = 64 * 1024

_HEADER = struct.Struct(">BI")
_PROGRESS = struct.Struct(">III")


class FrameKind(enum.IntEnum):
    """The first byte of a frame."""

    DATA = 1
    PROGRESS = 2
    TRAILER = 3


_KINDS = {int(kind): kind for kind in FrameKind}
_BYTES_MAX = {
    FrameKind.DATA: FRAME_BYTES_MAX,
    FrameKind.PROGRESS: _PROGRESS.size,
    FrameKind.TRAILER: TRAILER_BYTES_MAX,
}


class Trailer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a complete answer.

    `receipt_head` and `receipt_body` are the exact bytes that were signed or hashed. `failure` is None for an
    answer that reached its end, else a stable code of why the worker broke it (nothing is then charged).
    """

    usage: TokenUsage
    finish_reason: str
    receipt_head: bytes
    receipt_signature: bytes
    receipt_body: bytes
    failure: str | None = None


_trailer_decoder = msgspec.json.Decoder(Trailer)


def data_frame(payload: bytes) -> bytes:
    """Bytes for the client."""
    return _HEADER.pack(FrameKind.DATA, len(payload)) + payload


def progress_frame(usage: TokenUsage) -> bytes:
    """Counts so far."""
    return _HEADER.pack(FrameKind.PROGRESS, _PROGRESS.size) + _PROGRESS.pack(
        usage.prompt, usage.cached, usage.completion
    )


def trailer_frame(trailer: Trailer) -> bytes:
    """The final frame."""
    payload = msgspec.json.encode(trailer)
    return _HEADER.pack(FrameKind.TRAILER, len(payload)) + payload


def decode_progress(payload: bytes) -> TokenUsage:
    """Counts of a progress frame.

    Raises:
        MalformedError: wrong length or impossible counts.
    """
    try:
        prompt, cached, completion = _PROGRESS.unpack(payload)
        return TokenUsage(prompt=prompt, cached=cached, completion=completion)
    except (struct.error, ValueError) as error:
        raise MalformedError("bad progress frame") from error


def decode_trailer(payload: bytes) -> Trailer:
    """The trailer.

    Raises:
        MalformedError: not a trailer.
    """
    try:
        return _trailer_decoder.decode(payload)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        raise MalformedError("bad trailer frame") from error


class FrameReader:
    """Cuts a byte stream into frames; keeps what is incomplete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, chunk: bytes) -> list[tuple[FrameKind, bytes]]:
        """The frames completed by `chunk`.

        Raises:
            MalformedError: unknown kind, or longer than its kind may be. The stream is of no further use.
        """
        buffer = self._buffer
        buffer += chunk
        frames: list[tuple[FrameKind, bytes]] = []
        at = 0
        while len(buffer) - at >= _HEADER.size:
            number, length = _HEADER.unpack_from(buffer, at)
            # Judged by its header alone: garbage must not make the reader wait for gigabytes.
            kind = _KINDS.get(number)
            if kind is None:
                raise MalformedError("unknown frame kind")
            if length > _BYTES_MAX[kind]:
                raise MalformedError("frame too long")
            end = at + _HEADER.size + length
            if len(buffer) < end:
                break
            frames.append((kind, bytes(buffer[at + _HEADER.size : end])))
            at = end
        if at:
            del buffer[:at]
        return frames
