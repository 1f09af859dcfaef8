"""Manifests over a real gateway: enrolled with the keyset that names them, kept, shown, logged, and pinned."""

import hashlib
import json
from typing import Any

import httpx
import msgspec

from cocoon.enrolment import ENROL_PATH, HEARTBEAT_PATH, RENEW_PATH, EnrolAnswer, Token, keyset_digest
from cocoon.manifest import FORMAT, Manifest, ManifestFile
from tests.fixtures_gateway import MODEL, Stack, chat
from tests.integration.gateway.test_workers_api import BEAT, assert_refused, enrolment, keyset

RAW = Manifest(
    format=FORMAT, files=(ManifestFile("model.gguf", bytes(32), 7),), quantisation="q8_0", arguments=()
).encode()  # fmt: skip
DIGEST = hashlib.sha256(RAW).digest()


def as_json(raw: bytes) -> str:
    return json.loads(msgspec.json.encode(raw))


def with_manifest(raw: bytes = RAW, digest: bytes = DIGEST) -> dict[str, Any]:
    return enrolment(keyset=keyset(model_manifest_sha256=digest), manifest=as_json(raw))


async def enrolled(client: httpx.AsyncClient, **request: Any) -> EnrolAnswer:
    answer = await client.post(ENROL_PATH, json=request)
    assert answer.status_code == 200, answer.text
    given = msgspec.json.decode(answer.content, type=EnrolAnswer)
    beat = await client.post(HEARTBEAT_PATH, content=BEAT, headers={"authorization": f"Bearer {given.token}"})
    assert beat.status_code == 204
    return given


async def test_a_manifest_is_kept_shown_and_logged_once(stack: Stack) -> None:
    await stack.start_gateway(upstream=False)
    async with stack.client(stack.worker_key) as worker, stack.client() as client:
        await enrolled(worker, **with_manifest())
        await enrolled(worker, **with_manifest())
        listed = await stack.until_true(
            lambda: client.get(f"/v1/models/{MODEL}"), lambda answer: answer.json()["model_manifests"]
        )
        assert listed.json()["model_manifests"] == {DIGEST.hex(): 1}
        del client.headers["authorization"]
        anybody = await client.get(f"/v1/manifests/{DIGEST.hex()}")
        assert (anybody.status_code, anybody.content) == (200, RAW)
        assert "immutable" in anybody.headers["cache-control"]
        assert_refused(await client.get("/v1/manifests/" + "00" * 32), 404, "manifest_not_found")
        assert_refused(await client.get("/v1/manifests/latest"), 400, "invalid_request")
    rows = await stack.rows("SELECT envelope FROM log_envelopes WHERE leaf_type = 5 AND digest = $1", DIGEST)
    assert [row["envelope"] for row in rows] == [RAW]


async def test_a_manifest_that_is_not_the_keysets_is_refused(gateway: Stack) -> None:
    other = RAW.replace(b"q8_0", b"q4_0")
    cases = [
        with_manifest(other),
        with_manifest(b""),
        with_manifest(RAW, b""),
        with_manifest(b"rubbish", hashlib.sha256(b"rubbish").digest()),
        with_manifest(RAW + b" ", hashlib.sha256(RAW + b" ").digest()),
    ]
    async with gateway.client(gateway.worker_key) as client:
        for request in cases:
            assert_refused(await client.post(ENROL_PATH, json=request), 403, "manifest_mismatch")
    assert await gateway.rows("SELECT 1 FROM workers") == []
    assert await gateway.rows("SELECT 1 FROM log_envelopes WHERE leaf_type = 5") == []


async def test_a_pin_that_nobody_serves_is_refused_and_costs_nothing(gateway: Stack) -> None:
    """The plain upstream serves the model: only that nobody says from which weights."""
    pinned = chat(provider={"model_manifest": DIGEST.hex()})
    async with gateway.client() as client:
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
        for request, headers in ((pinned, {}), (chat(), {"x-cocoon-model-manifest": DIGEST.hex()})):
            answer = await client.post("/v1/chat/completions", json=request, headers=headers)
            assert_refused(answer, 503, "model_manifest_unavailable")
        for request, headers in (
            (chat(provider={"model_manifest": "latest"}), {}),
            (chat(), {"x-cocoon-model-manifest": DIGEST.hex() + "00"}),
            (pinned, {"x-cocoon-model-manifest": "00" * 32}),
        ):
            answer = await client.post("/v1/chat/completions", json=request, headers=headers)
            assert_refused(answer, 400, "invalid_value")
    assert len(await gateway.usage()) == 1
    await gateway.check_books()


# The token of an enrolment


async def test_a_token_renews_itself_as_long_as_its_enrolment_stands(gateway: Stack) -> None:
    async with gateway.client(gateway.worker_key) as client:
        first = await enrolled(client, **enrolment())
        bearer = {"authorization": f"Bearer {first.token}"}
        renewed = msgspec.json.decode((await client.post(RENEW_PATH, headers=bearer)).content, type=Token)
        assert 0 < renewed.token_seconds <= first.token_seconds <= 900
        again = {"authorization": f"Bearer {renewed.token}"}
        assert (await client.post(HEARTBEAT_PATH, content=BEAT, headers=again)).status_code == 204
        # A worker key is no token, and a token enrols nobody.
        assert_refused(await client.post(RENEW_PATH), 401, "worker_token_invalid")
        assert_refused(await client.post(ENROL_PATH, json=enrolment(), headers=again), 401, "invalid_api_key")
        # Another keyset took its place: what belonged to the old one ends with it.
        await enrolled(client, **enrolment(keyset=keyset(boot_id=b"boot-two-0123456")))
        assert_refused(await client.post(RENEW_PATH, headers=again), 401, "worker_token_invalid")


async def test_a_revoked_worker_keys_token_is_not_renewed(gateway: Stack) -> None:
    async with gateway.client(gateway.worker_key) as client:
        given = await enrolled(client, **enrolment())
        await gateway.rows("UPDATE api_keys SET revoked_at = now() WHERE role = 'worker'")
        bearer = {"authorization": f"Bearer {given.token}"}
        assert_refused(await client.post(RENEW_PATH, headers=bearer), 401, "worker_token_invalid")


async def test_a_token_ends_with_its_keyset(gateway: Stack) -> None:
    from cocoon.clock import SystemClock

    end = int(SystemClock().now().timestamp()) + 120
    async with gateway.client(gateway.worker_key) as client:
        given = await enrolled(client, **enrolment(keyset=keyset(not_after=end)))
        assert 0 < given.token_seconds <= 120
        [row] = await gateway.rows("SELECT keyset, keyset_digest FROM workers")
        assert keyset_digest(row["keyset"]) == row["keyset_digest"]
