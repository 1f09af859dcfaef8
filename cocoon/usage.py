"""Token counts of one attempt."""

import msgspec


class TokenUsage(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Tokens of one attempt. `cached` counts the part of `prompt` that the engine's prefix cache served.

    All three are >= 0 and fit in an unsigned 32-bit integer (PROTOCOL §4); `cached <= prompt`.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def __post_init__(self) -> None:
        limit = 2**32
        if not (0 <= self.cached <= self.prompt < limit and 0 <= self.completion < limit):
            raise ValueError("token counts must be 32-bit, and cached must not exceed prompt")

    @property
    def total(self) -> int:
        """Prompt and completion together, as OpenAI counts `total_tokens`."""
        return self.prompt + self.completion

    def capped(self, *, prompt_max: int, completion_max: int) -> "TokenUsage":
        """The same usage, cut down to what a ticket allows."""
        if self.prompt <= prompt_max and self.completion <= completion_max:
            return self
        prompt = min(self.prompt, prompt_max)
        return TokenUsage(
            prompt=prompt, cached=min(self.cached, prompt), completion=min(self.completion, completion_max)
        )
