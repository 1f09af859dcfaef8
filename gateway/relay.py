"""Small decisions about bytes on their way to the client: cost in `usage`, and `[DONE]`, which is ours to say."""

from cocoon import openai, splice, sse
from cocoon.errors import MalformedError
from cocoon.money import Price, ceiling, decimal_units
from cocoon.usage import TokenUsage
from gateway.admission import Bounds
from workers.transport import token_usage


def cost_fragment(price: Price, usage: TokenUsage) -> bytes:
    """The members that the gateway inserts first into `usage` (PROTOCOL §2a)."""
    numerator = price.numerator(usage)
    return b'"cost":"%s","cost_nano":%d,' % (decimal_units(numerator).encode(), ceiling(numerator).nano)


def priced_answer(body: bytes, price: Price, usage: TokenUsage) -> bytes:
    """A unary answer with the cost in its `usage`; unchanged when it has none."""
    try:
        return splice.insert_first(body, "usage", cost_fragment(price, usage))
    except MalformedError:
        return body


def shown(data: bytes, price: Price, bounds: Bounds, *, with_cost: bool) -> bytes:
    """Whole SSE events as the client gets them: with the cost where counts are shown, and never with `[DONE]`.

    That mark says that the answer is whole, which only the pipeline knows; it says so itself, once.

    Raises:
        MalformedError: an event that holds counts cannot be read.
    """
    data = without_done(data)
    return priced_events(data, price, bounds) if with_cost else data


def priced_events(data: bytes, price: Price, bounds: Bounds) -> bytes:
    """Whole SSE events with the cost in every `usage` object among them.

    Raises:
        MalformedError: an event that holds counts cannot be read.
    """
    if b'"usage"' not in data:
        return data
    splitter = sse.EventSplitter()
    priced: list[bytes] = []
    for event in splitter.feed(data):
        payload = sse.data_of(event)
        if payload is None or b'"usage"' not in payload:
            priced.append(event)
            continue
        usage = token_usage(openai.decode_chunk(payload).usage)
        if usage is None:
            priced.append(event)
            continue
        usage = usage.capped(prompt_max=bounds.prompt, completion_max=bounds.completion)
        priced.append(sse.data_event(splice.insert_first(payload, "usage", cost_fragment(price, usage))))
    return b"".join((*priced, splitter.pending))


def without_done(data: bytes) -> bytes:
    """The events but for `[DONE]`, wherever and however it is written."""
    if b"[DONE]" not in data:
        return data
    if data.endswith(sse.DONE_EVENT) and data.count(b"[DONE]") == 1:
        return data[: -len(sse.DONE_EVENT)]
    splitter = sse.EventSplitter()
    kept = [event for event in splitter.feed(data) if (sse.data_of(event) or b"").strip() != b"[DONE]"]
    return b"".join((*kept, splitter.pending))
