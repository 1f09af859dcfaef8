"""What worker agents may ask of a real gateway, and what they may not."""

import datetime as dt
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from cocoon.clock import SystemClock
from cocoon.enrolment import ENROL_PATH, HEARTBEAT_PATH, EnrolAnswer, Heartbeat, keyset_digest
from cocoon.ticket import ticket_key
from tests.fixtures_gateway import MODEL, NETWORK_SECRET, PRICE, Stack
from tests.unit.workers.worker_values import a_keyset, a_request
from workers.targets import worker_id_of
from workers.tokens import WorkerTokens

BEAT = msgspec.json.encode(Heartbeat(running=0, queued=0, capacity=4))


def enrolment(**changes: Any) -> dict[str, Any]:
    """A request as JSON; changes are made to the JSON."""
    raw = a_request(SystemClock(), url="https://127.0.0.1:1", models=())
    made = json.loads(msgspec.json.encode(raw))
    return {**made, "models": [{"id": MODEL, "context_tokens": 2048}], **changes}


def an_ask(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": 1, "cached": 1, "completion": 1, **changes}


def keyset(**changes: Any) -> str:
    return json.loads(msgspec.json.encode(a_keyset(SystemClock(), **changes).encode()))


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_an_enrolment_gives_a_token_for_heartbeats_and_the_key_of_tickets(gateway: Stack) -> None:
    async with gateway.client(gateway.worker_key) as client:
        answer = await client.post(ENROL_PATH, json=enrolment())
        assert answer.status_code == 200, answer.text
        enrolled = msgspec.json.decode(answer.content, type=EnrolAnswer)
        [row] = await gateway.rows("SELECT worker_id, name, keyset FROM workers")
        assert (row["worker_id"], row["name"]) == (enrolled.worker_id, "worker-1")
        assert enrolled.ticket_key == ticket_key(bytes.fromhex(NETWORK_SECRET), keyset_digest(row["keyset"]))
        beat = await client.post(HEARTBEAT_PATH, content=BEAT, headers={"authorization": f"Bearer {enrolled.token}"})
        assert (beat.status_code, beat.content) == (204, b"")
        # A restart is the same worker with new keys; the old token is no longer its.
        again = await client.post(ENROL_PATH, json=enrolment(keyset=keyset(boot_id=b"boot-two-0123456")))
        assert msgspec.json.decode(again.content, type=EnrolAnswer).worker_id == enrolled.worker_id
        stale = await client.post(HEARTBEAT_PATH, content=BEAT, headers={"authorization": f"Bearer {enrolled.token}"})
        assert_refused(stale, 401, "worker_token_invalid")


async def test_enrolments_of_the_wrong_caller_are_refused(gateway: Stack) -> None:
    async with gateway.client() as client:
        assert_refused(await client.post(ENROL_PATH, json=enrolment()), 403, "role_forbidden")
        for key, code in (("", "missing_api_key"), ("Bearer wk-cocoon-" + "A" * 43, "invalid_api_key")):
            assert_refused(await client.post(ENROL_PATH, json=enrolment(), headers={"authorization": key}), 401, code)
    assert await gateway.rows("SELECT 1 FROM workers") == []


async def test_bad_enrolments_are_refused_with_a_reason(gateway: Stack) -> None:
    now = int(SystemClock().now().timestamp())
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"name": "a\r\nx-evil: 1"}, 400, "invalid_type"),
        ({"name": "x" * 65}, 400, "invalid_type"),
        ({"capacity": 0}, 400, "invalid_type"),
        ({"surprise": 1}, 400, "invalid_type"),
        ({"models": []}, 400, "invalid_type"),
        ({"models": [{"id": MODEL, "context_tokens": 1}] * 2}, 403, "models_refused"),
        ({"models": [{"id": "a\nb", "context_tokens": 1}]}, 400, "invalid_type"),
        ({"keyset": "AAAA"}, 403, "keyset_invalid"),
        ({"keyset": keyset(receipt_pk=bytes(32))}, 403, "keyset_invalid"),
        ({"keyset": keyset(receipt_pk=b"\x01" + bytes(30) + b"\x80")}, 403, "keyset_invalid"),
        ({"keyset": keyset(not_before=now - 7200, not_after=now - 3600)}, 403, "keyset_lifetime"),
        ({"keyset": keyset(not_before=now, not_after=now + 10**6)}, 403, "keyset_lifetime"),
        ({"keyset": keyset(not_before=now + 3600, not_after=now + 7200)}, 403, "keyset_lifetime"),
        ({"tee_type": "tdx"}, 403, "evidence_unsupported"),
        ({"asks": [an_ask(prompt=-1)]}, 400, "invalid_type"),
        ({"asks": [an_ask(prompt=2**63)]}, 400, "invalid_type"),
        ({"asks": [an_ask(prompt=1.5)]}, 400, "invalid_type"),
        ({"asks": [an_ask(version=7)]}, 400, "invalid_type"),
        ({"asks": [an_ask(cached=2)]}, 403, "ask_refused"),
        ({"asks": [an_ask(), an_ask()]}, 403, "ask_refused"),
        ({"asks": [an_ask(model="another")]}, 403, "ask_refused"),
        ({"asks": [an_ask(completion=PRICE.completion + 1)]}, 403, "ask_refused"),
        ({"models": [{"id": "unpriced", "context_tokens": 1}], "asks": [an_ask(model="unpriced")]}, 403, "ask_refused"),
        ({"url": "http://127.0.0.1:1"}, 403, "worker_url_refused"),
        ({"url": "https://127.0.0.1:1/path"}, 403, "worker_url_refused"),
        ({"url": "https://user@127.0.0.1:1"}, 403, "worker_url_refused"),
        ({"url": "https://169.254.169.254"}, 403, "worker_url_refused"),
    ]
    async with gateway.client(gateway.worker_key) as client:
        for changes, status, code in cases:
            assert_refused(await client.post(ENROL_PATH, json=enrolment(**changes)), status, code)
        for body in (b"{", b"[]", b"\xff", b'{"name":"\xff"}', b"[" * 10_000):
            assert_refused(await client.post(ENROL_PATH, content=body), 400, "invalid_type")
    assert await gateway.rows("SELECT 1 FROM workers") == []


async def test_oversized_bodies_are_refused_by_their_word_and_in_fact(gateway: Stack) -> None:
    async def without_length() -> AsyncIterator[bytes]:
        for _ in range(8 * 16):
            yield b" " * 16_384

    token = WorkerTokens(bytes.fromhex(NETWORK_SECRET)).mint(uuid.uuid4(), bytes(32), SystemClock().now())
    async with gateway.client(gateway.worker_key) as client:
        for path, headers in ((ENROL_PATH, {}), (HEARTBEAT_PATH, {"authorization": f"Bearer {token}"})):
            for content in (b" " * (70_000 if path == HEARTBEAT_PATH else 2_000_000), without_length()):
                assert_refused(await client.post(path, content=content, headers=headers), 413, "body_too_large")


async def test_a_private_address_is_refused_where_it_is_not_allowed(stack: Stack) -> None:
    await stack.start_gateway(COCOON_ALLOW_PRIVATE_WORKERS="0")
    async with stack.client(stack.worker_key) as client:
        for url in (
            "https://127.0.0.1:1", "https://10.0.0.1", "https://[::1]", "https://localhost", "https://db.internal",
            "https://2130706433", "https://[::ffff:10.0.0.1]", "https://metadata",
        ):  # fmt: skip
            assert_refused(await client.post(ENROL_PATH, json=enrolment(url=url)), 403, "worker_url_refused")
        assert (await client.post(ENROL_PATH, json=enrolment(url="https://gpu.example.org"))).status_code == 200


async def test_heartbeats_with_foreign_expired_or_broken_tokens_are_refused(gateway: Stack) -> None:
    clock = SystemClock()
    ours, foreign = WorkerTokens(bytes.fromhex(NETWORK_SECRET)), WorkerTokens(b"\x22" * 32)
    async with gateway.client(gateway.worker_key) as client:
        enrolled = msgspec.json.decode((await client.post(ENROL_PATH, json=enrolment())).content, type=EnrolAnswer)
        [row] = await gateway.rows("SELECT keyset FROM workers")
        digest = keyset_digest(row["keyset"])
        tokens = [
            foreign.mint(enrolled.worker_id, digest, clock.now()),
            ours.mint(enrolled.worker_id, digest, clock.now() - dt.timedelta(hours=2)),
            ours.mint(enrolled.worker_id, digest, clock.now() + dt.timedelta(hours=1)),
            ours.mint(uuid.uuid4(), digest, clock.now()),
            ours.mint(enrolled.worker_id, bytes(32), clock.now()),
            gateway.worker_key, "x" * 2000, enrolled.token[:-2], "é",
        ]  # fmt: skip
        for token in tokens:
            answer = await client.post(
                HEARTBEAT_PATH, content=BEAT, headers={b"authorization": f"Bearer {token}".encode("latin-1")}
            )
            assert_refused(answer, 401, "worker_token_invalid")
        basic = await client.post(HEARTBEAT_PATH, content=BEAT, headers={"authorization": f"Basic {enrolled.token}"})
        assert_refused(basic, 401, "worker_token_invalid")
        good = {"authorization": f"Bearer {ours.mint(enrolled.worker_id, digest, clock.now())}"}
        assert (await client.post(HEARTBEAT_PATH, content=BEAT, headers=good)).status_code == 204
        for body in (b"{}", b'{"running":-1,"queued":0,"capacity":1}', b"\xff"):
            assert_refused(await client.post(HEARTBEAT_PATH, content=body, headers=good), 400, "invalid_type")


async def test_two_worker_keys_cannot_take_each_others_place(gateway: Stack) -> None:
    async with gateway.client(gateway.worker_key) as client:
        first = msgspec.json.decode((await client.post(ENROL_PATH, json=enrolment())).content, type=EnrolAnswer)
    assert first.worker_id != worker_id_of(uuid.uuid4(), "worker-1")
    keys = await gateway.rows("SELECT id FROM api_keys WHERE role = 'worker'")
    assert first.worker_id == worker_id_of(keys[0]["id"], "worker-1")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods_are_not_answered(gateway: Stack, method: str) -> None:
    async with gateway.client(gateway.worker_key) as client:
        for path in (ENROL_PATH, HEARTBEAT_PATH):
            answer = await client.request(method, path)
            assert_refused(answer, 405, "methodnotallowed")
