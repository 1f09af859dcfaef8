"""What the gateway lets a worker enrol with."""

import uuid

import pytest

from cocoon.clock import ManualClock
from cocoon.enrolment import KEYSET_SECONDS_MAX, ServedModel, keyset_digest
from tests.unit.workers.worker_values import RECEIPT_PK, SPKI, a_keyset, a_request
from workers.addresses import is_permitted_peer
from workers.enrolments import KEYSET_BYTES_MAX, admit, upstream
from workers.errors import (
    EnrolmentRefusedError,
    EvidenceRefusedError,
    KeysetLifetimeError,
    KeysetRefusedError,
    ModelsRefusedError,
    WorkerURLRefusedError,
)
from workers.targets import Worker, upstream_id_of, worker_id_of

WORKER_ID = uuid.UUID(int=7)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def _admit(clock: ManualClock, *, allow_private: bool = False, **changes: object) -> Worker:
    keyset = changes.pop("keyset", None)
    request = a_request(clock, keyset, **changes)  # pyright: ignore[reportArgumentType]
    return admit(request, worker_id=WORKER_ID, now=clock.now(), allow_private=allow_private)


def test_an_admitted_worker_carries_the_keys_and_digest_of_its_keyset(clock: ManualClock) -> None:
    worker = _admit(clock)

    assert worker.worker_id == WORKER_ID
    assert (worker.host, worker.port) == ("worker-1.example.org", 8443)
    assert worker.keyset_digest == keyset_digest(a_keyset(clock).encode())
    assert (worker.tls_spki_sha256, worker.receipt_pk) == (SPKI, RECEIPT_PK)
    assert worker.stake == bytes(32)
    assert worker.evidence == "none"


def test_a_port_is_443_when_the_url_names_none(clock: ManualClock) -> None:
    assert _admit(clock, url="https://worker.example.org").port == 443


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"receipt_pk": bytes(32)},
        {"receipt_pk": b"\x01" + bytes(31)},
        {"tls_spki_sha256": bytes(32)},
        {"boot_id": b""},
        {"boot_id": bytes(65)},
        {"hpke_xwing": bytes(1215)},
        {"hpke_x25519": bytes(31)},
        {"delegation": bytes(63)},
        {"model_manifest_sha256": bytes(31)},
        {"operator": "x" * 129},
    ],
)
def test_a_keyset_with_an_unusable_key_is_refused(clock: ManualClock, changes: dict[str, object]) -> None:
    with pytest.raises(KeysetRefusedError):
        _admit(clock, keyset=a_keyset(clock, **changes))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b"null", b"{" * 5000, bytes(KEYSET_BYTES_MAX + 1)])
def test_bytes_that_are_no_keyset_are_refused(clock: ManualClock, raw: bytes) -> None:
    with pytest.raises(KeysetRefusedError):
        _admit(clock, keyset=raw)


@pytest.mark.parametrize(
    ("not_before_s", "not_after_s"),
    [(-100, 0), (-100, -1), (61, 3600), (0, KEYSET_SECONDS_MAX + 1), (10, 10), (20, 10)],
)
def test_a_keyset_outside_of_its_lifetime_is_refused(clock: ManualClock, not_before_s: int, not_after_s: int) -> None:
    now = int(clock.now().timestamp())
    keyset = a_keyset(clock, not_before=now + not_before_s, not_after=now + not_after_s)

    with pytest.raises(KeysetLifetimeError):
        _admit(clock, keyset=keyset)


def test_a_keyset_of_the_longest_lifetime_and_a_slightly_fast_clock_is_admitted(clock: ManualClock) -> None:
    now = int(clock.now().timestamp())
    keyset = a_keyset(clock, not_before=now + 60, not_after=now + 60 + KEYSET_SECONDS_MAX)

    assert _admit(clock, keyset=keyset).not_after == now + 60 + KEYSET_SECONDS_MAX


REFUSED_EVERYWHERE = [
    "http://worker.example.org",
    "ftp://worker.example.org",
    "worker.example.org",
    "https://",
    "https://:443",
    "https://worker.example.org:0",
    "https://worker.example.org:65536",
    "https://worker.example.org:x",
    "https://worker.example.org/path",
    "https://worker.example.org?x=1",
    "https://worker.example.org#x",
    "https://user@worker.example.org",
    "https://user:pass@worker.example.org",
    "https://worker.example.org\r\nx-injected: 1",
    "https://worker.example.org\\@evil.example.org",
    "https://worker example.org",
    "https://wörker.example.org",
    "https://[::1",
    "https://[fe80::1%25eth0]",
    "https://169.254.169.254",
    "https://[fe80::1]",
    "https://0.0.0.0",
    "https://[::]",
    "https://224.0.0.1",
    "https://[ff02::1]",
    "https://240.0.0.1",
    "https://[64:ff9b::a9fe:a9fe]",
    "https://[2002:7f00:1::]",
    "https://2130706433",
    "https://127.1",
    "https://0x7f.0.0.1.0x1",
    "https://worker..example.org",
    "https://-worker.example.org",
    "https://worker_1.example.org",
]

PRIVATE = [
    "https://127.0.0.1:8443",
    "https://127.1.2.3",
    "https://[::1]:8443",
    "https://10.0.0.1",
    "https://172.16.0.1",
    "https://192.168.1.1",
    "https://[fc00::1]",
    "https://localhost:8443",
    "https://LOCALHOST",
    "https://worker-1",
    "https://worker.local",
    "https://metadata.google.internal",
    "https://worker.localhost",
    "https://worker.home.arpa",
]


@pytest.mark.parametrize("url", REFUSED_EVERYWHERE)
@pytest.mark.parametrize("allow_private", [False, True])
def test_a_url_that_is_never_sensible_is_refused(clock: ManualClock, url: str, *, allow_private: bool) -> None:
    with pytest.raises(WorkerURLRefusedError):
        _admit(clock, url=url, allow_private=allow_private)


@pytest.mark.parametrize("url", PRIVATE)
def test_a_private_address_is_admitted_only_where_the_operator_allows_it(clock: ManualClock, url: str) -> None:
    with pytest.raises(WorkerURLRefusedError):
        _admit(clock, url=url)

    assert _admit(clock, url=url, allow_private=True).url == url


@pytest.mark.parametrize("url", ["https://1.1.1.1:8443", "https://[2606:4700::1111]", "https://a.b-c.example.org:1"])
def test_a_public_address_is_admitted(clock: ManualClock, url: str) -> None:
    assert _admit(clock, url=url).url == url


def test_a_peer_is_judged_like_an_address_in_a_url() -> None:
    assert is_permitted_peer("1.1.1.1", allow_private=False)
    assert not is_permitted_peer("127.0.0.1", allow_private=False)
    assert is_permitted_peer("127.0.0.1", allow_private=True)
    assert not is_permitted_peer("169.254.169.254", allow_private=True)
    assert not is_permitted_peer("not an address", allow_private=True)


def test_a_model_named_twice_is_refused(clock: ManualClock) -> None:
    models = (ServedModel(id="a", context_tokens=1), ServedModel(id="a", context_tokens=2))

    with pytest.raises(ModelsRefusedError):
        _admit(clock, models=models)


@pytest.mark.parametrize("tee_type", ["tdx", "simulated", ""])
def test_a_tee_that_nothing_can_verify_is_not_taken_on_trust(clock: ManualClock, tee_type: str) -> None:
    with pytest.raises(EvidenceRefusedError):
        _admit(clock, tee_type=tee_type)


def test_every_refusal_has_a_stable_code_of_its_own() -> None:
    errors = [KeysetRefusedError, KeysetLifetimeError, WorkerURLRefusedError, ModelsRefusedError, EvidenceRefusedError]

    assert all(issubclass(error, EnrolmentRefusedError) for error in errors)
    assert len({error.code for error in errors}) == len(errors)


def test_ids_depend_on_who_enrols_and_on_nothing_else() -> None:
    key = uuid.UUID(int=1)

    assert worker_id_of(key, "a") == worker_id_of(key, "a")
    assert len({worker_id_of(key, "a"), worker_id_of(key, "b"), worker_id_of(uuid.UUID(int=2), "a")}) == 3
    assert upstream_id_of("a") != upstream_id_of("b")


def test_an_upstream_is_parsed_from_its_base_url_and_hides_its_key() -> None:
    target = upstream(
        name="local", url="http://10.0.0.5:9000/v1/", models={"a": "b"}, context_tokens=10, capacity=2, api_key="hush"
    )

    assert (target.host, target.port, target.tls, target.path) == ("10.0.0.5", 9000, False, "/v1")
    assert "hush" not in repr(target)
    assert "hush" not in f"{[target]}"
