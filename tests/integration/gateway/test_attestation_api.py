"""`GET /v1/attestation` of a real gateway before real agents: evidence that a stranger can verify."""

import base64
from pathlib import Path
from typing import Any

import pytest

from attestation.evidence import Endorsements, Evidence
from attestation.judge import Question, judge
from attestation.policy import load_policy
from cocoon.clock import SystemClock
from cocoon.enrolment import keyset_digest
from gateway.evidence_desk import PER_MIN
from tests.attested import DEVELOPMENT
from tests.fixtures_attested import Enrollee, policy_environment, worker_environment
from tests.fixtures_gateway import MODEL, Stack

NONCE = b"\xab" * 32


def raw(text: str) -> bytes:
    return base64.b64decode(text)


@pytest.fixture
async def attested(stack: Stack, tmp_path: Path) -> Stack:
    await stack.start_gateway(upstream=False, **policy_environment(tmp_path))
    await stack.start_worker("one", stack.engine, **worker_environment())
    return stack


async def test_a_customers_nonce_is_stated_by_workers_that_a_stranger_can_judge(
    attested: Stack, tmp_path: Path
) -> None:
    text = (tmp_path / "p.toml").read_bytes()

    def judged(shown: dict[str, Any], nonce: bytes | None) -> Any:
        policy = load_policy(text, pinned_sha256=raw(answer["policy_sha256"]))
        evidence = Evidence.decode(raw(shown["evidence"]))
        assert keyset_digest(raw(shown["keyset"])) == raw(shown["keyset_digest"])
        assert evidence.keyset == raw(shown["keyset"])
        question = Question(at=SystemClock().now(), deployment=DEVELOPMENT, nonce=nonce)
        return judge(evidence, Endorsements.decode(raw(shown["endorsements"])), policy, question)

    query = {"model": MODEL, "nonce": NONCE.hex()}
    async with attested.client() as client:
        for path in ("/v1/attestation", "/v1/attestation/report"):
            answer = (await client.get(path, params=query)).json()
            [shown] = answer["workers"]
            assert (answer["model"], shown["name"], shown["tee_type"]) == (MODEL, "one", "tdx-simulated")
            verdict = judged(shown, NONCE)
            assert (verdict.accepted, verdict.freshness, verdict.gpus) == (True, "nonce", 1), verdict.in_words()
            assert not judged(shown, bytes(32)).accepted
            assert (shown["verdict"]["accepted"], shown["verdict"]["simulated"]) == (True, True)
            assert shown["manifest_sha256"] is None
        # Without a nonce: what it enrolled with, whose freshness nobody else can know.
        answer = (await client.get("/v1/attestation", params={"model": MODEL})).json()
        [stored] = answer["workers"]
        assert stored["keyset_digest"] == shown["keyset_digest"]
        assert judged(stored, None).freshness == "unproven"
        # A worker whose agent does not answer is left out; it is there again once it does.
        async with attested.client(attested.worker_key) as enrolling:
            assert (await Enrollee("ghost").enrol(enrolling)).status_code == 200
        assert [one["name"] for one in (await client.get("/v1/attestation", params=query)).json()["workers"]] == ["one"]


async def test_what_is_not_to_be_had_is_said_and_asking_is_bounded(gateway: Stack) -> None:
    async with gateway.client() as client:
        for query, status, param in (
            ({"model": MODEL, "nonce": "ab"}, 400, "nonce"),
            ({"model": MODEL, "nonce": "z" * 64}, 400, "nonce"),
            ({"model": "unknown"}, 404, None),
            ({}, 400, None),
        ):
            answer = await client.get("/v1/attestation", params=query)
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        statuses = {
            (await client.get("/v1/attestation", params={"model": MODEL})).status_code for _ in range(PER_MIN + 3)
        }
        assert statuses == {200, 429}
    async with gateway.client(gateway.worker_key) as worker:
        assert (await worker.get("/v1/attestation", params={"model": MODEL})).status_code == 403
