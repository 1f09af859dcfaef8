"""The table of keys, without a database."""

import datetime as dt
import uuid

import msgspec
import pytest

from cocoon.clock import ManualClock
from cocoon.ids import secret_key_hash
from gateway.auth import (
    FRESH_S_MAX,
    ExpiredKeyError,
    InvalidKeyError,
    KeyRecord,
    KeysStaleError,
    KeyTable,
    MissingKeyError,
    Principal,
    Role,
    RoleForbiddenError,
    require_organisation_admin,
    require_role,
)

NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
SECRET = "sk-cocoon-" + "a" * 43


def record(secret: str = SECRET, **fields: object) -> KeyRecord:
    values: dict[str, object] = {"key_id": uuid.uuid4(), "customer_id": uuid.uuid4(), "name": "app"} | fields
    return KeyRecord(sha256=secret_key_hash(secret), principal=Principal(**values))  # pyright: ignore[reportArgumentType]


def bearer(secret: str = SECRET) -> bytes:
    return b"Bearer " + secret.encode()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def table(clock: ManualClock) -> KeyTable:
    table = KeyTable(clock)
    table.replace([], confirmed_at=clock.monotonic())
    return table


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER  "])
def test_a_live_key_is_its_principal(table: KeyTable, scheme: bytes) -> None:
    live = record()
    table.put(live)
    assert table.authenticate(scheme + SECRET.encode(), now=NOW) == live.principal


@pytest.mark.parametrize("header", [None, b"", b"Basic dTpw", SECRET.encode(), b"Bearer"])
def test_a_header_that_is_no_bearer_token_is_a_missing_key(table: KeyTable, header: bytes | None) -> None:
    table.put(record())
    with pytest.raises(MissingKeyError):
        table.authenticate(header, now=NOW)


@pytest.mark.parametrize(
    "secret", ["sk-cocoon-" + "b" * 43, "", SECRET + "a", SECRET[:-1], "\x00\x7f", "x" * 100_000], ids=repr
)
def test_anything_else_is_an_invalid_key(table: KeyTable, secret: str) -> None:
    table.put(record())
    with pytest.raises(InvalidKeyError):
        table.authenticate(bearer(secret), now=NOW)


def test_bytes_that_are_not_text_are_an_invalid_key(table: KeyTable) -> None:
    with pytest.raises(InvalidKeyError):
        table.authenticate(b"Bearer \xff\xfe", now=NOW)


def test_a_removed_key_stops_at_once(table: KeyTable) -> None:
    live = record()
    table.put(live)
    table.authenticate(bearer(), now=NOW)
    table.remove(live.principal.key_id)
    with pytest.raises(InvalidKeyError):
        table.authenticate(bearer(), now=NOW)
    table.remove(live.principal.key_id)


def test_a_full_load_forgets_what_it_does_not_contain(table: KeyTable, clock: ManualClock) -> None:
    table.put(record())
    kept = record("sk-cocoon-" + "c" * 43)
    table.replace([kept], confirmed_at=clock.monotonic())
    assert table.authenticate(bearer("sk-cocoon-" + "c" * 43), now=NOW) == kept.principal
    with pytest.raises(InvalidKeyError):
        table.authenticate(bearer(), now=NOW)


def test_a_changed_key_has_its_new_limits(table: KeyTable) -> None:
    live = record(requests_per_min=5)
    table.put(live)
    table.put(record(key_id=live.principal.key_id, requests_per_min=6))
    assert table.authenticate(bearer(), now=NOW).requests_per_min == 6
    assert len(table) == 1


def test_a_key_expires_at_its_instant(table: KeyTable) -> None:
    table.put(record(expires_at=NOW))
    table.authenticate(bearer(), now=NOW - dt.timedelta(microseconds=1))
    with pytest.raises(ExpiredKeyError):
        table.authenticate(bearer(), now=NOW)


def test_an_unconfirmed_table_admits_nobody(table: KeyTable, clock: ManualClock) -> None:
    table.put(record())
    clock.advance(FRESH_S_MAX)
    table.authenticate(bearer(), now=NOW)
    clock.advance(0.001)
    with pytest.raises(KeysStaleError):
        table.authenticate(bearer(), now=NOW)
    table.confirm(clock.monotonic())
    table.authenticate(bearer(), now=NOW)


def test_a_table_that_was_never_loaded_admits_nobody(clock: ManualClock) -> None:
    table = KeyTable(clock)
    table.put(record())
    with pytest.raises(KeysStaleError):
        table.authenticate(bearer(), now=NOW)


def test_an_old_answer_does_not_make_the_table_look_older(table: KeyTable, clock: ManualClock) -> None:
    asked = clock.monotonic()
    clock.advance(FRESH_S_MAX)
    table.confirm(clock.monotonic())
    table.confirm(asked)
    clock.advance(FRESH_S_MAX)
    assert table.fresh


def test_a_key_of_another_role_is_refused() -> None:
    worker = record(role=Role.WORKER).principal
    require_role(worker, Role.ADMIN, Role.WORKER)
    with pytest.raises(RoleForbiddenError):
        require_role(worker, Role.CUSTOMER)


def test_a_rotated_keys_old_secret_ends_with_its_grace_period_or_the_key(table: KeyTable) -> None:
    fresh, grace = "sk-cocoon-" + "f" * 43, NOW + dt.timedelta(minutes=1)
    live = record(fresh, expires_at=NOW + dt.timedelta(hours=1))
    rotated = msgspec.structs.replace(live, previous_sha256=secret_key_hash(SECRET), previous_expires_at=grace)
    for load in (table.put, lambda known: table.replace([known], confirmed_at=0.0)):
        load(rotated)
        assert table.authenticate(bearer(fresh), now=grace) == live.principal
        assert table.authenticate(bearer(), now=NOW).key_id == live.principal.key_id
        with pytest.raises(ExpiredKeyError):
            table.authenticate(bearer(), now=grace)
    short = msgspec.structs.replace(rotated, principal=msgspec.structs.replace(live.principal, expires_at=NOW))
    table.put(short)
    with pytest.raises(ExpiredKeyError):
        table.authenticate(bearer(), now=NOW)
    assert len(table) == 1
    table.remove(live.principal.key_id)
    for secret in (SECRET, fresh):
        with pytest.raises(InvalidKeyError):
            table.authenticate(bearer(secret), now=NOW)


def test_only_a_customers_key_with_the_right_manages_its_organisation() -> None:
    for role, admin in ((Role.CUSTOMER, False), (Role.ADMIN, False), (Role.ADMIN, True), (Role.WORKER, True)):
        with pytest.raises(RoleForbiddenError):
            require_organisation_admin(record(role=role, organisation_admin=admin).principal)
    require_organisation_admin(record(organisation_admin=True).principal)
