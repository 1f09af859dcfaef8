"""Puts a unary `chat.completion` or `text_completion` together from the chunks of a stream."""

from collections.abc import Collection
from typing import Any, cast

import msgspec

from cocoon.openai import any_decoder
from cocoon.texts import CHOICES_MAX
from cocoon.usage import TokenUsage
from workers.agent.chunks import BrokenStreamError

ANSWER_BYTES_MAX = 32 * 1024 * 1024
TOOL_CALLS_MAX = 1024
_CHOICE_KNOWN = frozenset({"index", "delta", "text", "finish_reason", "logprobs"})
_TOP_KNOWN = frozenset({"choices", "usage", "object"})
_JSON = dict[str, Any]


class _Choice:
    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}
        self.message: _JSON = {}
        self.tools: dict[int, _JSON] = {}
        self.logprobs: _JSON | None = None
        self.finish_reason: str | None = None
        self.extra: _JSON = {}

    def add(self, choice: _JSON) -> None:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._add_delta(cast("_JSON", delta))
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            self.logprobs = {} if self.logprobs is None else self.logprobs
            for name, value in cast("_JSON", logprobs).items():
                _extend(self.logprobs, name, value)
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        for name, value in choice.items():
            if name not in _CHOICE_KNOWN and value is not None:
                self.extra[name] = value

    def _add_delta(self, delta: _JSON) -> None:
        for name, value in delta.items():
            if name == "role":
                self.message[name] = value or self.message.get(name)
            elif name == "tool_calls":
                for call in cast("list[_JSON]", value or []):
                    self._add_tool_call(call)
            elif isinstance(value, str):
                self.texts.setdefault(name, []).append(value)
            elif isinstance(value, dict) and name == "function_call":
                _merge_texts(self.message.setdefault(name, {}), cast("_JSON", value), joined=frozenset({"arguments"}))
            elif value is not None:
                _extend(self.message, name, value)

    def _add_tool_call(self, call: _JSON) -> None:
        index = call.get("index")
        # An engine that sends whole calls may leave the index out.
        at = index if isinstance(index, int) else len(self.tools)
        if at not in self.tools and len(self.tools) >= TOOL_CALLS_MAX:
            raise BrokenStreamError("too many tool calls")
        known = self.tools.setdefault(at, {})
        for name, value in call.items():
            if name == "index" or value is None:
                continue
            if isinstance(value, dict):
                inner = known.setdefault(name, {})
                _merge_texts(inner, cast("_JSON", value), joined=frozenset({"arguments", "input"}))
            else:
                known[name] = value

    def built(self, index: int) -> _JSON:
        message: _JSON = {"role": self.message.pop("role", None) or "assistant", "content": None}
        message.update({name: "".join(parts) for name, parts in self.texts.items()})
        message.update(self.message)
        if self.tools:
            message["tool_calls"] = [self.tools[at] for at in sorted(self.tools)]
        if message["content"] is None and not self.tools and "function_call" not in message:
            message["content"] = ""
        if message["content"] == "" and self.tools:
            message["content"] = None
        return {
            "index": index,
            "message": message,
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
            **self.extra,
        }


class _TextChoice(_Choice):
    def add(self, choice: _JSON) -> None:
        super().add(choice)
        text = choice.get("text")
        if isinstance(text, str):
            self.texts.setdefault("text", []).append(text)

    def built(self, index: int) -> _JSON:
        text = "".join(self.texts.get("text", ()))
        finish = {"logprobs": self.logprobs, "finish_reason": self.finish_reason}
        return {"index": index, "text": text, **finish, **self.extra}


class UnaryAssembler:
    """Fed the payloads of one stream; bounded by `ANSWER_BYTES_MAX` of them. `texts`: of bare texts, not messages."""

    def __init__(self, hidden: Collection[str], *, texts: bool = False) -> None:
        self._hidden = hidden
        self._choice_type = _TextChoice if texts else _Choice
        self._object = "text_completion" if texts else "chat.completion"
        self._top: _JSON = {}
        self._choices: dict[int, _Choice] = {}
        self._bytes = 0

    def add(self, payload: bytes) -> None:
        """Merge one chunk.

        Raises:
            BrokenStreamError: the answer is too large, or the chunk has a shape that cannot be merged.
        """
        self._bytes += len(payload)
        if self._bytes > ANSWER_BYTES_MAX:
            raise BrokenStreamError("the answer is too large to assemble")
        chunk: _JSON = any_decoder.decode(payload)
        for name, value in chunk.items():
            if name not in _TOP_KNOWN and name not in self._hidden and value is not None:
                self._top[name] = value
        try:
            for choice in cast("list[_JSON]", chunk.get("choices") or []):
                self._choice(choice.get("index", 0)).add(choice)
        except (AttributeError, TypeError) as error:
            raise BrokenStreamError("the engine sent a chunk of an unknown shape") from error

    def _choice(self, index: int) -> _Choice:
        if index not in self._choices:
            if len(self._choices) >= CHOICES_MAX:
                raise BrokenStreamError("too many choices")
            self._choices[index] = self._choice_type()
        return self._choices[index]

    def finish(self, usage: TokenUsage) -> bytes:
        """The JSON of the whole answer, with these counts."""
        top = self._top
        answer: _JSON = {"id": top.pop("id", ""), "object": self._object, "created": top.pop("created", 0)}
        answer["model"] = top.pop("model", "")
        answer["choices"] = [self._choices[index].built(index) for index in sorted(self._choices)]
        answer["usage"] = usage_members(usage)
        return msgspec.json.encode({**answer, **top})


def usage_members(usage: TokenUsage) -> _JSON:
    """OpenAI's `usage` object."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _extend(target: _JSON, name: str, value: Any) -> None:
    """Lists grow, anything else is replaced unless it is null."""
    known = target.get(name)
    if isinstance(known, list) and isinstance(value, list):
        cast("list[Any]", known).extend(cast("list[Any]", value))
    elif value is not None or name not in target:
        target[name] = value


def _merge_texts(target: _JSON, delta: _JSON, *, joined: Collection[str]) -> None:
    """Members in `joined` arrive in pieces; the others arrive whole, perhaps again and again."""
    for name, value in delta.items():
        if name in joined and isinstance(value, str):
            target[name] = target.get(name, "") + value
        elif value is not None and value != "":
            target[name] = value
