"""Requests that hold bare texts rather than messages: `POST /v1/completions` and `POST /v1/embeddings`.

A text is a string or an array of tokens, and a request may hold one text or an array of them, all of one kind
(platform.openai.com/docs/api-reference/completions, .../embeddings). Each is a prompt of its own.
"""

from typing import Annotated, Literal

import msgspec

from cocoon.openai import FieldError, ModelRequest, PromptTerms, require_choices, require_positive

CHOICES_MAX = 128
"""Most completions of one request, over all its prompts."""
INPUTS_MAX = 2048
"""Most texts to embed at once."""
COMPLETION_DEFAULT = 16
"""The API's own `max_tokens` when none is given."""
TEXT_TOKENS_EXTRA = 8
"""Tokens that an engine may add to a text: its beginning and end, the marks around a suffix."""

Token = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Texts = str | list[str | Token | list[Token]]


class CompletionRequest(ModelRequest, frozen=True, kw_only=True):
    """The fields of `POST /v1/completions` that we act on."""

    prompt: Texts
    best_of: int | None = None

    completion_default = COMPLETION_DEFAULT

    @property
    def prompts(self) -> int:
        """Each text is completed by itself."""
        return count(self.prompt)

    @property
    def choices(self) -> int:
        """`best_of` completions are generated for each prompt, of which `n` are returned."""
        return self.prompts * max(self.copies, self.best_of or 1)

    def prompt_max(self, body_bytes: int, terms: PromptTerms) -> int:
        """Bytes bound tokens, for strings and for tokens written in digits; no text is longer than the context."""
        return texts_max(self.prompts, body_bytes, terms)

    def check(self) -> None:
        """Texts of one kind, not too many answers, and nothing chosen among answers that are streamed."""
        ModelRequest.check(self)
        check_texts("prompt", self.prompt)
        require_positive("max_tokens", self.max_tokens)
        require_choices("n", self.copies)
        if self.best_of is not None:
            require_choices("best_of", self.best_of)
            if self.best_of < self.copies:
                raise FieldError("best_of must not be less than n.", param="best_of", reason="invalid_value")
            if self.best_of > self.copies and self.streams:
                raise FieldError("best_of cannot be streamed.", param="best_of", reason="invalid_value")
        if self.choices > CHOICES_MAX:
            raise FieldError(
                f"{self.choices} completions in one request; the most is {CHOICES_MAX}.",
                param="prompt", reason="array_too_long",
            )  # fmt: skip


class EmbeddingRequest(ModelRequest, frozen=True, kw_only=True):
    """The fields of `POST /v1/embeddings` that we act on. Nothing is generated: only the prompt costs anything."""

    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None

    @property
    def streams(self) -> bool:
        """Never."""
        return False

    @property
    def wants_usage(self) -> bool:
        """There is no stream to show it in."""
        return False

    @property
    def copies(self) -> int:
        """One vector for each text."""
        return 1

    @property
    def choices(self) -> int:
        """Nothing is generated; one, so that shares of nothing can be computed."""
        return 1

    @property
    def prompts(self) -> int:
        """Each text is embedded by itself."""
        return count(self.input)

    @property
    def asked_completion(self) -> int | None:
        """None are generated."""
        return 0

    def prompt_max(self, body_bytes: int, terms: PromptTerms) -> int:
        """As for completions."""
        return texts_max(self.prompts, body_bytes, terms)

    def check(self) -> None:
        """Texts of one kind, none empty, not too many, and no stream."""
        ModelRequest.check(self)
        if self.stream:
            raise FieldError("Embeddings are not streamed.", param="stream", reason="invalid_value")
        require_positive("dimensions", self.dimensions)
        check_texts("input", self.input)
        if self.prompts > INPUTS_MAX:
            raise FieldError(f"More than {INPUTS_MAX} texts.", param="input", reason="array_too_long")
        if self.input == "" or (isinstance(self.input, list) and "" in self.input):
            raise FieldError("input must not hold empty texts.", param="input", reason="invalid_value")


def count(texts: Texts) -> int:
    """How many texts there are; an array of tokens is one."""
    if isinstance(texts, str) or not texts or isinstance(texts[0], int):
        return 1
    return len(texts)


def check_texts(name: str, texts: Texts) -> None:
    """Refuse an array that is empty or of several kinds, and empty arrays of tokens.

    Raises:
        FieldError: it is.
    """
    if isinstance(texts, str):
        return
    if not texts or [] in texts:
        raise FieldError(f"{name} must not be empty.", param=name, reason="empty_array")
    kind = type(texts[0])
    if any(type(text) is not kind for text in texts):
        raise FieldError(
            f"{name} must be a string, an array of strings, an array of tokens, or an array of arrays of tokens.",
            param=name, reason="invalid_type",
        )  # fmt: skip


def texts_max(texts: int, body_bytes: int, terms: PromptTerms) -> int:
    """Tokens of that many texts at most, in a body of that length."""
    return min(terms.context * texts, body_bytes + terms.base + TEXT_TOKENS_EXTRA * texts)
