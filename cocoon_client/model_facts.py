"""What is read of `GET /v1/models/{id}`: the gateway's word, by which nothing is believed."""

import contextlib
from typing import Annotated, Final, Self

import msgspec

from cocoon_client.opening import ShownPrice

DEFAULT_CONTEXT: Final = 1 << 20


class _Pricing(msgspec.Struct, frozen=True):
    prompt_nano_per_mtok: int
    cached_prompt_nano_per_mtok: int
    completion_nano_per_mtok: int


class ModelFacts(msgspec.Struct, frozen=True):
    """A model's context and prices. A wrong context only makes the gateway hold too little or too much."""

    context_length: Annotated[int, msgspec.Meta(ge=1)] = DEFAULT_CONTEXT
    pricing: _Pricing | None = None

    @classmethod
    def read(cls, answer: bytes | None) -> Self:
        """What the answer says; what is said of no model where there was none, or it is malformed."""
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.decode(answer or b"", type=cls)
        return cls()

    @property
    def price(self) -> ShownPrice | None:
        """What the gateway said that it charges."""
        shown = self.pricing
        if shown is None:
            return None
        return ShownPrice(shown.prompt_nano_per_mtok, shown.cached_prompt_nano_per_mtok, shown.completion_nano_per_mtok)
