"""Small decisions about bytes on their way to the client: cost in `usage`, the held-back end, error events."""

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


def priced_events(data: bytes, price: Price, bounds: Bounds) -> bytes:
    """Whole SSE events with the cost in every `usage` object among them."""
    if b'"usage"' not in data:
        return data
    priced: list[bytes] = []
    for event in sse.EventSplitter().feed(data):
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
    return b"".join(priced)


def without_done(data: bytes) -> tuple[bytes, bytes]:
    """Split a trailing `[DONE]` off: it is sent only once the answer is known to be whole."""
    if data.endswith(sse.DONE_EVENT):
        return data[: -len(sse.DONE_EVENT)], sse.DONE_EVENT
    return data, b""
