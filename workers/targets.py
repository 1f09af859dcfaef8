"""Where a request can be sent: an enrolled worker, or a plain OpenAI upstream that the operator trusts.

Values only. Whether a target is alive and how loaded it is, is `workers.registry`'s and `workers.load`'s business.
"""

import uuid
from typing import Literal

import msgspec

from cocoon.endpoints import EndpointName
from cocoon.enrolment import ServedModel
from cocoon.receipt import NO_STAKE

EvidenceLevel = Literal["none", "tdx", "tdx+gpu"]
"""What has been *verified* about a target, under the gateway's policy."""
Requirement = Literal["any", "tdx", "tdx+gpu"]
"""What a request demands of its target's evidence."""

_UPSTREAM_NAMESPACE = uuid.UUID("6f1c9f0e-4c39-5d0c-8a0b-0b2f5f1d7c11")
_WORKER_NAMESPACE = uuid.UUID("0d5a7b52-8f0e-5f5b-9a3c-5b1e2c9e4a77")


class PostedAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a worker asks for one model, in nano per million tokens. `version` is its row of `asks`; 0 is none yet."""

    version: int
    model: str
    prompt: int
    cached: int
    completion: int
    or_ceiling: bool


class Worker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An enrolled worker. `not_after` (Unix seconds) ends its keyset, `capacity` is requests in flight.

    `evidence` is what was verified and all that routing looks at, until `attested_until` (Unix seconds; 0 where
    there is no evidence). `tee_type` names what was verified for people; a simulated TEE says so. A quarantined worker
    gets no requests. `manifest_sha256` is the digest of the model manifest that its keyset names, empty without one.
    """

    worker_id: uuid.UUID
    name: str
    url: str
    host: str
    port: int
    models: tuple[ServedModel, ...]
    capacity: int
    engine: str
    tee_type: str
    keyset: bytes
    keyset_digest: bytes
    boot_id: bytes
    tls_spki_sha256: bytes
    receipt_pk: bytes
    not_before: int
    not_after: int
    stake: bytes = NO_STAKE
    evidence: EvidenceLevel = "none"
    attested_until: int = 0
    quarantined: bool = False
    manifest_sha256: bytes = b""
    asks: tuple[PostedAsk, ...] = ()

    @property
    def target_id(self) -> uuid.UUID:
        """What routing knows the target by."""
        return self.worker_id

    def served_models(self) -> tuple[ServedModel, ...]:
        """Public model names with what one request may use."""
        return self.models

    def ask(self, model: str) -> PostedAsk | None:
        """What it asks for the model; None means the network's price."""
        return next((ask for ask in self.asks if ask.model == model), None)


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A trusted OpenAI-compatible URL without an agent: no ticket, no receipt, evidence `none`.

    `models` maps public names to the upstream's own; `path` is the base URL's path without a final slash. `capacity`
    is requests in flight for each gateway process.
    """

    upstream_id: uuid.UUID
    name: str
    host: str
    port: int
    tls: bool
    path: str
    models: dict[str, str]
    context_tokens: int
    capacity: int
    endpoints: tuple[EndpointName, ...] = ("chat",)
    api_key: str | None = None
    evidence: EvidenceLevel = "none"

    @property
    def target_id(self) -> uuid.UUID:
        """What routing knows the target by."""
        return self.upstream_id

    @property
    def manifest_sha256(self) -> bytes:
        """Nobody says which weights it serves."""
        return b""

    def served_models(self) -> tuple[ServedModel, ...]:
        """Public model names with what one request may use."""
        return tuple(
            ServedModel(id=name, context_tokens=self.context_tokens, endpoints=self.endpoints) for name in self.models
        )

    def __repr__(self) -> str:
        return f"Upstream(name={self.name!r}, host={self.host!r}, port={self.port}, path={self.path!r}, api_key=***)"


Target = Worker | Upstream


def worker_id_of(key_id: uuid.UUID, name: str) -> uuid.UUID:
    """The id of the worker that enrols as `name` with this worker key: the same after every restart."""
    return uuid.uuid5(_WORKER_NAMESPACE, f"{key_id}/{name}")


def upstream_id_of(name: str) -> uuid.UUID:
    """The id of the upstream of this name, the same in every gateway."""
    return uuid.uuid5(_UPSTREAM_NAMESPACE, name)
