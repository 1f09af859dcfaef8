import json
import random
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.memory import InMemoryLedger
from billing.ports import InsufficientCreditError, UnknownCustomerError
from billing.pricing import ModelOffer, PriceBook
from cocoon.clock import ManualClock
from cocoon.endpoints import CHAT
from cocoon.ids import new_job_id
from cocoon.money import Amount, Price
from cocoon.usage import TokenUsage
from gateway.admission import bound, choose_offer, hold_credit, parse_request
from gateway.auth import Principal
from gateway.errors import InvalidRequestError, ModelForbiddenError, ModelUnknownError

OFFER = ModelOffer(
    model="m", context_tokens=4096, default_max_completion=1024, template_tokens_per_message=16, base_tokens=64,
    price=Price(version=1, prompt=1_000_000, cached=500_000, completion=3_000_000),
)  # fmt: skip
PRINCIPAL = Principal(key_id=uuid.uuid4(), customer_id=uuid.uuid4(), name="k")
TTL_S = 60


def chat(**members: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}).encode()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"nonsense", None, "invalid_json"),
        (b'{"model":"m","messages":[]} trailing', None, "invalid_json"),
        (b'{"model":"m","messages":[],"x":' + b"[" * 200_000, None, "invalid_json"),
        (b'\xff{"model":"m"}', None, "invalid_utf8"),
        (b'{"model":"m\xc3","messages":[]}', None, "invalid_utf8"),
        (b"[]", None, "invalid_type"),
        (b'{"messages":[]}', "model", "invalid_type"),
        (b'{"model":"m"}', "messages", "invalid_type"),
        (b'{"model":1,"messages":[]}', "model", "invalid_type"),
        (chat(model=""), "model", "invalid_value"),
        (chat(messages=[]), "messages", "empty_array"),
        (chat(messages="hi"), "messages", "invalid_type"),
        (chat(messages=[{"content": "x"}]), "messages[0]", "invalid_type"),
        (chat(stream="yes"), "stream", "invalid_type"),
        (chat(max_tokens=0), "max_tokens", "integer_below_min_value"),
        (chat(max_tokens=-5), "max_tokens", "integer_below_min_value"),
        (chat(max_completion_tokens=-1), "max_completion_tokens", "integer_below_min_value"),
        (chat(max_tokens=1.5), "max_tokens", "invalid_type"),
        (chat(n=0), "n", "integer_out_of_range"),
        (chat(n=1000), "n", "integer_out_of_range"),
        (chat(provider={"require": "magic"}), "provider.require", "invalid_type"),
    ],
)
def test_bad_bodies_are_refused_with_the_field_that_is_wrong(body: bytes, param: str | None, code: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(CHAT, body)
    assert (caught.value.param, caught.value.reason) == (param, code)


@pytest.mark.parametrize("asked", [4097, 2**31, 2**64, 10**30])
def test_more_tokens_than_the_context_are_refused(asked: int) -> None:
    body = chat(max_tokens=asked)
    with pytest.raises(InvalidRequestError) as caught:
        bound(parse_request(CHAT, body), body, OFFER)
    assert caught.value.reason == "context_length_exceeded"


def test_the_prompt_bound_is_bytes_plus_template_and_at_most_the_context() -> None:
    body = chat()
    assert bound(parse_request(CHAT, body), body, OFFER).prompt == len(body) + 16 + 64
    long = chat(user="x" * 10_000)
    assert bound(parse_request(CHAT, long), long, OFFER).prompt == 4096


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "u"}}, {"type": "hologram"}])
def test_what_is_not_text_counts_as_the_whole_context(part: dict[str, object]) -> None:
    body = chat(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, part]}])
    assert bound(parse_request(CHAT, body), body, OFFER).prompt == 4096


@pytest.mark.parametrize("name", ["audio", "image", "images", "video", "videos", "file", "files"])
@pytest.mark.parametrize("value", [{"id": "audio_1"}, ["aGk="], "https://example.org/a"])
def test_what_a_message_carries_beside_its_content_counts_as_the_whole_context(name: str, value: object) -> None:
    body = chat(messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, name: value}])
    assert bound(parse_request(CHAT, body), body, OFFER).prompt == 4096
    for nothing in (None, []):
        body = chat(messages=[{"role": "user", "content": "hi", name: nothing}])
        assert bound(parse_request(CHAT, body), body, OFFER).prompt == len(body) + 16 + 64


def test_content_after_white_space_is_still_looked_into() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content": \n\t [ {"type":"input_audio"} ] }]}'
    assert bound(parse_request(CHAT, body), body, OFFER).prompt == 4096


def test_tools_are_counted_by_their_bytes() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 500}}]
    body = chat(tools=tools)
    assert bound(parse_request(CHAT, body), body, OFFER).prompt == len(body) + 16 + 64


def test_content_of_an_impossible_type_is_refused() -> None:
    body = chat(messages=[{"role": "user", "content": 5}])
    with pytest.raises(InvalidRequestError) as caught:
        bound(parse_request(CHAT, body), body, OFFER)
    assert caught.value.param == "messages"


def test_the_larger_maximum_counts_when_both_are_given() -> None:
    body = chat(max_tokens=10, max_completion_tokens=20, n=3)
    bounds = bound(parse_request(CHAT, body), body, OFFER)
    assert (bounds.completion, bounds.completion_per_choice) == (60, 20)


def test_models_are_refused_by_price_and_by_key() -> None:
    book = PriceBook([OFFER])
    with pytest.raises(ModelUnknownError):
        choose_offer(book, PRINCIPAL, "other")
    confined = Principal(key_id=uuid.uuid4(), customer_id=uuid.uuid4(), name="k", allowed_models=frozenset({"other"}))
    with pytest.raises(ModelForbiddenError):
        choose_offer(book, confined, "m")


@given(balance=st.integers(0, 6000), asked=st.none() | st.integers(1, 1024), n=st.integers(1, 4))
def test_an_admitted_request_can_never_cost_more_than_its_hold(balance: int, asked: int | None, n: int) -> None:
    import asyncio

    asyncio.run(_admit_and_check(balance, asked, n))


async def _admit_and_check(balance: int, asked: int | None, n: int) -> None:
    clock = ManualClock()
    ledger = InMemoryLedger(clock)
    rng = random.Random(1)
    if balance:
        await ledger.deposit(new_job_id(clock, rng), PRINCIPAL.customer_id, Amount(balance))
    members: dict[str, object] = {"n": n} if asked is None else {"n": n, "max_tokens": asked}
    body = chat(**members)
    request = parse_request(CHAT, body)
    bounds = bound(request, body, OFFER)
    worst = OFFER.price.numerator(TokenUsage(prompt=bounds.prompt, completion=bounds.completion))
    try:
        admission = await hold_credit(ledger, PRINCIPAL, new_job_id(clock, rng), request, bounds, OFFER, TTL_S)
    except (InsufficientCreditError, UnknownCustomerError):
        assert worst > balance * 10**6
        return
    granted = admission.bounds
    cost = OFFER.price.numerator(TokenUsage(prompt=granted.prompt, completion=granted.completion))
    assert cost <= admission.held.nano * 10**6
    assert admission.held.nano <= balance
    assert granted.completion >= n
    assert granted.completion % n == 0
    if asked is not None:
        assert granted.completion == asked * n


PARTS = {"text": 0, "image_url": 700, "input_audio": 90, "video_url": None}


@given(
    st.lists(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4), min_size=1, max_size=4),
    st.booleans(),
)
def test_media_count_for_what_the_model_says_and_the_unknown_for_the_whole_context(
    messages: list[list[str]], attached: bool
) -> None:
    known = {name: tokens for name, tokens in PARTS.items() if tokens}
    offer = msgspec.structs.replace(OFFER, media_max=known)
    given_messages: list[dict[str, object]] = [
        {"role": "user", "content": [{"type": kind, kind: "x"} for kind in kinds]} for kinds in messages
    ]
    if attached:
        given_messages[-1]["images"] = ["x"]
    body = chat(messages=given_messages)
    kinds = [kind for message in messages for kind in message]
    bytes_and_template = len(body) + 16 * len(messages) + 64
    if attached or "video_url" in kinds:
        expected = 4096
    else:
        expected = min(4096, bytes_and_template + sum(known.get(kind, 0) for kind in kinds))
    assert bound(parse_request(CHAT, body), body, offer).prompt == expected
    # Without terms, as before.
    without = bound(parse_request(CHAT, body), body, OFFER).prompt
    assert without == (min(4096, bytes_and_template) if not attached and set(kinds) == {"text"} else 4096)
