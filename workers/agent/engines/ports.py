"""What the agent asks of an engine."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

import msgspec

from cocoon.endpoints import Endpoint
from cocoon.errors import CocoonError
from cocoon.openai import ModelRequest


class EngineError(CocoonError):
    """The engine failed."""

    code: ClassVar[str] = "engine_failed"
    transient: ClassVar[bool] = True


class EngineUnavailableError(EngineError):
    """The engine is not reachable."""

    code: ClassVar[str] = "engine_unavailable"


class EngineStartError(EngineError):
    """The engine does not start."""

    code: ClassVar[str] = "engine_start_failed"
    transient: ClassVar[bool] = False


class EngineRefusedError(EngineError):
    """The engine answered with an HTTP error before generating anything."""

    code: ClassVar[str] = "engine_refused"
    transient: ClassVar[bool] = False

    def __init__(self, status: int, body: bytes, retry_after: bytes | None) -> None:
        super().__init__()
        self.status = status
        self.body = body
        self.retry_after = retry_after


class Dialect(msgspec.Struct, frozen=True):
    """How an engine's stream differs from OpenAI's.

    `injected` maps each member that the agent makes the engine add to its chunks to the request member with which a
    client asks for it itself (only then it is shown). `usage_per_choice`: one usage chunk per choice, not one in all.
    """

    injected: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])
    usage_per_choice: bool = False


class EngineCall(msgspec.Struct, frozen=True):
    """One job for an engine. `completion_max` is per choice; `rid` names the job in the engine.

    What two jobs have in common may be taken from a cache only where their `cache_salt` is the same.
    """

    body: bytes
    endpoint: Endpoint
    request: ModelRequest
    completion_max: int
    rid: str
    traceparent: str | None
    cache_salt: str = ""


class Load(msgspec.Struct, frozen=True):
    """Requests in the engine."""

    running: int
    queued: int


class Generation(Protocol):
    """An answer that the engine has begun."""

    async def read(self) -> bytes:
        """More bytes of the event stream, b"" at its end. Cancelling it loses nothing: the next call goes on.

        Raises:
            EngineError: the engine went away, or was silent for too long.
        """
        ...

    async def abort(self) -> None:
        """Stop the generation now, whatever it is doing. Idempotent, bounded in time, never raises."""
        ...


class Engine(Protocol):
    """An engine and, when it was launched, its process."""

    @property
    def label(self) -> str:
        """Name and version for people."""
        ...

    @property
    def dialect(self) -> Dialect:
        """How its stream reads."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it takes jobs now."""
        ...

    async def run(self) -> None:
        """Keep it available until cancelled; then stop what was launched.

        Raises:
            EngineStartError: it never became ready.
        """
        ...

    async def generate(self, call: EngineCall) -> Generation:
        """Begin a job; returns when the engine has accepted it.

        Raises:
            EngineRefusedError: it answered with an error.
            EngineError: it failed.
        """
        ...

    async def load(self) -> Load | None:
        """Its own view of its load, None when it does not say. Bounded in time, never raises."""
        ...
