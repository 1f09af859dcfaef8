import json

import pytest

from cocoon.receipt import Commitment
from cocoon.usage import TokenUsage
from tests.unit.agent.agent_values import CHAT_BODY, LLAMA, call, choice, chunk
from workers.agent.chunks import BrokenStreamError, Curtain, Meter, read_chunk
from workers.agent.engines.ports import Dialect, EngineRefusedError
from workers.agent.sinks import StreamSink

OPENAI = Dialect()
STREAM = {**CHAT_BODY, "stream": True}


def _meter(dialect: Dialect, *payloads: bytes, prompt_max: int = 1000, completion_max: int = 1000) -> Meter:
    meter = Meter(dialect, prompt_max=prompt_max, completion_max=completion_max)
    for payload in payloads:
        meter.add(read_chunk(payload))
    return meter


def _usage(prompt: int | None, completion: int | None, cached: int | None = None) -> dict[str, object]:
    details = None if cached is None else {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}


def test_chunks_with_content_of_any_kind_are_counted_and_empty_ones_are_not() -> None:
    meter = _meter(
        OPENAI,
        chunk(choice(0, role="assistant", content="")),
        chunk(choice(0, content="a")),
        chunk(choice(0, reasoning_content="b")),
        chunk(choice(0, tool_calls=[{"index": 0}]), choice(1, content="c")),
        chunk(choice(0, content=None, tool_calls=[])),
        chunk(choice(0, finish="stop")),
    )
    assert meter.usage == TokenUsage(completion=4)
    assert meter.finish_reason == "stop"


def test_the_engines_numbers_replace_the_counted_ones() -> None:
    speculative = [chunk(choice(0, content="three tokens"), usage=_usage(9, 3))]
    assert _meter(OPENAI, *speculative).usage == TokenUsage(prompt=9, completion=3)
    assert _meter(OPENAI, *speculative, chunk(usage=_usage(9, 4, 8))).usage == TokenUsage(
        prompt=9, cached=8, completion=4
    )


def test_counts_per_choice_are_added_up() -> None:
    meter = _meter(OPENAI, *(chunk(choice(index, content="x"), usage=_usage(9, 2)) for index in (0, 1, 0)))
    assert meter.usage.completion == 4


def test_llama_reports_each_choice_and_the_prompt_once() -> None:
    done = [chunk(usage=_usage(32, 3, 0)), chunk(usage=_usage(32, 5, 31))]
    assert _meter(LLAMA, *done).usage == TokenUsage(prompt=32, cached=0, completion=8)


def test_a_prefill_is_metered_as_it_goes() -> None:
    progress = {"total": 900, "cache": 10, "processed": 266, "time_ms": 5}
    meter = _meter(LLAMA, chunk(choice(0, role="assistant"), prompt_progress=progress, timings={"cache_n": 0}))
    assert meter.usage == TokenUsage(prompt=266, cached=10, completion=0)


@pytest.mark.parametrize("bad", [(-5, -7, -1), (10**12, 10**12, 10**13)])
def test_impossible_counts_stay_within_the_ticket(bad: tuple[int, int, int]) -> None:
    usage = _meter(OPENAI, chunk(usage=_usage(*bad)), prompt_max=100, completion_max=10).usage
    assert (0 <= usage.cached <= usage.prompt <= 100, 0 <= usage.completion <= 10) == (True, True)


def test_null_counts_are_no_counts() -> None:
    meter = _meter(OPENAI, chunk(choice(0, content="x"), usage=_usage(None, None)), chunk(usage=_usage(7, None)))
    assert meter.usage == TokenUsage(prompt=7, completion=1)


def test_a_finish_reason_that_is_no_word_is_not_repeated() -> None:
    assert _meter(OPENAI, chunk(choice(0, finish='x"\r\n'))).finish_reason == "unknown"
    assert _meter(OPENAI, chunk(choice(0, finish="a" * 5000))).finish_reason == "unknown"


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'{"choices":{}}', b'{"choices":[{"index":"x"}]}', b"[" * 9999, b"\xff"]
)
def test_what_is_no_chunk_breaks_the_stream(payload: bytes) -> None:
    with pytest.raises(BrokenStreamError):
        read_chunk(payload)


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b'{"error":{"message":"x","code":400}}', 400),
        (b'{"error":{"message":"x","code":"bad"}}', 500),
        (b'{"error":"x"}', 500),
        (b'{"object":"error","message":"x","code":400}', 400),
        (b'{"error":[1]}', 500),
    ],
)
def test_error_events_say_whose_fault_it_was(payload: bytes, status: int) -> None:
    with pytest.raises(EngineRefusedError) as refused:
        read_chunk(payload)
    assert refused.value.status == status


def _shown(body: dict[str, object], *payloads: bytes, dialect: Dialect = LLAMA) -> list[bytes]:
    sink = StreamSink(Curtain(call(body), dialect), Commitment(bytes(32)), wants_usage=False)
    for payload in payloads:
        sink.add(read_chunk(payload), payload, b"data: " + payload + b"\n\n")
    return [event.removeprefix(b"data: ") for event in sink.take().split(b"\n\n") if event]


def test_what_was_injected_is_hidden_unless_the_client_asked_for_it() -> None:
    progress = chunk(choice(0), prompt_progress={"processed": 1}, timings={})
    token = chunk(choice(0, content="a"), timings={"predicted_n": 1})
    assert [json.loads(payload) for payload in _shown(STREAM, progress, token)] == [
        json.loads(chunk(choice(0, content="a")))
    ]
    assert _shown({**STREAM, "timings_per_token": True, "return_progress": True}, progress, token) == [progress, token]


def test_a_role_that_only_hidden_progress_named_is_shown_before_the_text() -> None:
    def progress(index: int) -> bytes:
        return chunk(choice(index, role="assistant", content=None), prompt_progress={"processed": 1}, timings={})

    def opening(index: int) -> bytes:
        return chunk(choice(index, role="assistant", content=None))

    def token(index: int) -> bytes:
        return chunk(choice(index, content="a"))

    forgotten = [progress(0), progress(0), progress(1), token(0), token(1), token(0)]
    assert _shown(STREAM, *forgotten) == [opening(0), token(0), opening(1), token(1), token(0)]
    named = [progress(0), progress(0), opening(0), token(0)]
    assert _shown(STREAM, *named) == [opening(0), token(0)]
    assert _shown({**STREAM, "return_progress": True}, *forgotten[:4])[-1] == token(0)
    assert len(_shown({**STREAM, "return_progress": True}, *forgotten[:4])) == 4


def test_events_that_hide_nothing_keep_their_bytes() -> None:
    payload = b'{ "choices" :[{"index":0,"delta":{"content":"\\u0041 \\"timings\\" \\"usage\\""}}], "x":1.50 }'
    assert _shown(STREAM, payload) == [payload]


def test_counts_in_every_chunk_are_shown_to_who_asked_for_them() -> None:
    counted = chunk(choice(0, content="a"), usage=_usage(1, 1))
    assert json.loads(_shown(STREAM, counted)[0]) == json.loads(chunk(choice(0, content="a")))
    asked = {**STREAM, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    assert _shown(asked, counted) == [counted]
