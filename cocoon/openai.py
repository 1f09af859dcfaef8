"""What we need to know of the OpenAI API: the few request fields we act on, chunks, and the error shape.

Requests keep their bytes; these types only look. Unknown fields are tolerated everywhere (they are the engine's
business); fields we act on must have the right type.
"""

from typing import Any, Literal

import msgspec

MAX_CHOICES = 16
"""Largest `n`."""


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`; what else it holds is passed on untouched."""

    include_usage: bool = False


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only its modality matters here."""

    type: str


class Message(msgspec.Struct, frozen=True):
    """One message; `content` stays raw bytes of JSON."""

    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")


class Provider(msgspec.Struct, frozen=True):
    """Our routing preferences (DESIGN §4). `max_price` is nano per million completion tokens."""

    require: Literal["any", "tdx", "tdx+gpu"] = "any"
    max_price: int | None = None
    sort: Literal["latency", "price", "throughput"] = "latency"
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    model_manifest: str | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """The fields of `POST /v1/chat/completions` that we act on."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    user: str | None = None
    provider: Provider | None = None

    @property
    def streams(self) -> bool:
        """Whether the client asked for server-sent events."""
        return self.stream is True

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for the usage chunk of a stream."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def choices(self) -> int:
        """`n`, one when absent."""
        return 1 if self.n is None else self.n

    @property
    def asked_completion(self) -> int | None:
        """The larger of the two maxima per choice, None when neither was given."""
        asked = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return max(asked) if asked else None


class PromptDetails(msgspec.Struct, frozen=True):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """`usage` as engines report it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """A choice of a chunk or of a unary answer."""

    index: int = 0
    finish_reason: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """The parts of a chunk or unary answer that metering reads."""

    choices: tuple[ChunkChoice, ...] = ()
    usage: Usage | None = None
    error: msgspec.Raw | None = None


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of an OpenAI error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """`{"error": {...}}`, the only shape of error that leaves us."""

    error: ErrorDetail


chat_request_decoder = msgspec.json.Decoder(ChatRequest)
chunk_decoder = msgspec.json.Decoder(Chunk)
parts_decoder = msgspec.json.Decoder(list[ContentPart])
any_decoder = msgspec.json.Decoder(Any)


def error_json(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """The bytes of an OpenAI-shaped error."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(message=message, type=kind, param=param, code=code)))
