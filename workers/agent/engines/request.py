"""Turns the client's bytes into the engine's request by splicing: the maxima, usage reporting, streaming."""

from collections.abc import Mapping

import msgspec

from cocoon.splice import members, with_members
from cocoon.texts import CompletionRequest, EmbeddingRequest
from workers.agent.engines.ports import EngineCall

_TRUE = b"true"


def engine_body(call: EngineCall, extra: Mapping[str, bytes | None], *, continuous_usage: bool = False) -> bytes:
    """The request for the engine, at whatever endpoint.

    `extra` are the engine's own members (None removes one). Every member that could raise the amount of work above
    the ticket is set here or removed here, duplicates included, so that no parser can pick another.
    """
    body = call.body
    model = msgspec.json.encode(call.request.model)
    salt = msgspec.json.encode(call.cache_salt)
    if isinstance(call.request, EmbeddingRequest):
        texts = msgspec.json.encode(call.request.input)
        fixed: dict[str, bytes | None] = {"stream": None, "stream_options": None, "cache_salt": salt}
        return with_members(body, {"model": model, "input": texts, **fixed, **extra})
    options: dict[str, bytes | None] = {"include_usage": _TRUE}
    if continuous_usage:
        options["continuous_usage_stats"] = _TRUE
    changes: dict[str, bytes | None] = {
        "stream": _TRUE,
        "stream_options": _merged_options(body, options),
        "max_tokens": b"%d" % call.completion_max,
        "max_completion_tokens": None,
        "model": model,
        "n": b"%d" % call.request.copies,
        "cache_salt": salt,
        **extra,
    }
    if isinstance(call.request, CompletionRequest):
        # How many prompts there are decides how much is generated.
        changes["prompt"] = msgspec.json.encode(call.request.prompt)
    return with_members(body, changes)


def asks_for(body: bytes, name: str) -> bool:
    """Whether the client's body sets the top-level member `name` to true."""
    return any(body[m.value : m.end] == _TRUE for m in members(body) if m.key == name)


def asks_for_continuous_usage(body: bytes) -> bool:
    """Whether the client itself asked for counts in every chunk (an extension of several engines)."""
    options = _options(body)
    return options is not None and asks_for(options, "continuous_usage_stats")


def _merged_options(body: bytes, options: Mapping[str, bytes | None]) -> bytes:
    given = _options(body)
    return with_members(b"{}" if given is None else given, options)


def _options(body: bytes) -> bytes | None:
    # The last of several is the one that parsers take.
    given = [body[m.value : m.end] for m in members(body) if m.key == "stream_options"]
    return given[-1] if given and given[-1].startswith(b"{") else None
