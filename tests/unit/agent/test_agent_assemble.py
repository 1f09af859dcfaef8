import json
from typing import Any

import pytest

from cocoon.usage import TokenUsage
from tests.unit.agent.agent_values import choice, chunk
from workers.agent import assemble
from workers.agent.assemble import UnaryAssembler
from workers.agent.chunks import BrokenStreamError

USAGE = TokenUsage(prompt=5, cached=2, completion=3)


def _assembled(*payloads: bytes, hidden: tuple[str, ...] = ()) -> dict[str, Any]:
    assembler = UnaryAssembler(hidden)
    for payload in payloads:
        assembler.add(payload)
    return json.loads(assembler.finish(USAGE))


def test_texts_of_each_kind_are_joined_per_choice() -> None:
    answer = _assembled(
        chunk(choice(0, role="assistant", content=""), choice(1, role="assistant")),
        chunk(choice(0, reasoning_content="think"), choice(1, refusal="I can")),
        chunk(choice(0, reasoning_content="ing"), choice(1, refusal="not")),
        chunk(choice(0, content="Good "), choice(0, content="day")),
        chunk(choice(1, finish="stop")),
        chunk(choice(0, finish="length")),
    )
    first, second = answer["choices"]
    assert first["message"] == {"role": "assistant", "content": "Good day", "reasoning_content": "thinking"}
    assert second["message"] == {"role": "assistant", "content": "", "refusal": "I cannot"}
    assert (first["finish_reason"], second["finish_reason"]) == ("length", "stop")


def test_tool_calls_are_merged_by_their_index() -> None:
    def call(index: int, arguments: str, **extra: Any) -> dict[str, Any]:
        return {"index": index, "function": {"arguments": arguments, **extra.pop("function", {})}, **extra}

    answer = _assembled(
        chunk(choice(0, role="assistant", content=None)),
        chunk(choice(0, tool_calls=[call(0, "", id="a", type="function", function={"name": "weather"})])),
        chunk(choice(0, tool_calls=[call(1, '{"t":', id="b", type="function", function={"name": "time"})])),
        chunk(choice(0, tool_calls=[call(0, '{"city":'), call(1, "1}")])),
        chunk(choice(0, tool_calls=[call(0, '"Rome"}', function={"name": None})])),
        chunk(choice(0, finish="tool_calls")),
    )
    (only,) = answer["choices"]
    assert only["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"arguments": '{"city":"Rome"}', "name": "weather"}},
            {"id": "b", "type": "function", "function": {"arguments": '{"t":1}', "name": "time"}},
        ],
    }
    assert only["finish_reason"] == "tool_calls"


def test_whole_tool_calls_without_an_index_do_not_overwrite_each_other() -> None:
    def whole(name: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}

    answer = _assembled(chunk(choice(0, tool_calls=[whole("a"), whole("b")])))
    assert [call["id"] for call in answer["choices"][0]["message"]["tool_calls"]] == ["a", "b"]


def test_a_legacy_function_call_is_merged() -> None:
    answer = _assembled(
        chunk(choice(0, function_call={"name": "f", "arguments": "{"})),
        chunk(choice(0, function_call={"arguments": "}"})),
    )
    message = answer["choices"][0]["message"]
    assert message["function_call"] == {"name": "f", "arguments": "{}"}
    assert message["content"] is None


def test_logprobs_grow_and_unknown_members_are_kept() -> None:
    answer = _assembled(
        chunk(choice(0, content="a", logprobs={"content": [{"token": "a"}], "refusal": None}), service_tier="x"),
        chunk({**choice(0, content="b", logprobs={"content": [{"token": "b"}]}), "matched_stop": 7}),
        chunk({**choice(0, finish="stop"), "matched_stop": None}, system_fingerprint="fp"),
    )
    (only,) = answer["choices"]
    assert only["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}
    assert only["matched_stop"] == 7
    assert (answer["service_tier"], answer["system_fingerprint"]) == ("x", "fp")


def test_hidden_members_and_the_engines_own_usage_do_not_appear() -> None:
    answer = _assembled(
        chunk(choice(0, content="a"), timings={"x": 1}, usage={"prompt_tokens": 999}), hidden=("timings",)
    )
    assert "timings" not in answer
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


@pytest.mark.parametrize(
    "payload", [b'{"choices":[3]}', b'{"choices":[{"delta":{"tool_calls":[4]}}]}', b'{"choices":7}']
)
def test_shapes_that_cannot_be_merged_break_the_answer_instead_of_the_agent(payload: bytes) -> None:
    with pytest.raises(BrokenStreamError):
        UnaryAssembler(()).add(payload)


def test_an_answer_cannot_grow_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "ANSWER_BYTES_MAX", 1000)
    assembler = UnaryAssembler(())
    piece = chunk(choice(0, content="x" * 50))
    for _ in range(1000 // len(piece)):
        assembler.add(piece)
    with pytest.raises(BrokenStreamError):
        assembler.add(piece)
    with pytest.raises(BrokenStreamError):
        UnaryAssembler(()).add(chunk(*(choice(index) for index in range(assemble.CHOICES_MAX + 1))))
