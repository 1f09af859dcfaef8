"""Evidence at the enrolment route of a real gateway: what is admitted, and every attack that is not."""

import asyncio
import hashlib
import random
import ssl
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from attestation.evidence import Evidence, GPUEvidence
from attestation.nvidia.gpu import evidence_digest
from cocoon.clock import SystemClock
from cocoon.enrolment import HEARTBEAT_PATH, EnrolAnswer, Heartbeat, keyset_digest
from cocoon.statement import Statement, report_data
from tests.fixtures_attested import (
    FOREIGN_SEED,
    Enrollee,
    machine,
    policy_environment,
    worker_environment,
)
from tests.fixtures_gateway import Stack, chat
from tests.scripted_engine import ScriptedEngine
from workers.agent.keys import KeyRing

BEAT = msgspec.json.encode(Heartbeat(running=0, queued=0, capacity=4))


@pytest.fixture
async def judging(stack: Stack, tmp_path: Path) -> Stack:
    """A gateway with the simulated policy and no upstream."""
    await stack.start_gateway(upstream=False, **policy_environment(tmp_path))
    return stack


def enrolled(answer: httpx.Response) -> EnrolAnswer:
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=EnrolAnswer)


def refused(answer: httpx.Response, code: str) -> str:
    """The sentence of a refusal that names this finding."""
    assert answer.status_code == 403, answer.text
    error = answer.json()["error"]
    assert code in (error["code"], *error["message"].replace("[", " ").replace("]", " ").split()), error
    return error["message"]


async def test_an_agent_of_the_simulated_fleet_is_admitted_and_serves_what_asks_for_evidence(
    judging: Stack,
) -> None:
    stack = judging
    await stack.start_worker("attested", stack.engine, **worker_environment())
    async with stack.client() as client:
        for require in ("tdx", "tdx+gpu"):
            answer = await client.post("/v1/chat/completions", json=chat(provider={"require": require}))
            assert (answer.status_code, answer.headers["x-cocoon-worker"]) == (200, "attested"), answer.text
        [model] = (await client.get("/v1/models")).json()["data"]
        assert model["tee_types"] == {"tdx-simulated": 1}
    assert "tee_simulated" in stack.log("attested", None)
    # A worker without evidence is beside it, and gets what asks for none.
    await stack.start_worker("plain", stack.engine)
    async with stack.client() as client:
        for provider, worker in (({"require": "tdx"}, "attested"), ({"ignore": ["attested"]}, "plain")):
            answer = await client.post("/v1/chat/completions", json=chat(provider=provider))
            assert (answer.status_code, answer.headers["x-cocoon-worker"]) == (200, worker), answer.text
        answer = await client.post("/v1/chat/completions", json=chat(provider={"require": "tdx", "only": ["plain"]}))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
        [model] = (await client.get("/v1/models")).json()["data"]
        assert model["tee_types"] == {"none": 1, "tdx-simulated": 1}
    # A key may demand it for all of its requests, and a request cannot ask for less.
    async with stack.client(await stack.new_key(required_evidence="tdx")) as strict:
        answer = await strict.post("/v1/chat/completions", json=chat(provider={"require": "any"}))
        assert (answer.status_code, answer.headers["x-cocoon-worker"]) == (200, "attested"), answer.text
        assert answer.headers["x-cocoon-evidence"] == "tdx-simulated"
        answer = await strict.post("/v1/chat/completions", json=chat(provider={"ignore": ["attested"]}))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    [row] = await stack.rows("SELECT * FROM keysets WHERE name = 'attested'")
    assert (row["outcome"], row["tee_type"], row["level"]) == ("admitted", "tdx-simulated", "tdx+gpu")
    evidence = Evidence.decode(row["evidence"])
    assert keyset_digest(evidence.keyset) == row["digest"]
    assert Statement.decode(evidence.statement).nonce == row["nonce"]
    assert msgspec.json.decode(row["verdict"])["freshness"] == "nonce"
    # What was shown is kept when the worker has left.
    await stack.rows("UPDATE workers SET state = 'removed' RETURNING 1")
    assert len(await stack.rows("SELECT 1 FROM keysets")) == 2


async def test_each_attack_on_an_enrolment_is_refused_with_its_reason(judging: Stack) -> None:
    async with judging.client(judging.worker_key) as client:
        one, other = Enrollee("one"), Enrollee("other")

        async def fresh(enrollee: Enrollee = one, **options: Any) -> Evidence:
            return enrollee.evidence(await enrollee.challenge(client), **options)

        async def send(evidence: Evidence | bytes, code: str) -> None:
            refused(await one.send(client, evidence), code)

        # Replays: a nonce is for one enrolment, of this key, and given by us.
        replayed = await fresh()
        assert enrolled(await one.send(client, replayed)).outcome == "admitted"
        await send(replayed, "challenge_unknown")
        await send(one.evidence(None), "challenge_unknown")
        await send(one.evidence(b"\x07" * 32), "challenge_unknown")
        nonce = await one.challenge(client)
        statement = msgspec.structs.replace(Statement.decode(replayed.statement), nonce=nonce).encode()
        await send(msgspec.structs.replace(replayed, statement=statement), "report_data_mismatch")
        # Somebody else's evidence, a keyset that was not stated, an old block.
        await send(await fresh(other), "keyset_mismatch")
        taken = await fresh()
        await send(msgspec.structs.replace(taken, keyset=other.identity.raw), "keyset_mismatch")
        await send(await fresh(age_s=3600), "beacon_old")
        # Platforms that are not what the policy names.
        await send(one.quoting(await fresh(), td_attributes=bytes.fromhex("0100001000000000")), "debug_enabled")
        await send(one.quoting(await fresh(), mrtd=b"\x01" * 48), "measurement_unknown")
        foreign = Enrollee("one", machine("one", FOREIGN_SEED))
        foreign.identity = one.identity
        await send(await fresh(foreign), "foreign_root")
        # GPUs: a report for another nonce, somebody else's, none.
        shown = await fresh()
        stale = GPUEvidence(v=1, devices=(one.tee.gpus.device(0, bytes(32)),)).encode()
        statement = msgspec.structs.replace(
            Statement.decode(shown.statement), gpu_evidence_sha256=evidence_digest(stale)
        ).encode()
        quote = one.tee.platform.quote(one.tee.domain(shown.event_log), report_data(statement))
        await send(msgspec.structs.replace(shown, gpu=stale, statement=statement, quote=quote), "gpu_nonce_mismatch")
        bare = Enrollee("one", machine("one", gpus=0))
        bare.identity = one.identity
        await send(await fresh(bare), "gpu_count")
        # One flipped bit in the quote's signed part, and rubbish.
        shown = await fresh()
        flipped = bytearray(shown.quote)
        flipped[200] ^= 1
        refused(await one.send(client, msgspec.structs.replace(shown, quote=bytes(flipped))), "quote_invalid")
        await send(b"{}", "evidence_malformed")
        await send(b"\xff" * 100, "evidence_malformed")
        # None of it undid the admission, and the operator can read what was refused.
        [row] = await judging.rows("SELECT outcome, level, refusal FROM enrolled_keysets WHERE digest = $1",
                                   one.identity.digest)  # fmt: skip
        assert (row["outcome"], row["level"]) == ("admitted", "tdx+gpu")
        assert row["refusal"] is not None
        assert "worker_refused" in judging.log(characters=None)
        # A keyset is its first worker's.
        thief = Enrollee("thief")
        thief.identity = one.identity
        refused(await thief.send(client, None), "keyset_invalid")
        refused(await Enrollee("liar").send(client, None, tee_type="tdx"), "evidence_unsupported")


async def test_challenges_belong_to_one_key_and_do_not_pile_up_and_hardware_is_attested_once(
    stack: Stack, tmp_path: Path
) -> None:
    few = ("tcb_evaluation_min = 20", "tcb_evaluation_min = 20\nworkers_per_platform = 1")
    await stack.start_gateway(upstream=False, **policy_environment(tmp_path, few))
    await _hardware(stack)
    await _challenges(stack)


async def _challenges(judging: Stack) -> None:
    async with judging.client() as client:
        answer = await client.post("/v1/workers/challenge")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_forbidden")
    async with judging.client(judging.worker_key) as client:
        one = Enrollee("one")
        nonce = await one.challenge(client)
        await judging.rows("UPDATE enrolment_challenges SET key_id = gen_random_uuid() RETURNING 1")
        refused(await one.send(client, one.evidence(nonce)), "challenge_unknown")
        nonce = await one.challenge(client)
        await judging.rows("UPDATE enrolment_challenges SET expires_at = now() RETURNING 1")
        refused(await one.send(client, one.evidence(nonce)), "challenge_unknown")
        await judging.rows(
            "INSERT INTO enrolment_challenges SELECT sha256(n::text::bytea), k.id, now() + interval '1 hour'"
            " FROM generate_series(1, 256) AS n, api_keys AS k WHERE k.role = 'worker' RETURNING 1"
        )
        answer = await client.post("/v1/workers/challenge")
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "challenges_full")


async def _hardware(judging: Stack) -> None:
    async with judging.client(judging.worker_key) as client:
        first, second = Enrollee("first", machine("shared")), Enrollee("second", machine("shared"))
        assert enrolled(await first.enrol(client)).outcome == "admitted"
        held = enrolled(await second.enrol(client))
        assert held.outcome == "quarantined"
        assert [reason.code for reason in held.reasons] == ["gpu_in_use", "platform_full"]
        assert 0 < held.reattest_seconds <= 60
        # It reports, and gets nothing: the only other worker is at an address where nobody answers.
        beat = await client.post(HEARTBEAT_PATH, content=BEAT, headers={"authorization": f"Bearer {held.token}"})
        assert beat.status_code == 204
        async with judging.client() as buyer:
            [model] = (await buyer.get("/v1/models")).json()["data"]
            assert model["workers"] == 0
        # The same worker with new keys is no neighbour of itself.
        again = Enrollee("first", machine("shared"))
        assert enrolled(await again.enrol(client)).outcome == "admitted"
        await judging.rows("UPDATE workers SET state = 'removed' WHERE name = 'first' RETURNING 1")
        assert enrolled(await second.enrol(client)).outcome == "admitted"


async def test_a_worker_that_swaps_its_tls_key_after_attestation_is_never_sent_a_prompt(judging: Stack) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65536))
        writer.close()

    swapped: ssl.SSLContext = KeyRing(SystemClock(), random.Random(1).randbytes(16)).context
    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=swapped)
    async with server, judging.client(judging.worker_key) as client, judging.client() as buyer:
        port = server.sockets[0].getsockname()[1]
        answer = enrolled(await Enrollee("one", url=f"https://127.0.0.1:{port}").enrol(client))
        beat = {"authorization": f"Bearer {answer.token}"}
        assert (await client.post(HEARTBEAT_PATH, content=BEAT, headers=beat)).status_code == 204
        asked = await buyer.post("/v1/chat/completions", json=chat(provider={"require": "tdx"}))
        assert asked.status_code == 502, asked.text
    assert b"".join(heard) == b""
    assert "worker_identity_changed" in judging.log(characters=None)


async def test_evidence_is_refused_without_a_policy_and_can_be_required_with_one(stack: Stack, tmp_path: Path) -> None:
    await stack.start_gateway()
    async with stack.client(stack.worker_key) as client:
        one = Enrollee("one")
        refused(await one.send(client, one.evidence(bytes(32))), "evidence_unsupported")
        assert stack.gateway is not None
        stack.gateway.terminate()
        await asyncio.to_thread(stack.gateway.wait, 20)
        await stack.start_gateway(COCOON_EVIDENCE_REQUIRED="1", **policy_environment(tmp_path))
        refused(await one.send(client, None), "evidence_unsupported")
        enrolled(await one.enrol(client))


async def test_simulated_evidence_is_refused_by_a_policy_for_real_hardware(stack: Stack, tmp_path: Path) -> None:
    intel = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    tee = machine(gpus=0)
    text = tee.policy_toml(bind_manifest=False).decode()
    kept, roots = text.partition("[[roots]]")[0], f'[[roots]]\nuse = "tdx"\nkind = "intel"\nsha256 = "{intel}"\n'
    rest = text[text.index("[[releases]]") :]
    path = tmp_path / "intel.toml"
    path.write_text(kept + roots + rest)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    await stack.start_gateway(
        upstream=False, COCOON_POLICY_FILE=str(path), COCOON_POLICY_SHA256=digest, COCOON_PCCS_URL="http://127.0.0.1:9"
    )
    async with stack.client(stack.worker_key) as client:
        one = Enrollee("one", tee)
        refused(await one.enrol(client), "foreign_root")


async def test_production_refuses_simulation_on_both_sides(stack: Stack, tmp_path: Path) -> None:
    environment = stack.gateway_environment(stack.port, upstream=False) | policy_environment(tmp_path)
    production = {
        "COCOON_ENV": "production", "COCOON_GATEWAY_KEY": "22" * 32,
        "COCOON_GATEWAY_DELEGATION": "", "COCOON_OPERATOR_KEY": "d7" * 32,
    }  # fmt: skip
    worker = stack.worker_environment("w", ScriptedEngine()) | worker_environment() | production
    process = stack.start("refused-worker", ["worker"], worker)
    assert await asyncio.to_thread(process.wait, 20) == 1
    assert "COCOON_TEE_TYPE=simulated needs COCOON_ENV=development" in stack.log("refused-worker")
    mainnet = stack.start("mainnet", ["gateway"], environment | {"COCOON_GLOBAL_ID": "-239"})
    await stack.until_true(
        lambda: asyncio.sleep(0, stack.log("mainnet", None)),
        lambda text: "trusts simulated roots, which production refuses" in text,
    )
    mainnet.kill()
