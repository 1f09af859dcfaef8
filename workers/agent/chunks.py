"""Reads the engine's stream: what a chunk counts for, whether it is shown, how the answer ended."""

import re
from collections.abc import Iterable

import msgspec

from cocoon.splice import members, with_members
from cocoon.usage import TokenUsage
from workers.agent.engines.ports import Dialect, EngineCall, EngineError, EngineRefusedError
from workers.agent.engines.request import asks_for, asks_for_continuous_usage

_COUNT_MAX = 2**32 - 1
_NULL = msgspec.Raw(b"null")
_EMPTY = frozenset({b"null", b'""', b"[]", b"{}"})
_FINISH_FORM = re.compile(r"[a-z_]{1,32}")
_ABORTED = "abort"
_SERVER_FAULT = 500
NO_FINISH = "unknown"
"""The finish reason of an answer whose engine named none that can be repeated."""


class BrokenStreamError(EngineError):
    """The engine's stream ended before the answer did, or cannot be read."""

    code = "engine_failed"


class _Delta(msgspec.Struct, frozen=True):
    # Only "is there anything" matters, so the values stay raw: engines disagree about their types.
    role: msgspec.Raw = _NULL
    content: msgspec.Raw = _NULL
    reasoning_content: msgspec.Raw = _NULL
    reasoning: msgspec.Raw = _NULL
    refusal: msgspec.Raw = _NULL
    tool_calls: msgspec.Raw = _NULL
    function_call: msgspec.Raw = _NULL

    @property
    def names_role(self) -> bool:
        return bytes(self.role) not in _EMPTY

    @property
    def carries(self) -> bool:
        return any(
            bytes(raw) not in _EMPTY
            for raw in (
                self.content, self.reasoning_content, self.tool_calls, self.reasoning, self.refusal, self.function_call,
            )
        )  # fmt: skip


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta | None = None
    text: msgspec.Raw = _NULL
    finish_reason: str | None = None

    @property
    def carries(self) -> bool:
        return self.delta.carries if self.delta is not None else bytes(self.text) not in _EMPTY


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class EngineUsage(msgspec.Struct, frozen=True):
    """`usage` as engines report it; SGLang may leave counts null."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached(self) -> int | None:
        """Prompt tokens from the cache, None when not reported."""
        details = self.prompt_tokens_details
        return None if details is None else details.cached_tokens


class _Timings(msgspec.Struct, frozen=True):
    """llama.cpp's counts of one choice so far."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class _PromptProgress(msgspec.Struct, frozen=True):
    """llama.cpp's prefill so far; `processed` includes `cache`, `total` is the whole prompt."""

    cache: int = 0
    processed: int = 0
    total: int = 0


class EngineChunk(msgspec.Struct, frozen=True):
    """The parts of a chunk that metering reads, of every dialect."""

    choices: tuple[_Choice, ...] = ()
    usage: EngineUsage | None = None
    timings: _Timings | None = None
    prompt_progress: _PromptProgress | None = None
    error: msgspec.Raw = _NULL
    object: str | None = None

    @property
    def roles(self) -> frozenset[int]:
        """The choices whose role it names."""
        return frozenset(c.index for c in self.choices if c.delta is not None and c.delta.names_role)

    @property
    def is_usage(self) -> bool:
        """Whether this is the chunk that only reports usage."""
        return not self.choices and self.usage is not None


_decoder = msgspec.json.Decoder(EngineChunk)


def read_chunk(payload: bytes) -> EngineChunk:
    """Decode one `data:` payload.

    Raises:
        EngineRefusedError: it reports a fault of the request (engines that answer 200 before they look).
        BrokenStreamError: it is not a chunk, or it says that the engine failed or gave up.
    """
    try:
        chunk = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenStreamError("the engine sent something that is not a chunk") from error
    if chunk.object == "error" or bytes(chunk.error) != b"null":
        raise EngineRefusedError(_error_status(payload), payload, None)
    if any(choice.finish_reason == _ABORTED for choice in chunk.choices):
        raise BrokenStreamError("the engine aborted the generation")
    return chunk


class EngineEmbeddings(msgspec.Struct, frozen=True):
    """An engine's embeddings: its JSON as it came, and what metering reads of it."""

    payload: bytes
    usage: EngineUsage | None


class _Embeddings(msgspec.Struct, frozen=True):
    data: tuple[msgspec.Raw, ...] = ()
    usage: EngineUsage | None = None
    error: msgspec.Raw = _NULL
    object: str | None = None


def read_embeddings(payload: bytes, texts: int) -> EngineEmbeddings:
    """The answer to a request for embeddings of that many texts.

    Raises:
        EngineRefusedError: it reports a fault of the request.
        BrokenStreamError: it is none, or not one of every text.
    """
    try:
        answer = msgspec.json.decode(payload, type=_Embeddings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenStreamError("the engine sent something that is not embeddings") from error
    if answer.object == "error" or bytes(answer.error) != b"null":
        raise EngineRefusedError(_error_status(payload), payload, None)
    if len(answer.data) != texts:
        raise BrokenStreamError("the engine did not embed every text")
    return EngineEmbeddings(payload, answer.usage)


class _ErrorCode(msgspec.Struct, frozen=True):
    code: int | str | None = None


class _ErrorEvent(msgspec.Struct, frozen=True):
    code: int | str | None = None
    error: _ErrorCode | str | None = None


def _error_status(payload: bytes) -> int:
    """The HTTP status that an error event names, 500 when it names none."""
    try:
        event = msgspec.json.decode(payload, type=_ErrorEvent)
    except msgspec.DecodeError:
        return _SERVER_FAULT
    code = event.error.code if isinstance(event.error, _ErrorCode) else event.code
    return code if isinstance(code, int) else _SERVER_FAULT


class Meter:
    """Counts tokens: chunks with content first, the engine's own numbers as soon as it gives them.

    Never above the maxima of the ticket, whatever the engine says. Engines count the choices of one prompt after
    another, `copies` of each.
    """

    def __init__(self, dialect: Dialect, *, prompt_max: int, completion_max: int, copies: int = 1) -> None:
        self._dialect = dialect
        self._prompt_max = prompt_max
        self._completion_max = completion_max
        self._copies = copies
        self._counted: dict[int, int] = {}
        self._exact: dict[int, int] = {}
        self._finish: dict[int, str] = {}
        self._prompts: dict[int, int] = {}
        self._announced: dict[int, int] = {}
        self._cached: dict[int, int] = {}
        self._final_prompt = 0
        self._final_cached: int | None = None
        self._final_completion: int | None = None

    def add(self, chunk: EngineChunk) -> None:
        """Count a chunk."""
        for choice in chunk.choices:
            if choice.carries:
                self._counted[choice.index] = self._counted.get(choice.index, 0) + 1
            if choice.finish_reason is not None:
                self._finish[choice.index] = choice.finish_reason
        if (progress := chunk.prompt_progress) is not None:
            self._saw_prompt(chunk.choices, progress.processed, progress.cache)
            at = self._prompt_of(chunk.choices)
            self._announced[at] = max(self._announced.get(at, 0), progress.total)
        elif (timings := chunk.timings) is not None and chunk.choices:
            self._saw_prompt(chunk.choices, timings.cache_n + timings.prompt_n, timings.cache_n)
            self._saw_completion(chunk.choices, timings.predicted_n)
        if chunk.usage is not None:
            self._add_usage(chunk, chunk.usage)

    def add_document(self, usage: EngineUsage | None) -> None:
        """Count an answer that came whole and holds nothing that was generated."""
        self._finish[0] = "stop"
        if usage is not None:
            self._add_usage(EngineChunk(), usage)

    def _add_usage(self, chunk: EngineChunk, usage: EngineUsage) -> None:
        if usage.prompt_tokens is not None:
            if chunk.choices:
                self._saw_prompt(chunk.choices, usage.prompt_tokens, usage.cached)
            else:
                self._final_prompt = max(self._final_prompt, usage.prompt_tokens)
                if usage.cached is not None:
                    self._cached = {0: usage.cached}
        if usage.completion_tokens is None:
            return
        if chunk.choices:
            self._saw_completion(chunk.choices, usage.completion_tokens)
            return
        if usage.cached is not None:
            # Choices after the first find the prompt that the first has just computed: that is no cache hit.
            known = self._final_cached
            self._final_cached = usage.cached if known is None else min(known, usage.cached)
        if self._dialect.usage_per_choice and self._final_completion is not None:
            self._final_completion += usage.completion_tokens
        else:
            self._final_completion = usage.completion_tokens

    def _prompt_of(self, choices: tuple[_Choice, ...]) -> int:
        """Which prompt a chunk is about; the first when it does not say."""
        return choices[0].index // self._copies if choices else 0

    def _saw_prompt(self, choices: tuple[_Choice, ...], prompt: int, cached: int | None) -> None:
        at = self._prompt_of(choices)
        self._prompts[at] = max(self._prompts.get(at, 0), prompt)
        if cached is not None:
            self._cached[at] = cached

    def _saw_completion(self, choices: Iterable[_Choice], completion: int) -> None:
        for choice in choices:
            self._exact[choice.index] = max(self._exact.get(choice.index, 0), completion)

    @property
    def over_prompt(self) -> bool:
        """Whether the prompt is longer than the ticket pays for, as soon as the engine knows its length."""
        return max(self._prompt, sum(self._announced.values())) > self._prompt_max

    @property
    def _prompt(self) -> int:
        return max(self._final_prompt, sum(self._prompts.values()))

    @property
    def usage(self) -> TokenUsage:
        """The counts so far, within the ticket."""
        completion = self._final_completion
        if completion is None:
            completion = sum({**self._counted, **self._exact}.values())
        prompt = min(max(0, self._prompt), _COUNT_MAX)
        cached = sum(self._cached.values()) if self._final_cached is None else self._final_cached
        return TokenUsage(
            prompt=prompt,
            cached=min(max(0, cached), prompt),
            completion=min(max(0, completion), _COUNT_MAX),
        ).capped(prompt_max=self._prompt_max, completion_max=self._completion_max)

    @property
    def finish_reason(self) -> str:
        """Of the first choice; `unknown` when the engine gave none, or one that is no plain word."""
        reason = self._finish.get(min(self._finish, default=0), NO_FINISH)
        return reason if _FINISH_FORM.fullmatch(reason) else NO_FINISH


class Curtain:
    """Hides what the client did not ask for: usage, and what the agent made the engine add."""

    def __init__(self, call: EngineCall, dialect: Dialect) -> None:
        self._hidden = tuple(member for member, switch in dialect.injected.items() if not asks_for(call.body, switch))
        self._continuous = asks_for_continuous_usage(call.body)
        self._hides_progress = "prompt_progress" in self._hidden
        names = self._hidden if self._continuous else (*self._hidden, "usage")
        self._marks = tuple((name, b'"' + name.encode() + b'"') for name in names)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Members of the engine's chunks that the client must not see."""
        return self._hidden

    def shows(self, chunk: EngineChunk) -> bool:
        """Whether the client gets to see this chunk at all."""
        return not (self._hides_progress and chunk.prompt_progress is not None)

    def drawn(self, payload: bytes, *, keep_usage: bool = False) -> bytes:
        """The payload without its hidden members; the same object when there were none."""
        names = [name for name, mark in self._marks if mark in payload and not (keep_usage and name == "usage")]
        if not names:
            return payload
        present = {member.key for member in members(payload)}
        found = [name for name in names if name in present]
        return with_members(payload, dict.fromkeys(found)) if found else payload
