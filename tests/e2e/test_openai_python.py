"""The official Python client against `cocoon dev` and its real model.

What the model says is its own affair: only shapes, counts, schemas and money are judged.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionUserMessageParam
from pydantic import BaseModel

from tests.e2e.dev_network import MODEL, Network
from tests.scripted_engine import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Say hello."}]
ON_AND_ON: dict[str, Any] = {"ignore_eos": True, "grammar": "root ::= [a-z ]+"}
"""Members that OpenAI does not know and the engine does: it generates until it is stopped, and every token is text."""
UNKNOWN_KEY = "sk-cocoon-" + "A" * 43
NANO = Decimal("1e-9")


class Verdict(BaseModel):
    """Few enough possible values that any model is done with it within a hundred tokens."""

    polite: bool
    size: Literal["small", "large"]


@pytest.fixture
def client(network: Network) -> Iterator[OpenAI]:
    with OpenAI(base_url=network.base_url, api_key=network.api_key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(network: Network) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=network.base_url, api_key=network.api_key, max_retries=0, timeout=60) as client:
        yield client


def cost_of(usage: Any) -> int:
    """The cost in nano that an answer names, after checking that it says so twice the same."""
    extra = usage.model_extra
    assert Decimal(extra["cost"]) == extra["cost_nano"] * NANO
    return extra["cost_nano"]


def test_an_answer_says_what_it_cost_and_that_is_what_was_charged(network: Network, client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=8, seed=7, temperature=0
    )
    answer = raw.parse()
    [choice] = answer.choices
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert 1 <= usage.completion_tokens <= 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

    assert raw.headers["x-cocoon-worker"] in {"worker-1", "worker-2"}
    assert raw.headers["x-cocoon-receipt"] == raw.request_id == raw.headers["x-request-id"]
    assert "first;dur=" in raw.headers["server-timing"]
    assert [name for name in raw.headers if name.startswith("x-ratelimit")] == []
    row = network.usage(raw.headers["x-request-id"])
    assert row["outcome"] == "completed"
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert row["charge_nano"] == cost_of(usage) > 0
    assert row["receipt_head"] is not None
    assert row["receipt_signature"] is not None


def test_a_stream_has_a_role_text_and_an_end_and_no_usage_unasked(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=8, stream=True, temperature=0
    ) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    assert [chunk.usage for chunk in chunks if chunk.usage is not None] == []


def test_a_stream_names_its_role_even_where_the_engine_forgets_it(client: OpenAI) -> None:
    # llama.cpp does when the first token is only a part of a character.
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=20, stream=True, extra_body={"grammar": 'root ::= "\U0001f469 hi"'}
    )
    with stream:
        deltas = [chunk.choices[0].delta for chunk in stream]
    assert [delta.role for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert "".join(delta.content or "" for delta in deltas) == "\U0001f469 hi"


def test_a_stream_with_usage_ends_with_the_cost(network: Network, client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
    ) as stream:
        job_id = stream.response.headers["x-request-id"]
        *chunks, last = list(stream)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert 1 <= last.usage.completion_tokens <= 8
    row = network.usage(job_id)
    assert row["charge_nano"] == cost_of(last.usage) > 0
    assert row["completion_tokens"] == last.usage.completion_tokens


def test_texts_are_completed_and_embedded(network: Network, client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt=["The sky is", "Water is"], n=2, max_tokens=4, logprobs=1
    )
    answer = raw.parse()
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert 4 <= answer.usage.completion_tokens <= 16
    row = network.usage(raw.headers["x-request-id"])
    assert row["charge_nano"] == cost_of(answer.usage) > 0
    assert row["receipt_signature"] is not None
    with client.completions.create(model=MODEL, prompt="The sky is", max_tokens=4, stream=True) as stream:
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    assert "".join(chunk.choices[0].text for chunk in chunks)

    # As the client asks by itself: base64, which it decodes.
    vectors = client.embeddings.with_raw_response.create(model=MODEL, input=["The sky is blue.", "Water is wet."])
    embedded = vectors.parse()
    assert [one.index for one in embedded.data] == [0, 1]
    assert len(embedded.data[0].embedding) == len(embedded.data[1].embedding) > 100
    row = network.usage(vectors.headers["x-request-id"])
    assert (row["prompt_tokens"], row["completion_tokens"]) == (embedded.usage.prompt_tokens, 0)
    assert row["charge_nano"] > 0


async def test_the_async_client_answers_and_streams_side_by_side(async_client: AsyncOpenAI) -> None:
    async def whole() -> int:
        answer = await async_client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=6, temperature=0)
        assert answer.usage is not None
        assert answer.choices[0].message.content
        return answer.usage.completion_tokens

    async def streamed() -> int:
        stream = await async_client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
        async with stream:
            last = [chunk async for chunk in stream][-1]
        assert last.usage is not None
        return last.usage.completion_tokens

    counts = await asyncio.gather(whole(), streamed(), whole(), streamed())
    assert all(1 <= count <= 6 for count in counts)


@pytest.mark.parametrize("beta", [True, False])
def test_structured_output_is_parsed(client: OpenAI, beta: bool) -> None:
    completions = client.beta.chat.completions if beta else client.chat.completions
    answer = completions.parse(
        model=MODEL, messages=HELLO, max_tokens=200, temperature=0, seed=1, response_format=Verdict
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Verdict)


def test_structured_output_is_parsed_from_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, max_tokens=200, temperature=0, seed=1, response_format=Verdict,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert answer.choices[0].message.role == "assistant"
    assert isinstance(answer.choices[0].message.parsed, Verdict)
    assert answer.usage is not None
    assert cost_of(answer.usage) > 0


def test_log_probabilities_come_one_per_token(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2, extra_body=ON_AND_ON
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs.content)


def test_text_ends_before_a_stop_string(client: OpenAI) -> None:
    vowels = ["a", "e", "i", "o", "u", "y"]
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=100, stop=vowels, extra_body=ON_AND_ON
    )
    assert answer.choices[0].finish_reason == "stop"
    content = answer.choices[0].message.content or ""
    assert [vowel for vowel in vowels if vowel in content] == []
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 100


def test_two_choices_are_told_apart_and_both_paid_for(network: Network, client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=4, n=2, extra_body=ON_AND_ON
    )
    answer = raw.parse()
    assert sorted(choice.index for choice in answer.choices) == [0, 1]
    assert all(choice.message.content for choice in answer.choices)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert network.usage(raw.headers["x-request-id"])["completion_tokens"] == 8


def test_models_are_listed_and_found_by_name(client: OpenAI) -> None:
    [model] = client.models.list()
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "cocoon")
    assert client.models.retrieve(MODEL) == model
    assert model.model_extra is not None
    assert model.model_extra["context_length"] == 4096
    assert model.model_extra["workers"] == 2
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize(
    ("change", "kind", "code", "param"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found", None),
        ({"messages": []}, openai.BadRequestError, "empty_array", "messages"),
        ({"max_tokens": -1}, openai.BadRequestError, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": 10**9}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        (
            {"messages": [{"role": "user", "content": "word " * 9000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        ({"temperature": "hot"}, openai.BadRequestError, "invalid_request", None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_bad_request_raises_the_clients_own_error(
    client: OpenAI,
    change: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str | None,
    stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "stream": stream, **change})
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert error.request_id
    assert isinstance(error.body, dict)
    assert error.body["message"]


def test_keys_decide_who_may_ask(network: Network, client: OpenAI) -> None:
    unknown = client.with_options(api_key=UNKNOWN_KEY)
    for call in (unknown.models.list, lambda: unknown.chat.completions.create(model=MODEL, messages=HELLO)):
        with pytest.raises(openai.AuthenticationError) as refused:
            call()
        assert refused.value.code == "invalid_api_key"

    penniless = network.new_key()
    with pytest.raises(openai.APIStatusError) as unpaid:
        client.with_options(api_key=penniless.secret).chat.completions.create(model=MODEL, messages=HELLO)
    assert unpaid.value.status_code == 402
    assert unpaid.value.type == "insufficient_quota"

    elsewhere = network.new_key("--credit", "1", "--models", "another-model")
    with pytest.raises(openai.PermissionDeniedError):
        client.with_options(api_key=elsewhere.secret).chat.completions.create(model=MODEL, messages=HELLO)

    revoked = network.new_key("--credit", "1")
    network.revoke(revoked)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key=revoked.secret).chat.completions.create(model=MODEL, messages=HELLO)
    assert network.rows("SELECT job_id FROM usage WHERE key_id = ANY($1)", [penniless.id, revoked.id]) == []


def test_a_key_over_its_limit_is_told_when_to_come_back(network: Network, client: OpenAI) -> None:
    key = network.new_key("--credit", "1", "--rpm", "2", "--tpm", "1000")
    limited = client.with_options(api_key=key.secret)
    # In the first seconds of a new Redis a limit gives one slice only, here one request.
    patient = limited.with_options(max_retries=4)
    for remaining in ("1", "0"):
        raw = patient.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=1)
        headers = raw.headers
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == remaining
        assert 0 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        # A token comes back every 60 ms; more than that were reserved.
        assert 0 < int(headers["x-ratelimit-remaining-tokens"]) < 1000
    with pytest.raises(openai.RateLimitError) as refused:
        limited.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 31
    assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_client_that_is_told_to_wait_waits_and_is_served(network: Network, client: OpenAI) -> None:
    """The SDK retries by itself: our Retry-After must be one that it understands."""
    key = network.new_key("--credit", "1", "--tpm", "6000")
    impatient, patient = (client.with_options(api_key=key.secret, max_retries=retries) for retries in (0, 4))
    # Its largest completion is reserved for as long as it runs. Of the 3550 that are asked for next, some 600 are
    # missing, which come back at 100 a second. In the first seconds of a new Redis the former has to wait as well.
    with patient.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=3000, stream=True, extra_body=ON_AND_ON
    ) as busy:
        next(iter(busy))
        request: dict[str, Any] = {"max_tokens": 3550, "extra_body": {"grammar": 'root ::= "hello"'}}
        with pytest.raises(openai.RateLimitError) as refused:
            impatient.chat.completions.create(model=MODEL, messages=HELLO, **request)
        # The SDK obeys up to a minute; told to wait longer, it would come back too soon.
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        raw = patient.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, **request)
    assert raw.retries_taken >= 1
    assert raw.parse().choices[0].message.content == "hello"


def test_closing_a_stream_stops_the_model_and_charges_what_was_generated(network: Network, client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=3000, stream=True, extra_body=ON_AND_ON
    ) as stream:
        job_id = stream.response.headers["x-request-id"]
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    row = network.usage(job_id)
    assert row["outcome"] == "client_gone"
    assert 1 <= row["completion_tokens"] < 3000
    assert row["charge_nano"] > 0


async def test_a_client_that_runs_out_of_patience_leaves_a_clean_end(network: Network, client: OpenAI) -> None:
    key = network.new_key("--credit", "1")
    hasty = client.with_options(api_key=key.secret, timeout=3)
    with pytest.raises(openai.APITimeoutError):
        hasty.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3000, extra_body=ON_AND_ON)
    row = network.usage_of(key)
    assert row["outcome"] == "client_gone"
    assert row["completion_tokens"] < 3000
    balances: list[dict[str, Any]] = []

    def nothing_held() -> bool:
        """The process that leased the credit knows that it is idle; to the others it is held until it comes back."""
        headers = {"authorization": f"Bearer {key.secret}"}
        balances.append(httpx.get(f"{network.base_url}/account/balance", headers=headers, trust_env=False).json())
        return balances[-1]["held_nano"] == 0

    await until(nothing_held, 60)
    assert balances[-1]["spent_nano"] == row["charge_nano"]
    assert balances[-1]["available_nano"] == 10**9 - row["charge_nano"]


async def test_cancelling_a_task_leaves_too(network: Network, async_client: AsyncOpenAI) -> None:
    job_ids: list[str] = []

    async def read() -> None:
        stream = await async_client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=3000, stream=True, extra_body=ON_AND_ON
        )
        async with stream:
            job_ids.append(stream.response.headers["x-request-id"])
            async for _ in stream:
                pass

    reading = asyncio.create_task(read())
    await until(lambda: job_ids)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    row = await asyncio.to_thread(network.usage, job_ids[0])
    assert row["outcome"] == "client_gone"
    assert row["completion_tokens"] < 3000
