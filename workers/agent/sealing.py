"""Opens sealed jobs, and seals their answers (PROTOCOL §3).

What the clear header promised is compared with what the body asks for before any work: the gateway held money and
signed a ticket for the header, and sees nothing of the body.
"""

from cocoon import sealed
from cocoon.clock import Clock
from cocoon.endpoints import ENDPOINTS, Endpoint
from cocoon.errors import MalformedError
from cocoon.openai import FieldError, ModelRequest, PromptTerms
from cocoon.sealed import OpenedRequest, SealedRequest, UnopenableError
from cocoon.sealed_answer import DATA_BYTES_MAX, AnswerSealer
from cocoon.sealed_trailer import AnswerTrailer
from cocoon.splice import members
from cocoon.ticket import Ticket
from cocoon.usage import TokenUsage
from workers.agent import refusals
from workers.agent.keys import Identity
from workers.agent.refusals import Refusal, RefusedError

COALESCE_S = 0.02
"""Frames of an answer are at least this far apart: one frame for each token would tell the token's length."""
REFUSED = "refused"
_PROMPTS = {endpoint.prompt for endpoint in ENDPOINTS}
"""The members that hold prompts: a body that has another one as well could be read as two requests."""


def read_sealed(ticket: Ticket, body: bytes) -> SealedRequest:
    """The sealed request that the ticket is for.

    Raises:
        RefusedError: not a sealed request, or another one.
    """
    try:
        request = sealed.parse_request(body)
    except MalformedError as error:
        raise RefusedError(refusals.BAD_SEALED) from error
    if ticket.request_digest != request.digest or ticket.job_id.bytes != request.header.job_id:
        raise RefusedError(refusals.OTHER_REQUEST)
    return request


def open_sealed(ticket: Ticket, request: SealedRequest, identity: Identity, now_s: float) -> OpenedRequest:
    """What only this worker can read. The ticket may allow less than the header, and never more.

    Raises:
        RefusedError: expired, not for this keyset, altered, or a ticket for more than the client agreed to.
    """
    header = request.header
    if now_s > header.not_after:
        raise RefusedError(refusals.EXPIRED_SEALED)
    if ticket.max_prompt > header.max_prompt or ticket.max_completion > header.max_completion:
        raise RefusedError(refusals.OTHER_REQUEST)
    try:
        return sealed.open_request(request, identity.digest, identity.sealed_key)
    except UnopenableError as error:
        raise RefusedError(refusals.UNOPENABLE) from error


def check_sealed(
    opened: OpenedRequest, endpoint: Endpoint, request: ModelRequest, *, context_tokens: int, manifest: bytes
) -> None:
    """Check the opened body against its clear header, before any of it reaches the engine.

    The header does not name the endpoint: the body has to be one that only this endpoint reads. Its `max_prompt` has
    to cover the body's bytes, as the gateway has it of the prompts that it can read, so that no prefill is for nothing.

    Raises:
        RefusedError: they differ.
    """
    header, asked = opened.header, request.asked_completion
    try:
        prompts = {member.key for member in members(opened.body) if member.key in _PROMPTS}
        if prompts != {endpoint.prompt}:
            raise MalformedError("the body is for another endpoint")
        sealed.check_inner(
            header,
            model=request.model,
            n=request.copies,
            stream=request.streams,
            # Of one choice of every prompt.
            completion_each=None if asked is None else asked * request.prompts,
            manifest=manifest,
        )
        if request.prompt_max(len(opened.body), PromptTerms(context_tokens, 0, 0)) > header.max_prompt:
            raise RefusedError(refusals.over_prompt(endpoint.prompt))
    except FieldError as error:
        raise RefusedError(refusals.bad_field(error)) from error
    except MalformedError as error:
        raise RefusedError(refusals.OTHER_TERMS) from error


class SealedAnswer:
    """One answer on its way to the client: its data sealed in frames that are `COALESCE_S` apart.

    `random` gives 32 fresh bytes: RN.
    """

    def __init__(self, opened: OpenedRequest, identity: Identity, random: bytes, clock: Clock) -> None:
        self._sealer = AnswerSealer(
            digest=opened.digest, keyset_digest=identity.digest, secret=opened.secret, random=random
        )
        self._clock = clock
        self._waiting: list[bytes] = []
        self._due_at = clock.monotonic()
        self._begun = False

    @property
    def waits(self) -> bool:
        """Whether data waits for its time."""
        return bool(self._waiting)

    @property
    def wait_s(self) -> float:
        """How long until it may be sent."""
        return max(0.0, self._due_at - self._clock.monotonic())

    @property
    def rolling(self) -> bytes:
        """R_k over the frames so far."""
        return self._sealer.rolling

    def add(self, data: bytes) -> bytes:
        """Take data, and give the wire bytes that may be sent now: often b""."""
        if data:
            self._waiting.append(data)
        if not self._waiting or self._clock.monotonic() < self._due_at:
            return b""
        return self.rest()

    def rest(self, data: bytes = b"") -> bytes:
        """The wire bytes of all that waits, and of `data`, in as few frames as may be."""
        whole = b"".join((*self._waiting, data))
        self._waiting.clear()
        self._due_at = self._clock.monotonic() + COALESCE_S
        parts = [] if self._begun else [self._sealer.prelude]
        self._begun = True
        parts += [self._sealer.frame(whole[at : at + DATA_BYTES_MAX]) for at in range(0, len(whole), DATA_BYTES_MAX)]
        return b"".join(parts)

    def end(self, trailer: AnswerTrailer) -> bytes:
        """The wire bytes of the end."""
        return self._sealer.final(b"", trailer.encode())

    def refusal(self, refusal: Refusal) -> bytes:
        """A whole answer that is an error; in place of any other."""
        trailer = AnswerTrailer(v=1, usage=TokenUsage(), finish_reason=REFUSED)
        return self.rest(refusal.body()) + self.end(trailer)
