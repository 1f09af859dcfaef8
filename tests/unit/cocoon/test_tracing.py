import random
import threading

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode

from cocoon import tracing
from cocoon.tracing import SpanRecord, Trace, Tracer, start_tracer

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Kept(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.closed = False

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)

    def shutdown(self) -> None:
        self.closed = True


def tracer(kept: Kept) -> Tracer:
    return Tracer(kept, Resource({"service.name": "test"}), random.Random(5))


def record(trace: Trace, **changes: object) -> SpanRecord:
    fields: dict[str, object] = {
        "name": "relay",
        "span_id": trace.hop_id,
        "parent_id": trace.root_id,
        "start_ns": 10,
        "end_ns": 20,
        "kind": "client",
        "attributes": {"gen_ai.request.model": "m"},
    }
    return SpanRecord(**fields | changes)  # type: ignore[arg-type]


def test_the_callers_trace_goes_on_and_our_hop_is_the_next_ones_parent() -> None:
    trace = tracer(Kept()).begin(CALLER)

    assert f"{trace.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert trace.parent_id == 0xB7AD6B7169203331
    assert trace.sampled
    assert trace.child_header == f"00-0af7651916cd43dd8448eb211c80319c-{trace.hop_id:016x}-01"
    assert len({trace.parent_id, trace.root_id, trace.hop_id}) == 3


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        CALLER.upper(),
        CALLER + "\n",
        CALLER + "-00",
        CALLER.replace("b7ad6b7169203331", "0" * 16),
        CALLER.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        "ff" + CALLER[2:],
        "x" * 10_000,
    ],
)
def test_a_malformed_header_begins_a_new_trace(header: str | None) -> None:
    trace = tracer(Kept()).begin(header)

    assert trace.parent_id is None
    assert 0 < trace.trace_id < 2**128
    assert f"{trace.trace_id:032x}" not in CALLER
    assert len(trace.child_header) == 55


def test_what_the_caller_does_not_sample_is_not_exported() -> None:
    kept = Kept()
    ours = tracer(kept)
    trace = ours.begin(CALLER[:-2] + "00")
    ours.export(trace, [record(trace)])

    assert not trace.sampled
    assert trace.child_header.endswith("-00")
    assert kept.spans == []


def test_spans_are_exported_with_their_own_ids_and_times() -> None:
    kept = Kept()
    ours = tracer(kept)
    trace = ours.begin(CALLER)
    ours.export(
        trace,
        [
            record(trace),
            record(trace, span_id=trace.root_id, parent_id=trace.parent_id, kind="server", error="timeout"),
        ],
    )
    hop, root = kept.spans

    assert hop.context is not None
    assert (hop.context.trace_id, hop.context.span_id) == (trace.trace_id, trace.hop_id)
    assert hop.parent is not None
    assert (hop.parent.span_id, hop.parent.is_remote) == (trace.root_id, False)
    assert (hop.start_time, hop.end_time, hop.kind.name) == (10, 20, "CLIENT")
    assert dict(hop.attributes or {}) == {"gen_ai.request.model": "m"}
    assert hop.status.status_code is StatusCode.UNSET
    assert root.parent is not None
    assert (root.parent.span_id, root.parent.is_remote) == (0xB7AD6B7169203331, True)
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, "timeout")


def test_without_an_endpoint_nothing_is_exported() -> None:
    ours = start_tracer("test", None, random.Random(1))
    trace = ours.begin(CALLER)
    ours.export(trace, [record(trace)])
    ours.close()

    assert not ours.enabled
    assert not trace.sampled


def test_closing_closes_the_exporter() -> None:
    kept = Kept()
    tracer(kept).close()

    assert kept.closed


def test_closing_does_not_wait_for_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S_MAX", 0.05)
    answers = threading.Event()

    class Hanging(Kept):
        def shutdown(self) -> None:
            answers.wait(60)
            super().shutdown()

    kept = Hanging()
    try:
        tracer(kept).close()

        assert not kept.closed
    finally:
        answers.set()
