import json

import pytest

from cocoon import splice, sse
from cocoon.errors import MalformedError
from cocoon.money import Price
from cocoon.usage import TokenUsage
from gateway import relay
from gateway.admission import Bounds

PRICE = Price(version=3, prompt=2_000_000, cached=1_000_000, completion=6_000_000)
BOUNDS = Bounds(prompt=100, completion=50, choices=1)
USAGE_CHUNK = b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}'


def test_a_unary_answer_gains_cost_first_in_usage_and_loses_nothing() -> None:
    body = b'{"id":"x", "usage" : {"prompt_tokens":10,"completion_tokens":5},"choices":[]}'
    priced = relay.priced_answer(body, PRICE, TokenUsage(prompt=10, completion=5))
    assert json.loads(priced)["usage"] == {
        "cost": "0.00000005", "cost_nano": 50, "prompt_tokens": 10, "completion_tokens": 5,
    }  # fmt: skip
    fragment = relay.cost_fragment(PRICE, TokenUsage(prompt=10, completion=5))
    assert splice.without_first(priced, "usage", fragment) == body


def test_an_answer_without_usage_passes_unchanged() -> None:
    assert relay.priced_answer(b'{"choices":[]}', PRICE, TokenUsage()) == b'{"choices":[]}'


def test_cost_nano_is_the_ceiling_of_the_exact_cost() -> None:
    fragment = relay.cost_fragment(Price(version=1, prompt=1, cached=0, completion=0), TokenUsage(prompt=1))
    assert fragment == b'"cost":"0.000000000000001","cost_nano":1,'


def test_only_the_usage_event_of_a_stream_is_touched() -> None:
    content = b'data: {"choices":[{"delta":{"content":"say \\"usage\\": {}"}}],"usage":null}\n\n'
    comment = b": hello\n\n"
    data = content + comment + sse.data_event(USAGE_CHUNK)
    priced = relay.priced_events(data, PRICE, BOUNDS)
    assert priced.startswith(content + comment)
    usage = json.loads(priced[len(content + comment) + 6 :])["usage"]
    assert usage["cost_nano"] == 50
    assert usage["total_tokens"] == 15


def test_the_shown_cost_never_exceeds_what_was_authorised() -> None:
    lying = USAGE_CHUNK.replace(b'"completion_tokens":5', b'"completion_tokens":5000')
    priced = relay.priced_events(sse.data_event(lying), PRICE, BOUNDS)
    assert json.loads(priced[6:])["usage"]["cost_nano"] == (10 * 2_000_000 + 50 * 6_000_000) // 10**6


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"data: {}\n\ndata: [DONE]\n\n", b"data: {}\n\n"),
        (b"data: {}\r\n\r\ndata:[DONE]\r\n\r\n", b"data: {}\r\n\r\n"),
        (b"data: [DONE]\n\ndata: {}\n\ndata: [DONE] \n\n", b"data: {}\n\n"),
        (b'data: {"content":"[DONE]"}\n\n', b'data: {"content":"[DONE]"}\n\n'),
        (b'data: {"content":"[DONE]"}\n\ndata: [DONE]\n\n', b'data: {"content":"[DONE]"}\n\n'),
        (b"data: {}\n\n", b"data: {}\n\n"),
        (b"data: {}\n\ndata: [DONE]\n\ndata: {", b"data: {}\n\ndata: {"),
        (b"", b""),
    ],
)
def test_the_end_mark_is_never_passed_on(data: bytes, kept: bytes) -> None:
    assert relay.without_done(data) == kept
    assert relay.shown(data, PRICE, BOUNDS, with_cost=True) == kept


def test_half_an_event_is_not_lost_beside_a_priced_one() -> None:
    priced = relay.priced_events(sse.data_event(USAGE_CHUNK) + b'data: {"ch', PRICE, BOUNDS)
    assert priced.endswith(b'}\n\ndata: {"ch')


def test_counts_that_cannot_be_are_no_answer() -> None:
    with pytest.raises(MalformedError):
        relay.priced_events(b'data: {"usage":{"prompt_tokens":-1}}\n\n', PRICE, BOUNDS)
