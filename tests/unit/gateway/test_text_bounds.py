import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.pricing import ModelOffer
from cocoon.endpoints import BY_JOB_PATH, CHAT, COMPLETIONS, EMBEDDINGS, ENDPOINTS, Endpoint
from cocoon.enrolment import ServedModel
from cocoon.errors import MalformedError
from cocoon.money import Price, ceiling
from cocoon.openai import FieldError, ModelRequest
from cocoon.texts import CHOICES_MAX, INPUTS_MAX
from cocoon.usage import TokenUsage
from gateway.admission import Bounds, bound, parse_request, worst_cost
from gateway.errors import InvalidRequestError

OFFER = ModelOffer(
    model="m", context_tokens=4096, default_max_completion=1024, template_tokens_per_message=16, base_tokens=64,
    price=Price(version=1, prompt=1_000_003, cached=500_000, completion=3_000_007),
)  # fmt: skip


def raw(**members: Any) -> bytes:
    return json.dumps({"model": "m", **members}, separators=(",", ":")).encode()


def bounds_of(endpoint: Endpoint, body: bytes) -> tuple[ModelRequest, Bounds]:
    request = parse_request(endpoint, body)
    return request, bound(request, body, OFFER)


def test_endpoints_are_where_openai_has_them() -> None:
    assert [endpoint.path for endpoint in ENDPOINTS] == ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    assert [endpoint.index for endpoint in ENDPOINTS] == [0, 1, 2]
    assert BY_JOB_PATH["/v1/jobs/embeddings"] is EMBEDDINGS
    assert CHAT.job_path == "/v1/jobs/chat/completions"
    assert EMBEDDINGS.engine_path == "/embeddings"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("", 1), ("a", 1), (["a"], 1), (["a", ""], 2), ([1, 2, 3], 1), ([[1], [2, 3], [4]], 3)],
)
def test_a_string_or_an_array_of_tokens_is_one_prompt(prompt: Any, prompts: int) -> None:
    request, bounds = bounds_of(COMPLETIONS, raw(prompt=prompt, n=2, best_of=3, max_tokens=10))
    assert (request.prompts, request.copies, request.choices) == (prompts, 2, 3 * prompts)
    assert bounds.completion == 30 * prompts
    assert bounds.completion_per_choice == 10


def test_without_a_maximum_the_apis_own_holds() -> None:
    assert bounds_of(COMPLETIONS, raw(prompt="a"))[1].completion == 16


def test_no_text_is_longer_than_the_context_and_each_counts() -> None:
    long = "word " * 4000
    for endpoint, name in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input")):
        assert bounds_of(endpoint, raw(**{name: long}))[1].prompt == 4096
        assert bounds_of(endpoint, raw(**{name: [long, long, "x"]}))[1].prompt == 3 * 4096
        body = raw(**{name: ["a", "b"]})
        assert bounds_of(endpoint, body)[1].prompt == len(body) + 64 + 2 * 8


def test_embeddings_generate_nothing() -> None:
    request, bounds = bounds_of(EMBEDDINGS, raw(input=["a", "b"], max_tokens=50, n=9, stream_options={}))
    assert (bounds.completion, bounds.choices, request.streams, request.wants_usage) == (0, 1, False, False)


REFUSED: list[tuple[Endpoint, dict[str, Any], str, str]] = [
    (COMPLETIONS, {}, "prompt", "invalid_type"),
    (COMPLETIONS, {"prompt": None}, "prompt", "invalid_type"),
    (COMPLETIONS, {"prompt": 3}, "prompt", "invalid_type"),
    (COMPLETIONS, {"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt[0]", "invalid_type"),
    (COMPLETIONS, {"prompt": ["a", 1]}, "prompt", "invalid_type"),
    (COMPLETIONS, {"prompt": [[1], "a"]}, "prompt", "invalid_type"),
    (COMPLETIONS, {"prompt": {"prompt_string": "a", "multimodal_data": []}}, "prompt", "invalid_type"),
    (COMPLETIONS, {"prompt": []}, "prompt", "empty_array"),
    (COMPLETIONS, {"prompt": [[1], []]}, "prompt", "empty_array"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
    (COMPLETIONS, {"prompt": "a", "n": 0}, "n", "integer_out_of_range"),
    (COMPLETIONS, {"prompt": "a", "best_of": 99}, "best_of", "integer_out_of_range"),
    (COMPLETIONS, {"prompt": "a", "n": 3, "best_of": 2}, "best_of", "invalid_value"),
    (COMPLETIONS, {"prompt": "a", "best_of": 2, "stream": True}, "best_of", "invalid_value"),
    (COMPLETIONS, {"prompt": ["a"] * (CHOICES_MAX // 2 + 1), "n": 2}, "prompt", "array_too_long"),
    (EMBEDDINGS, {"input": ""}, "input", "invalid_value"),
    (EMBEDDINGS, {"input": ["a", ""]}, "input", "invalid_value"),
    (EMBEDDINGS, {"input": ["a"] * (INPUTS_MAX + 1)}, "input", "array_too_long"),
    (EMBEDDINGS, {"input": "a", "stream": True}, "stream", "invalid_value"),
    (EMBEDDINGS, {"input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
    (EMBEDDINGS, {"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_type"),
    (EMBEDDINGS, {"input": "a", "model": ""}, "model", "invalid_value"),
]


@pytest.mark.parametrize(("endpoint", "members", "param", "code"), REFUSED)
def test_what_cannot_be_is_refused_with_the_field_that_is_wrong(
    endpoint: Endpoint, members: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        bounds_of(endpoint, raw(**members))
    assert (refused.value.param, refused.value.reason) == (param, code)


TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30)
TEXTS = (
    st.text(max_size=60)
    | st.lists(st.text(max_size=20), min_size=1, max_size=9)
    | TOKENS
    | st.lists(TOKENS, max_size=6)
)
LENGTHS = st.integers(-1, 5000) | st.none()


@given(
    texts=TEXTS, n=st.integers(0, 17) | st.none(), best_of=st.integers(0, 17) | st.none(), maximum=LENGTHS,
    stream=st.booleans() | st.none(), endpoint=st.sampled_from([COMPLETIONS, EMBEDDINGS]), data=st.data(),
)  # fmt: skip
def test_whatever_is_asked_for_no_charge_exceeds_its_hold(
    texts: Any, n: int | None, best_of: int | None, maximum: int | None, stream: bool | None, endpoint: Endpoint,
    data: st.DataObject,
) -> None:  # fmt: skip
    body = raw(**{endpoint.prompt: texts}, n=n, best_of=best_of, max_tokens=maximum, stream=stream)
    try:
        request, bounds = bounds_of(endpoint, body)
    except InvalidRequestError:
        return
    held = worst_cost(bounds, OFFER, None)
    # An engine may make a token of every byte, add its own to each text, and fill every answer of every prompt.
    listed = texts if isinstance(texts, list) and not isinstance(texts[0], int) else [texts]
    tokens = sum(min(4096, (len(one.encode()) if isinstance(one, str) else len(one)) + 4) for one in listed)
    per_choice = min(16 if maximum is None else maximum, 4096)
    generated = 0 if endpoint is EMBEDDINGS else len(listed) * max(n or 1, best_of or 1) * per_choice
    assert tokens <= bounds.prompt
    assert generated == bounds.completion == bounds.completion_per_choice * request.choices
    usage = TokenUsage(prompt=tokens, completion=generated)
    assert ceiling(OFFER.price.numerator(usage)).nano <= held.nano
    # And a worker that claims anything is cut down to the ticket.
    claim = TokenUsage(prompt=data.draw(st.integers(0, 2**32 - 1)), completion=data.draw(st.integers(0, 2**32 - 1)))
    cut = claim.capped(prompt_max=bounds.prompt, completion_max=bounds.completion)
    assert ceiling(OFFER.price.numerator(cut)).nano <= held.nano


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from(ENDPOINTS))
def test_any_bytes_are_a_request_or_refused_as_malformed(body: bytes, endpoint: Endpoint) -> None:
    try:
        endpoint.decode(body).check()
    except (MalformedError, FieldError):
        return
    raise AssertionError("random bytes made a request")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=12,
)  # fmt: skip


@given(prompt=JSON, endpoint=st.sampled_from([COMPLETIONS, EMBEDDINGS]), extra=JSON)
def test_any_json_in_the_prompt_is_bounded_or_refused_with_its_name(
    prompt: Any, endpoint: Endpoint, extra: Any
) -> None:
    body = raw(**{endpoint.prompt: prompt}, extra=extra)
    try:
        prompts = bounds_of(endpoint, body)[1].prompt
        named = endpoint.prompt
    except InvalidRequestError as error:
        prompts, named = 1, error.param or ""
    assert prompts >= 1
    assert named.startswith(endpoint.prompt)


def test_agents_that_do_not_say_what_they_serve_serve_chat() -> None:
    old = b'{"id":"m","context_tokens":4096}'
    assert msgspec.json.decode(old, type=ServedModel).endpoints == ("chat",)
    assert msgspec.json.encode(ServedModel(id="m", context_tokens=4096)) == old
    assert b"embeddings" in msgspec.json.encode(ServedModel(id="m", context_tokens=1, endpoints=("embeddings",)))
    for bad in ('["images"]', "[]"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(f'{{"id":"m","context_tokens":1,"endpoints":{bad}}}', type=ServedModel)
