"""Judging an enrolment: from what an agent asks for to a `Worker`, or a refusal with a code.

Pure: no name is resolved, nothing is stored, the caller brings the time.
"""

import datetime as dt
import hmac
import uuid

import msgspec

from cocoon.endpoints import EndpointName
from cocoon.enrolment import KEYSET_SECONDS_MAX, EnrolRequest, Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.manifest import Manifest, manifest_digest
from workers.addresses import parse_endpoint, require_permitted_host
from workers.errors import (
    AskRefusedError,
    EvidenceRefusedError,
    KeysetLifetimeError,
    KeysetRefusedError,
    ManifestRefusedError,
    ModelsRefusedError,
    WorkerURLRefusedError,
)
from workers.judgement import Judged, Outcome
from workers.stakes import stake_of
from workers.targets import PostedAsk, Upstream, Worker, upstream_id_of

KEYSET_BYTES_MAX = 8192
CLOCK_SKEW_S_MAX = 60
"""How far an agent's clock may be ahead of ours."""
_BOOT_ID_BYTES = range(8, 65)
_XWING_BYTES = 1216
_X25519_BYTES = 32
_SIGNATURE_BYTES = 64
_DIGEST_BYTES = 32
_NAME_CHARS_MAX = 128

_LOW_ORDER_POINTS = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    )
)
"""Encodings of Ed25519 points of order 1, 2, 4 and 8: a signature under one of them proves nothing."""


def admit(request: EnrolRequest, *, worker_id: uuid.UUID, now: dt.datetime, allow_private: bool) -> Worker:
    """The worker that `request` describes, at wall time `now`. What it shows for itself is judged apart (`attested`).

    `allow_private` also accepts loopback and private addresses, as in development; never link-local or multicast.

    Raises:
        KeysetRefusedError: the keyset is malformed, or a key in it is unusable.
        KeysetLifetimeError: it is not valid now, or for longer than `KEYSET_SECONDS_MAX`.
        WorkerURLRefusedError: the URL is not `https://host[:port]` or points where the gateway must not go.
        ModelsRefusedError: a model is named twice.
        AskRefusedError: an ask is no price, or of a model that is not served or asked for twice.
        EvidenceRefusedError: a TEE is claimed without evidence, or evidence shown without one.
        StakeRefusedError: it names a stake in another form; whether it may name it, `require_stake` says.
    """
    keyset = _decode_keyset(request.keyset)
    _require_lifetime(keyset, int(now.timestamp()))
    if (request.tee_type != "none") != bool(request.evidence):
        raise EvidenceRefusedError("a TEE is claimed exactly where evidence of it is shown")
    if len({model.id for model in request.models}) != len(request.models):
        raise ModelsRefusedError
    asks = _asks(request)
    endpoint = parse_endpoint(request.url)
    if not endpoint.tls or endpoint.path:
        raise WorkerURLRefusedError("a worker's URL is https://host[:port]")
    require_permitted_host(endpoint.host, allow_private=allow_private)
    return Worker(
        worker_id=worker_id,
        name=request.name,
        url=request.url,
        host=endpoint.host,
        port=endpoint.port,
        models=request.models,
        capacity=request.capacity,
        engine=request.engine,
        tee_type="none",
        # Until it is judged, what is claimed gets nothing.
        quarantined=bool(request.evidence),
        keyset=request.keyset,
        keyset_digest=keyset_digest(request.keyset),
        boot_id=keyset.boot_id,
        tls_spki_sha256=keyset.tls_spki_sha256,
        receipt_pk=keyset.receipt_pk,
        not_before=keyset.not_before,
        not_after=keyset.not_after,
        stake=stake_of(keyset),
        manifest_sha256=keyset.model_manifest_sha256,
        asks=asks,
    )


def require_manifest(request: EnrolRequest, worker: Worker) -> None:
    """Check that the manifest is the one that the keyset, and with it every receipt, will name.

    Raises:
        ManifestRefusedError: another one, none, none that is named, or no manifest at all.
    """
    if not request.manifest and not worker.manifest_sha256:
        return
    if not hmac.compare_digest(manifest_digest(request.manifest), worker.manifest_sha256):
        raise ManifestRefusedError
    try:
        Manifest.decode(request.manifest)
    except MalformedError as error:
        raise ManifestRefusedError(f"what the keyset names is not a model manifest: {error}") from error


def attested(worker: Worker, judged: Judged) -> Worker:
    """The worker with what was found about its evidence. A refused one is never made into a worker."""
    assert judged.outcome is not Outcome.REFUSED, "refusals end an enrolment"
    return msgspec.structs.replace(
        worker,
        tee_type=judged.verdict.tee_type,
        evidence=judged.level if judged.outcome is Outcome.ADMITTED else "none",
        attested_until=judged.verdict.valid_until,
        quarantined=judged.outcome is Outcome.QUARANTINED,
    )


def upstream(
    *, name: str, url: str, models: dict[str, str], context_tokens: int, capacity: int,
    endpoints: tuple[EndpointName, ...] = ("chat",), api_key: str | None = None,
) -> Upstream:  # fmt: skip
    """A plain OpenAI upstream from the operator's settings. Its address is the operator's choice, private or not.

    Raises:
        WorkerURLRefusedError: `url` is not a base URL.
    """
    endpoint = parse_endpoint(url)
    return Upstream(
        upstream_id=upstream_id_of(name),
        name=name,
        host=endpoint.host,
        port=endpoint.port,
        tls=endpoint.tls,
        path=endpoint.path,
        models=models,
        context_tokens=context_tokens,
        capacity=capacity,
        endpoints=endpoints,
        api_key=api_key,
    )


def _asks(request: EnrolRequest) -> tuple[PostedAsk, ...]:
    served = {model.id for model in request.models}
    if not {ask.model for ask in request.asks} <= served or len({ask.model for ask in request.asks}) < len(
        request.asks
    ):
        raise AskRefusedError("asks name served models, each once")
    if any(ask.cached > ask.prompt for ask in request.asks):
        raise AskRefusedError("a cached token never costs more than an uncached one")
    return tuple(
        PostedAsk(
            version=0,
            model=ask.model,
            prompt=ask.prompt,
            cached=ask.cached,
            completion=ask.completion,
            or_ceiling=ask.or_ceiling,
        )
        for ask in request.asks
    )


def _decode_keyset(raw: bytes) -> Keyset:
    if len(raw) > KEYSET_BYTES_MAX:
        raise KeysetRefusedError("the keyset is too long")
    try:
        keyset = Keyset.decode(raw)
    except MalformedError as error:
        raise KeysetRefusedError from error
    if keyset.v != 1:
        raise KeysetRefusedError("the keyset's version is not supported")
    if keyset.receipt_pk in _LOW_ORDER_POINTS:
        raise KeysetRefusedError("the receipt key proves nothing")
    if not any(keyset.tls_spki_sha256):
        raise KeysetRefusedError("the TLS key is missing")
    if len(keyset.boot_id) not in _BOOT_ID_BYTES:
        raise KeysetRefusedError("the boot id has the wrong length")
    if max(len(keyset.stake_addr), len(keyset.operator)) > _NAME_CHARS_MAX:
        raise KeysetRefusedError("an address in the keyset is too long")
    sizes = (
        (keyset.hpke_xwing, _XWING_BYTES),
        (keyset.hpke_x25519, _X25519_BYTES),
        (keyset.delegation, _SIGNATURE_BYTES),
        (keyset.model_manifest_sha256, _DIGEST_BYTES),
    )
    if any(len(value) not in {0, size} for value, size in sizes):
        raise KeysetRefusedError("a key in the keyset has the wrong length")
    return keyset


def _require_lifetime(keyset: Keyset, now_s: int) -> None:
    if not 0 < keyset.not_after - keyset.not_before <= KEYSET_SECONDS_MAX:
        raise KeysetLifetimeError("the keyset's lifetime is out of range")
    if keyset.not_before > now_s + CLOCK_SKEW_S_MAX:
        raise KeysetLifetimeError("the keyset is not valid yet")
    if keyset.not_after <= now_s:
        raise KeysetLifetimeError("the keyset has expired")
