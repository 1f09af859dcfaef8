"""Spans built after the fact.

A process on the hot path notes times while it works and describes its spans once the answer is out, so that a
request pays for tracing only when it is sampled, and nothing at all when no exporter is set. The ids of spans that
a downstream hop must name as parent are drawn beforehand (`Trace.child_header`).

The OpenTelemetry SDK has no public way to hand over a finished span with ids of our choice; `ReadableSpan` plus a
span processor's `on_end` is what its own tracer uses, and is confined to this module.
"""

import random
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1
_ID_BITS_TRACE: Final = 128
_ID_BITS_SPAN: Final = 64
FLUSH_S_MAX: Final = 2.0
"""How long the end of a process waits for its collector."""

Attribute = str | int | float | bool | tuple[str, ...]


class SpanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished span; times are Unix nanoseconds. `error` is a stable code, None when all went well."""

    name: str
    span_id: int
    parent_id: int | None
    start_ns: int
    end_ns: int
    kind: str = "internal"
    attributes: Mapping[str, Attribute] = {}
    error: str | None = None


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Where one exchange stands in a W3C trace."""

    trace_id: int
    parent_id: int | None
    root_id: int
    hop_id: int
    sampled: bool

    @property
    def child_header(self) -> str:
        """`traceparent` for the next hop: its parent is our hop span."""
        return f"00-{self.trace_id:032x}-{self.hop_id:016x}-{int(self.sampled):02x}"


UNTRACED: Final = Trace(trace_id=0, parent_id=None, root_id=0, hop_id=0, sampled=False)
"""What every exchange has while nothing is exported: no ids are drawn for it, and the caller's header passes on."""


class Tracer:
    """Hands finished spans to an OTLP exporter; disabled, it does nothing."""

    def __init__(self, processor: "SpanProcessor | None", resource: "Resource | None", rng: random.Random) -> None:
        self._processor = processor
        self._resource = resource
        self._rng = rng

    @property
    def enabled(self) -> bool:
        """Whether anything is exported."""
        return self._processor is not None

    def begin(self, traceparent: str | None) -> Trace:
        """Continue the caller's trace, or begin one. A malformed header begins a new trace (W3C Trace Context §3.2)."""
        if self._processor is None:
            return UNTRACED
        match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
        parent = int(match[2], 16) if match else 0
        trace_id = int(match[1], 16) if match else 0
        sampled = True
        if match and parent and trace_id:
            sampled = bool(int(match[3], 16) & _SAMPLED)
        else:
            parent, trace_id = 0, self._new_id(_ID_BITS_TRACE)
        return Trace(
            trace_id=trace_id,
            parent_id=parent or None,
            root_id=self.new_span_id(),
            hop_id=self.new_span_id(),
            sampled=sampled,
        )

    def new_span_id(self) -> int:
        """A fresh span id, never zero."""
        return self._new_id(_ID_BITS_SPAN)

    def export(self, trace: Trace, spans: list[SpanRecord]) -> None:
        """Queue finished spans for export; never blocks, drops when the exporter's queue is full."""
        if self._processor is None or not trace.sampled:
            return
        from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415  the SDK loads only when tracing is on
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags  # noqa: PLC0415

        flags = TraceFlags(TraceFlags.SAMPLED)
        for span in spans:
            parent = None
            if span.parent_id is not None:
                parent = SpanContext(trace.trace_id, span.parent_id, span.parent_id == trace.parent_id, flags)
            self._processor.on_end(
                ReadableSpan(
                    name=span.name,
                    context=SpanContext(trace.trace_id, span.span_id, is_remote=False, trace_flags=flags),
                    parent=parent,
                    resource=self._resource,
                    attributes=dict(span.attributes),
                    kind=SpanKind[span.kind.upper()],
                    status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
                    start_time=span.start_ns,
                    end_time=span.end_ns,
                )
            )

    def close(self) -> None:
        """Flush what is queued. What takes longer than `FLUSH_S_MAX` is lost.

        The SDK would wait for half a minute: a collector that is away must not get a process killed in its shutdown.
        """
        if self._processor is not None:
            flush = threading.Thread(target=self._processor.shutdown, name="trace-flush", daemon=True)
            flush.start()
            flush.join(FLUSH_S_MAX)

    def _new_id(self, bits: int) -> int:
        while not (value := self._rng.getrandbits(bits)):
            continue
        return value


def start_tracer(service: str, endpoint: str | None, rng: random.Random) -> Tracer:
    """A tracer exporting over OTLP/HTTP to `endpoint` (its base URL), or a disabled one when None."""
    if endpoint is None:
        return Tracer(None, None, rng)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  as above
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    resource = Resource.create({"service.name": service})
    return Tracer(BatchSpanProcessor(exporter, schedule_delay_millis=1000), resource, rng)
