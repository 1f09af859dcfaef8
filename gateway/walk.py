"""What is known of one request: its outside, and everything that its end needs, whenever the end comes."""

import uuid

import msgspec

from cocoon.endpoints import Endpoint
from cocoon.errors import CocoonError
from cocoon.openai import ModelRequest
from cocoon.sealed import SealedRequest
from cocoon.tracing import Trace
from gateway.admission import Admission
from gateway.attempt import Attempt
from gateway.auth import Principal
from gateway.errors import UpstreamRefusedError
from gateway.exchange import Event, Exchange, State
from gateway.limits import Permit
from gateway.outcomes import Turn


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What came from outside before the body."""

    endpoint: Endpoint
    authorization: bytes | None
    origin: str | None = None
    traceparent: str | None = None
    salt: str | None = None
    path: str = ""
    idempotency_key: bytes | None = None
    max_price: str | None = None
    manifest: str | None = None
    sealed: bool = False


class Walk:
    """What is known of one request so far: everything that the end needs, whenever it comes."""

    __slots__ = (
        "admission", "attempt", "body", "endpoint", "error", "exchange", "failed", "job_id", "manifest", "name",
        "permit", "principal", "request", "sealed", "trace", "turn",
    )  # fmt: skip

    def __init__(self, job_id: uuid.UUID, exchange: Exchange, trace: Trace, endpoint: Endpoint) -> None:
        self.job_id = job_id
        self.name = str(job_id)
        self.exchange = exchange
        self.trace = trace
        self.endpoint = endpoint
        self.body = b""
        self.manifest: bytes | None = None
        """The digest of the only model manifest that will do."""
        self.principal: Principal | None = None
        self.request: ModelRequest | None = None
        self.sealed: SealedRequest | None = None
        self.turn: Turn | None = None
        self.permit: Permit | None = None
        self.admission: Admission | None = None
        self.attempt: Attempt | None = None
        self.failed: Attempt | None = None
        """The last attempt that was given up: what a job that nobody answers is recorded under."""
        self.error: CocoonError | None = None

    def fail(self, error: CocoonError) -> None:
        """Note what went wrong; an exchange that has ended stays as it ended.

        While a worker is at work it breaks the answer; before that, or by the engine's word, it is a refusal.
        """
        self.error = error
        at_work = self.exchange.state in {State.DISPATCHED, State.RELAYING}
        refused = not at_work or isinstance(error, UpstreamRefusedError)
        self.exchange.end(Event.REFUSE if refused else Event.BREAK)
