"""Server-sent events (WHATWG HTML §9.2) as the OpenAI API uses them: cut, read, write.

Events are relayed as the bytes they came in; only the cutting and the `data:` payload are understood here.
"""

import re

from cocoon.errors import MalformedError

DONE_EVENT = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
EVENT_BYTES_MAX = 4 * 1024 * 1024
# Two line ends in a row, each of LF, CRLF or CR. A CR after LF waits for the next byte: it may be half of a CRLF.
_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r|\n\r(?=[^\n])")


class EventSplitter:
    """Cuts a byte stream into whole events, each with its terminating blank line."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> bytes:
        """What has begun and not ended."""
        return bytes(self._buffer)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events completed by `chunk`.

        Raises:
            MalformedError: an event is longer than `EVENT_BYTES_MAX`.
        """
        buffer = self._buffer
        size = len(chunk)
        if not buffer and 1 < size <= EVENT_BYTES_MAX and chunk.find(b"\n\n") == size - 2 and b"\r" not in chunk:
            return [chunk]  # one whole event, as servers mostly write them
        # A terminator can straddle two reads: look back three bytes, no further, so that the work stays linear.
        search_from = max(0, len(buffer) - 3)
        buffer += chunk
        events: list[bytes] = []
        start = 0
        while match := _BLANK_LINE.search(buffer, search_from):
            if match.end() - start > EVENT_BYTES_MAX:
                raise MalformedError("event too long")
            events.append(bytes(buffer[start : match.end()]))
            start = search_from = match.end()
        if start:
            del buffer[:start]
        if len(buffer) > EVENT_BYTES_MAX:
            raise MalformedError("event too long")
        return events


def data_of(event: bytes) -> bytes | None:
    """The `data:` payload of an event, lines joined by newline; None for comments and empty events."""
    if (
        event.startswith(b"data: ")
        and event.find(b"\n\n") == event.find(b"\n") == len(event) - 2
        and b"\r" not in event
    ):
        return event[6:-2]
    lines = [line for line in re.split(rb"\r\n|\n|\r", event) if line == b"data" or line.startswith(b"data:")]
    if not lines:
        return None
    return b"\n".join(line[6:] if line.startswith(b"data: ") else line[5:] for line in lines)


def data_event(payload: bytes) -> bytes:
    """One event around a payload; each of its lines gets a `data:` of its own, so that none can end the event."""
    if b"\n" in payload or b"\r" in payload:
        payload = b"\ndata: ".join(re.split(rb"\r\n|\n|\r", payload))
    return b"data: " + payload + b"\n\n"
