"""What a worker agent and a gateway tell each other outside of jobs: keyset, enrolment, heartbeat.

The keyset names the agent's keys (PROTOCOL §1). Its digest, not a URL or a name, is what tickets, receipts and the
log refer to. Fields whose layer is not built yet (HPKE X25519, delegation, manifest) are empty, never invented.
"""

import hashlib
import uuid
from typing import Annotated, Literal

import msgspec

from cocoon import canonical
from cocoon.endpoints import EndpointName
from cocoon.statement import Beacon, Digest

KEYSET_LABEL = b"cocoon/keyset/1\x00"
KEYSET_SECONDS_MAX = 6 * 3600
ENROL_PATH = "/v1/workers/enrol"
CHALLENGE_PATH = "/v1/workers/challenge"
HEARTBEAT_PATH = "/v1/workers/heartbeat"
RENEW_PATH = "/v1/workers/token"
STAKE_TERMS_PATH = "/v1/workers/stake"
MANIFEST_BYTES_MAX = 256 * 1024
"""Longest model manifest; one of a thousand files needs half of it."""
EVIDENCE_BYTES_MAX = 1024 * 1024
"""Longest evidence of one enrolment: a quote, an event log, the reports and chains of eight GPUs."""
STAKE_BYTES_MAX = 4 * 1024
"""Longest configuration of a stake: three cells."""
HEARTBEAT_SECONDS = 2.0
"""How often an agent reports; three missed reports take it out of rotation."""
HEARTBEATS_MISSED_MAX = 3

ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._/:-]*\Z")]
NanoPerMtok = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Keyset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of one boot of one agent; times are Unix seconds, at most `KEYSET_SECONDS_MAX` apart."""

    v: int
    stake_addr: str
    operator: str
    tls_spki_sha256: Digest
    hpke_xwing: bytes
    hpke_x25519: bytes
    receipt_pk: Digest
    delegation: bytes
    model_manifest_sha256: bytes
    boot_id: bytes
    not_before: int
    not_after: int

    def encode(self) -> bytes:
        """The canonical bytes that are digested and carried."""
        return canonical.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "Keyset":
        """The keyset in its carried bytes.

        Raises:
            MalformedError: not the canonical encoding of a keyset.
        """
        return canonical.decode(raw, Keyset)


def keyset_digest(raw: bytes) -> bytes:
    """Digest of a keyset's exact bytes."""
    return hashlib.sha256(KEYSET_LABEL + raw).digest()


class ServedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model of one worker; `context_tokens` is what a single request may use.

    `endpoints` are those that the engine serves with it. Agents that do not say so serve chat, the first there was.
    """

    id: ModelName
    context_tokens: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    endpoints: Annotated[tuple[EndpointName, ...], msgspec.Meta(min_length=1, max_length=8)] = ("chat",)


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker asks for one model, in nano per million tokens: at or below the network's price (PROTOCOL §6).

    `or_ceiling`: where the network's price is lower than the ask, work at that price rather than not at all.
    """

    model: ModelName
    prompt: NanoPerMtok
    cached: NanoPerMtok
    completion: NanoPerMtok
    or_ceiling: bool = False


class EnrolRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`POST /v1/workers/enrol`, authorised by a worker key. `capacity` is requests in flight.

    A model without an ask is served at the network's price. Enrolling again with other asks changes nothing else.
    `evidence` is the bytes of `attestation.evidence.Evidence` for this very keyset and the nonce of a challenge, and
    empty exactly where `tee_type` is `none`. Enrolling again with fresh evidence renews its time.
    `manifest` is the document whose digest the keyset names, and empty where it names none. `stake` is the
    configuration cell (a BoC) of the stake contract whose address the keyset names, and empty where it names none.
    """

    keyset: bytes
    url: Annotated[str, msgspec.Meta(max_length=256)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    models: Annotated[tuple[ServedModel, ...], msgspec.Meta(min_length=1, max_length=64)]
    capacity: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    engine: Annotated[str, msgspec.Meta(max_length=64)]
    tee_type: Annotated[str, msgspec.Meta(max_length=32)] = "none"
    asks: Annotated[tuple[Ask, ...], msgspec.Meta(max_length=64)] = ()
    evidence: Annotated[bytes, msgspec.Meta(max_length=EVIDENCE_BYTES_MAX)] = b""
    manifest: Annotated[bytes, msgspec.Meta(max_length=MANIFEST_BYTES_MAX)] = b""
    stake: Annotated[bytes, msgspec.Meta(max_length=STAKE_BYTES_MAX)] = b""


class StakeTermsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /v1/workers/stake`: what a stake has to say to count here. Keys and hashes are hexadecimal.

    `operator` is the operator's wallet, None where any will do; `operator_key` the key under which tickets count.
    `unit_nano` of stake bring one request in flight; 0 where requests do not depend on stakes. Anybody may ask, and
    nothing proves the answer: know the operator from elsewhere before you bond.
    """

    global_id: int
    operator: str | None
    operator_key: str
    code_hash: str
    unbond_s_min: int
    bounty_bps_min: int
    unit_nano: int = 0


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Answer of `POST /v1/workers/challenge`: evidence of one enrolment has to carry `nonce`, within `seconds`.

    `beacon` is the last block that the gateway has seen, absent where it sees no chain: a hint, which proves nothing.
    """

    nonce: Digest
    seconds: int
    beacon: Beacon | None = None


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why evidence was not enough: a code that never changes (`attestation.findings`) and a sentence that may."""

    code: str
    message: str


class EnrolAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Admission: `token` authorises the worker's calls for `token_seconds`, `ticket_key` authenticates tickets.

    A quarantined worker is enrolled and reports, and gets no jobs for the `reasons` that are named. Fresh evidence is
    wanted every `reattest_seconds` (0 is never); what was shown counts until `attested_until` (Unix seconds).
    """

    worker_id: uuid.UUID
    token: str
    token_seconds: int
    ticket_key: bytes
    global_id: int
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    outcome: Literal["admitted", "quarantined"] = "admitted"
    reasons: tuple[Reason, ...] = ()
    attested_until: int = 0
    reattest_seconds: float = 0.0


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answer of `POST /v1/workers/token`, authorised by a token that is still good: the next one."""

    token: str
    token_seconds: int


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/workers/heartbeat`, authorised by the token."""

    running: Annotated[int, msgspec.Meta(ge=0)]
    queued: Annotated[int, msgspec.Meta(ge=0)]
    capacity: Annotated[int, msgspec.Meta(ge=0, le=4096)]
    draining: bool = False


class HeartbeatAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answer of a heartbeat at a gateway that sees the chain: the last block, as in `Challenge`. Others answer 204."""

    beacon: Beacon
