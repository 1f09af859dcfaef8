"""One span per step of a finished request, from the exchange's own timestamps."""

from collections.abc import Callable

from billing.ports import Posted
from cocoon import telemetry as names
from cocoon.tracing import Attribute, SpanRecord
from cocoon.usage import TokenUsage
from gateway.exchange import State
from gateway.walk import Walk

_NS = 1_000_000_000


def spans_of(
    walk: Walk, usage: TokenUsage, posted: Posted | None, ended: float, settled: float, new_id: Callable[[], int]
) -> list[SpanRecord]:
    """The request's span and its steps'; `ended` and `settled` are monotonic seconds of the exchange's clock."""
    entered = walk.exchange.entered
    start = entered[State.RECEIVED]
    start_ns = int(walk.exchange.started_at.timestamp() * _NS)

    def at(moment: float) -> int:
        return start_ns + int((moment - start) * _NS)

    def step(name: str, begin: State, end: float, span_id: int | None = None, kind: str = "internal") -> SpanRecord:
        return SpanRecord(
            name=name, span_id=span_id or new_id(), parent_id=walk.trace.root_id,
            start_ns=at(entered[begin]), end_ns=at(max(end, entered[begin])), kind=kind,
        )  # fmt: skip

    error, operation = walk.error.code if walk.error is not None else None, walk.endpoint.operation
    spans = [
        SpanRecord(
            name=f"{operation} {walk.request.model[:128]}" if walk.request else operation,
            span_id=walk.trace.root_id,
            parent_id=walk.trace.parent_id,
            start_ns=start_ns,
            end_ns=at(ended),
            kind="server",
            attributes=_attributes(walk, usage, posted),
            error=error,
        ),
        step(names.SPAN_AUTHENTICATE, State.RECEIVED, entered.get(State.AUTHENTICATED, ended)),
    ]
    if State.AUTHENTICATED in entered:
        spans.append(step(names.SPAN_ADMIT, State.AUTHENTICATED, entered.get(State.ADMITTED, ended)))
    if State.ADMITTED in entered:
        spans.append(step(names.SPAN_ROUTE, State.ADMITTED, entered.get(State.DISPATCHED, ended)))
    if State.DISPATCHED in entered:
        spans.append(step(names.SPAN_RELAY, State.DISPATCHED, ended, walk.trace.hop_id, "client"))
    if posted is not None:
        spans.append(step(names.SPAN_SETTLE, walk.exchange.state, settled))
    return spans


def _attributes(walk: Walk, usage: TokenUsage, posted: Posted | None) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {
        names.OPERATION: walk.endpoint.operation,
        names.PROVIDER: "cocoon",
        names.JOB_ID: walk.name,
        names.OUTCOME: walk.exchange.state.value,
        names.USAGE_INPUT_TOKENS: usage.prompt,
        names.USAGE_OUTPUT_TOKENS: usage.completion,
        names.CACHED_TOKENS: usage.cached,
    }
    if walk.request is not None:
        attributes[names.REQUEST_MODEL] = walk.request.model[:128]
        attributes[names.STREAM] = walk.request.streams
        if walk.request.asked_completion:
            attributes[names.REQUEST_MAX_TOKENS] = walk.request.asked_completion
    if walk.error is not None:
        attributes[names.ERROR_TYPE] = walk.error.code
    attempt = walk.attempt
    if attempt is not None:
        attributes[names.ATTEMPT] = attempt.number
        attributes[names.WORKER_ID] = str(attempt.dispatch.target.target_id)
        if attempt.finish_reason:
            attributes[names.RESPONSE_FINISH_REASONS] = (attempt.finish_reason,)
        if attempt.first_token_s is not None:
            attributes[names.TIME_TO_FIRST_TOKEN_MS] = round(attempt.first_token_s * 1000, 3)
    if posted is not None:
        attributes[names.CHARGE_NANO] = posted.charge.nano
    return attributes
