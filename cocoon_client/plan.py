"""What an ordinary OpenAI request becomes before it is sealed: its endpoint, its terms, who may open it."""

import uuid
from typing import Final

import msgspec

from cocoon.endpoints import CHAT, ENDPOINTS, Endpoint
from cocoon.errors import MalformedError
from cocoon.openai import ModelRequest, PromptTerms
from cocoon.sealed import BODY_BYTES_MAX, Terms, key_tag
from cocoon_client.errors import NotSealableError

NOT_AFTER_S: Final = 900
"""How long a sealed request may wait for a worker to begin: a gateway cannot keep it for another day."""
DEFAULT_COMPLETION: Final = 4096
"""Tokens per choice where neither request nor API name a maximum (PROTOCOL §6)."""
PROMPT_MAX: Final = 1 << 20
BASE_TOKENS: Final = 64
TOKENS_PER_MESSAGE: Final = 16
"""More than any chat template is known to add; the bytes of the JSON around a message are a bound already."""


class Plan(msgspec.Struct, frozen=True):
    """A request that can be sealed. `manifest` is the digest of the weights it insists on, or None."""

    endpoint: Endpoint
    request: ModelRequest
    body: bytes
    manifest: bytes | None

    @property
    def model(self) -> str:
        """The model it asks for."""
        return self.request.model

    def terms(self, *, job_id: uuid.UUID, api_key: str, context_tokens: int, now_s: float) -> Terms:
        """The clear header's part that the client decides; token maxima are totals over `n` and all prompts.

        Raises:
            NotSealableError: a value is out of its range.
        """
        request = self.request
        asked = request.asked_completion
        if asked is None:
            default = request.completion_default
            each = DEFAULT_COMPLETION if default is None else default
            completion = min(each, context_tokens) * request.choices
        else:
            # Exactly what the worker finds in the body, or it refuses.
            completion = asked * request.copies * request.prompts
        # A gateway cuts a chat's bound down to the context that it knows; the worker's own may be larger.
        context = PROMPT_MAX if self.endpoint is CHAT else context_tokens
        try:
            limits = PromptTerms(context=context, base=BASE_TOKENS, per_message=TOKENS_PER_MESSAGE)
            terms = Terms(
                job_id=job_id.bytes, key_tag=key_tag(api_key), model=request.model,
                max_prompt=request.prompt_max(len(self.body), limits), max_completion=completion, n=request.copies,
                stream=request.streams, not_after=int(now_s) + NOT_AFTER_S, manifest=self.manifest,
            )  # fmt: skip
            return msgspec.convert(msgspec.structs.asdict(terms), Terms, builtin_types=(bytes,))
        except (MalformedError, msgspec.ValidationError) as error:
            raise NotSealableError(f"the request cannot be sealed: {error}") from error


def plan_request(path: str, body: bytes, pinned: dict[str, bytes]) -> Plan:
    """How to seal a request to an endpoint. `path` ends in the endpoint's path; what stands before it is the base URL.

    Raises:
        NotSealableError: there is no sealed form of it. It must not be sent plainly.
    """
    endpoint = next((known for known in ENDPOINTS if path.endswith(known.path)), None)
    if endpoint is None:
        raise NotSealableError(f"{path} cannot be sealed, and nothing is sent plainly")
    if len(body) > BODY_BYTES_MAX:
        raise NotSealableError(f"a sealed body has at most {BODY_BYTES_MAX} bytes")
    try:
        request = endpoint.decode(body)
        request.check()
    except MalformedError as error:
        raise NotSealableError(f"the request cannot be read: {error}") from error
    return Plan(endpoint, request, body, _manifest(request, pinned))


def _manifest(request: ModelRequest, pinned: dict[str, bytes]) -> bytes | None:
    """The client's own pin; a request may name one as well, and then both have to agree."""
    named = None if request.provider is None else request.provider.model_manifest
    own = pinned.get(request.model)
    if named is None:
        return own
    try:
        digest = bytes.fromhex(named)
    except ValueError as error:
        raise NotSealableError("provider.model_manifest is not a digest in hex") from error
    if len(digest) != 32 or own not in (None, digest):  # noqa: PLR2004  SHA-256
        raise NotSealableError("provider.model_manifest is not the manifest that this client pins for the model")
    return digest
