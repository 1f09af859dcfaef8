"""What we need to know of the OpenAI API: the few request fields we act on, chunks, and the error shape.

Requests keep their bytes; these types only look. Unknown fields are tolerated everywhere (they are the engine's
business); fields we act on must have the right type.
"""

from typing import Annotated, Any, Literal, cast

import msgspec

from cocoon.errors import MalformedError

MAX_CHOICES = 16
"""Largest `n`."""
NanoLimit = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`; what else it holds is passed on untouched."""

    include_usage: bool = False


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only its modality matters here."""

    type: str


class Message(msgspec.Struct, frozen=True):
    """One message; `content` stays raw bytes of JSON.

    The others are where engines also take what is not text; what they hold is only asked whether it is there.
    """

    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")
    audio: Any = None
    image: Any = None
    images: Any = None
    video: Any = None
    videos: Any = None
    file: Any = None
    files: Any = None

    @property
    def has_attachments(self) -> bool:
        """Whether it holds anything beside its content."""
        return bool(self.audio or self.image or self.images or self.video or self.videos or self.file or self.files)


class MaxPrice(msgspec.Struct, frozen=True):
    """The most that the client pays, in nano per million tokens."""

    prompt: NanoLimit | None = None
    completion: NanoLimit | None = None


class Provider(msgspec.Struct, frozen=True):
    """Our routing preferences (DESIGN §4). A bare `max_price` is nano per million completion tokens."""

    require: Literal["any", "tdx", "tdx+gpu"] = "any"
    max_price: NanoLimit | MaxPrice | None = None
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
        one, other = self.max_tokens, self.max_completion_tokens
        if one is None or other is None:
            return other if one is None else one
        return max(one, other)


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
    error: Any = None
    """Whatever an engine puts there; None when it did not fail."""


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


def decode_chat(body: bytes) -> ChatRequest:
    """The request in a client's body.

    Raises:
        MalformedError: not UTF-8, not JSON, nested too deeply, or a field we act on has the wrong type. The message
            names the place and may be shown to the client.
    """
    try:
        if not body.isascii():
            body.decode()
        return chat_request_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise MalformedError(str(error)) from error
    except msgspec.DecodeError as error:
        raise MalformedError("the body is not valid JSON") from error
    except UnicodeDecodeError as error:
        raise MalformedError("the body is not valid UTF-8") from error
    except RecursionError as error:
        raise MalformedError("the body is nested too deeply") from error


def decode_chunk(payload: bytes) -> Chunk:
    """What metering reads of an engine's event or unary answer.

    Raises:
        MalformedError: not JSON, not UTF-8 where we look, nested too deeply, or of another shape.
    """
    try:
        return chunk_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError("the engine's answer is not in the OpenAI format") from error


def error_json(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """The bytes of an OpenAI-shaped error."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(message=message, type=kind, param=param, code=code)))


def as_openai_error(body: bytes) -> bytes:
    """An engine's error body in OpenAI's shape, whatever shape it came in (SGLang's is flat)."""
    message, param, code = "The engine refused the request.", None, None
    try:
        document = any_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        document = None
    if isinstance(document, dict):
        outer = cast("dict[str, Any]", document)
        inner = outer.get("error", outer)
        if isinstance(inner, dict):
            found = cast("dict[str, Any]", inner)
            message = found["message"] if isinstance(found.get("message"), str) else message
            param = found["param"] if isinstance(found.get("param"), str) else None
            code = str(found["code"]) if isinstance(found.get("code"), str | int) else None
    return error_json(message, "invalid_request_error", param=param, code=code)
