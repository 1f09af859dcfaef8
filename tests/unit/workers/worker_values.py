"""Values that the worker tests share."""

import uuid
from typing import Any

from cocoon.clock import Clock
from cocoon.enrolment import EnrolRequest, Heartbeat, Keyset, ServedModel, keyset_digest
from workers.registry import Registry
from workers.targets import Upstream, Worker, upstream_id_of

MODEL = "smollm2-135m"
RECEIPT_PK = bytes(range(32))
SPKI = bytes(range(100, 132))


def a_keyset(clock: Clock, **changes: Any) -> Keyset:
    now = int(clock.now().timestamp())
    members: dict[str, Any] = {
        "v": 1,
        "stake_addr": "",
        "operator": "",
        "tls_spki_sha256": SPKI,
        "hpke_xwing": b"",
        "hpke_x25519": b"",
        "receipt_pk": RECEIPT_PK,
        "delegation": b"",
        "model_manifest_sha256": b"",
        "boot_id": b"boot-one-0123456",
        "not_before": now,
        "not_after": now + 3600,
    }
    return Keyset(**{**members, **changes})


def a_request(clock: Clock, keyset: Keyset | bytes | None = None, **changes: Any) -> EnrolRequest:
    raw = keyset if isinstance(keyset, bytes) else (keyset or a_keyset(clock)).encode()
    members: dict[str, Any] = {
        "keyset": raw,
        "url": "https://worker-1.example.org:8443",
        "name": "worker-1",
        "models": (ServedModel(id=MODEL, context_tokens=2048),),
        "capacity": 4,
        "engine": "xllamacpp",
    }
    return EnrolRequest(**{**members, **changes})


def a_worker(clock: Clock, number: int = 1, **changes: Any) -> Worker:
    raw = a_keyset(clock).encode()
    now = int(clock.now().timestamp())
    members: dict[str, Any] = {
        "worker_id": uuid.UUID(int=number),
        "name": f"worker-{number}",
        "url": f"https://192.0.2.{number}:8443",
        "host": f"192.0.2.{number}",
        "port": 8443,
        "models": (ServedModel(id=MODEL, context_tokens=2048),),
        "capacity": 4,
        "engine": "xllamacpp",
        "tee_type": "none",
        "keyset": raw,
        "keyset_digest": keyset_digest(raw),
        "boot_id": b"boot-one-0123456",
        "tls_spki_sha256": SPKI,
        "receipt_pk": RECEIPT_PK,
        "not_before": now,
        "not_after": now + 3600,
    }
    return Worker(**{**members, **changes})


def an_upstream(name: str = "local", **changes: Any) -> Upstream:
    members: dict[str, Any] = {
        "upstream_id": upstream_id_of(name),
        "name": name,
        "host": "127.0.0.1",
        "port": 9000,
        "tls": False,
        "path": "/v1",
        "models": {MODEL: "SmolLM2"},
        "context_tokens": 1024,
        "capacity": 8,
        "api_key": "secret-upstream-key",
    }
    return Upstream(**{**members, **changes})


def a_heartbeat(running: int = 0, queued: int = 0, capacity: int = 4, *, draining: bool = False) -> Heartbeat:
    return Heartbeat(running=running, queued=queued, capacity=capacity, draining=draining)


def beat_all(registry: Registry, clock: Clock, capacity: int = 4) -> None:
    for worker_id in registry.worker_ids():
        registry.note_heartbeat(worker_id, a_heartbeat(capacity=capacity), clock.monotonic())
