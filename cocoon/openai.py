"""What we need to know of the OpenAI API: the few request fields we act on, chunks, and the error shape.

Requests keep their bytes; these types only look. Unknown fields are tolerated everywhere (they are the engine's
business); fields we act on must have the right type. `cocoon.endpoints` says which request belongs to which path.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec

from cocoon.errors import MalformedError

MAX_CHOICES = 16
"""Largest `n`."""
MESSAGES_MAX = 100_000
TEXT_PARTS = frozenset({"text", "refusal"})
NO_MEDIA: Mapping[str, int] = MappingProxyType({})
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


class FieldError(MalformedError):
    """A field of a request has an impossible value. `param` names it, `reason` is a stable code."""

    code: ClassVar[str] = "invalid_request"

    def __init__(self, message: str | None = None, *, param: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.reason = reason


class PromptTerms(msgspec.Struct, frozen=True):
    """What a model adds to the tokens of a prompt, and the most that it takes, all in tokens.

    `media` is the most that one content part of a type becomes; any other that is not text is as long as the context.
    """

    context: int
    base: int
    per_message: int
    media: Mapping[str, int] = NO_MEDIA


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the requests of all endpoints share, and what each has to say about its own worst case."""

    completion_default: ClassVar[int | None] = None
    """Tokens per choice when no maximum is named, where the API itself says so; None leaves it to the model."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
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
    def copies(self) -> int:
        """Answers to each prompt: `n`, one when absent."""
        return 1 if self.n is None else self.n

    @property
    def prompts(self) -> int:
        """How many prompts are answered, each by itself."""
        return 1

    @property
    def choices(self) -> int:
        """Completions that an engine generates at most, over all prompts."""
        return self.copies

    @property
    def asked_completion(self) -> int | None:
        """The most tokens per choice, None when no maximum was given."""
        return self.max_tokens

    def prompt_max(self, body_bytes: int, terms: PromptTerms) -> int:
        """Tokens that the prompts have at most. `body_bytes` is the length of the whole body.

        Raises:
            FieldError: the prompt cannot be read.
        """
        del body_bytes
        return terms.context * self.prompts

    def check(self) -> None:
        """Look at the values; types were looked at before.

        Raises:
            FieldError: one is impossible.
        """
        if not self.model:
            raise FieldError("model must not be empty.", param="model", reason="invalid_value")


class ChatRequest(ModelRequest, frozen=True, kw_only=True):
    """The fields of `POST /v1/chat/completions` that we act on."""

    messages: list[Message]
    max_completion_tokens: int | None = None

    @property
    def asked_completion(self) -> int | None:
        """The larger of the two maxima per choice, None when neither was given."""
        one, other = self.max_tokens, self.max_completion_tokens
        if one is None or other is None:
            return other if one is None else one
        return max(one, other)

    def prompt_max(self, body_bytes: int, terms: PromptTerms) -> int:
        """Bytes bound tokens; what is not text counts as much as the model's terms say of it (PROTOCOL §2)."""
        media = self._media_max(terms)
        return min(terms.context, body_bytes + terms.per_message * len(self.messages) + terms.base + media)

    def check(self) -> None:
        """Messages there, maxima and `n` in their ranges."""
        ModelRequest.check(self)
        if not self.messages:
            raise FieldError("messages must not be empty.", param="messages", reason="empty_array")
        if len(self.messages) > MESSAGES_MAX:
            raise FieldError(f"More than {MESSAGES_MAX} messages.", param="messages", reason="array_too_long")
        require_positive("max_tokens", self.max_tokens)
        require_positive("max_completion_tokens", self.max_completion_tokens)
        require_choices("n", self.copies)

    def _media_max(self, terms: PromptTerms) -> int:
        """Tokens of all that is not text; what the terms do not know counts as the whole context."""
        total = 0
        for message in self.messages:
            if message.has_attachments:
                return terms.context
            content = bytes(message.content)
            if content[:1] not in {b'"', b"n"}:
                try:
                    parts = parts_decoder.decode(content)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise FieldError(
                        "content must be a string or an array of parts with a type.",
                        param="messages", reason="invalid_type",
                    ) from error  # fmt: skip
                for part in parts:
                    if part.type not in TEXT_PARTS:
                        total += terms.media.get(part.type, terms.context)
        return total


def require_positive(name: str, value: int | None) -> None:
    """Refuse a maximum that is there and below one.

    Raises:
        FieldError: it is.
    """
    if value is not None and value < 1:
        raise FieldError(f"{name} must be at least 1.", param=name, reason="integer_below_min_value")


def require_choices(name: str, value: int) -> None:
    """Refuse a number of answers out of range.

    Raises:
        FieldError: it is.
    """
    if not 1 <= value <= MAX_CHOICES:
        raise FieldError(f"{name} must lie between 1 and {MAX_CHOICES}.", param=name, reason="integer_out_of_range")


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


class EmbeddingsAnswer(msgspec.Struct, frozen=True):
    """The parts of an answer of embeddings that metering reads; the vectors stay as they are."""

    data: tuple[msgspec.Raw, ...] = ()
    usage: Usage | None = None
    error: Any = None


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of an OpenAI error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """`{"error": {...}}`, the only shape of error that leaves us."""

    error: ErrorDetail


chunk_decoder = msgspec.json.Decoder(Chunk)
embeddings_decoder = msgspec.json.Decoder(EmbeddingsAnswer)
parts_decoder = msgspec.json.Decoder(list[ContentPart])
any_decoder = msgspec.json.Decoder(Any)


def decode_chunk(payload: bytes) -> Chunk:
    """What metering reads of an engine's event or unary answer.

    Raises:
        MalformedError: not JSON, not UTF-8 where we look, nested too deeply, or of another shape.
    """
    try:
        return chunk_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError("the engine's answer is not in the OpenAI format") from error


def decode_embeddings(body: bytes) -> EmbeddingsAnswer:
    """What metering reads of an engine's embeddings.

    Raises:
        MalformedError: as `decode_chunk`.
    """
    try:
        return embeddings_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError("the engine's answer is not in the OpenAI format") from error


def error_json(
    message: str, kind: str, *, param: str | None = None, code: str | None = None,
    details: Mapping[str, str | int] | None = None,
) -> bytes:  # fmt: skip
    """The bytes of an OpenAI-shaped error; `details` stand beside the four members that every error has."""
    if details:
        four = {"message": message, "type": kind, "param": param, "code": code}
        return msgspec.json.encode({"error": {**four, **details}})
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
