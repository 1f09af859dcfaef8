"""Evidence that ages: collateral that changes, verdicts that end, releases that come and go."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from attestation.simulation.tdx import Judgement
from cli.dev.address import free_port
from cocoon.clock import SystemClock
from cocoon.enrolment import HEARTBEAT_PATH, EnrolAnswer, Heartbeat
from tests.fixtures_attested import Enrollee, FakePCCS, machine, policy_environment, worker_environment
from tests.fixtures_gateway import Stack, chat

BEAT = msgspec.json.encode(Heartbeat(running=0, queued=0, capacity=4))


@pytest.fixture
async def pccs() -> AsyncIterator[FakePCCS]:
    async with FakePCCS() as served:
        yield served


@contextlib.asynccontextmanager
async def beating(client: httpx.AsyncClient, answer: EnrolAnswer) -> AsyncIterator[None]:
    """Heartbeats of a worker that does nothing else."""

    async def beat() -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                headers = {"authorization": f"Bearer {answer.token}"}
                await client.post(HEARTBEAT_PATH, content=BEAT, headers=headers)
            await asyncio.sleep(0.3)

    task = asyncio.ensure_future(beat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def codes(answer: httpx.Response) -> set[str]:
    """What an enrolment was told: `admitted`, or the codes against it and whether it waits or is refused."""
    if answer.status_code == 403:
        words = answer.json()["error"]["message"].split("[")[1:]
        return {"refused", *(word.split("]")[0] for word in words)}
    assert answer.status_code == 200, answer.text
    enrolled = msgspec.json.decode(answer.content, type=EnrolAnswer)
    return {enrolled.outcome, *(reason.code for reason in enrolled.reasons)}


async def test_what_the_vendor_says_decides_and_is_served_on_and_shared(
    stack: Stack, tmp_path: Path, pccs: FakePCCS
) -> None:
    now, platform = SystemClock().now(), machine("one").platform
    environment: dict[str, Any] = policy_environment(tmp_path) | {
        "COCOON_PCCS_URL": pccs.url,
        "COCOON_COLLATERAL_S": "0.1",
    }
    await stack.start_gateway(upstream=False, **environment)
    async with stack.client(stack.worker_key) as client:
        one = Enrollee("one")

        async def until(expected: set[str]) -> None:
            await stack.until_true(lambda: one.enrol(client), lambda answer: codes(answer) == expected)

        # Nothing to be had, then somebody else's: the worker waits, and is not to blame.
        await until({"quarantined", "collateral_missing"})
        own = platform.collateral(now)
        other = own.tcb_info.replace("00A06F510000", "00906ED50000")
        pccs.collateral = msgspec.structs.replace(own, tcb_info=other)
        await until({"quarantined", "collateral_missing"})
        pccs.collateral = platform.collateral(now - dt.timedelta(days=60))
        await until({"quarantined", "collateral_stale"})
        # Days before its end it is refreshed, unasked.
        pccs.collateral = platform.collateral(now - dt.timedelta(minutes=10), Judgement(days=1))
        await until({"admitted"})
        assert "collateral_refreshed" in stack.log(characters=None)
        pccs.collateral = platform.collateral(
            now - dt.timedelta(minutes=8), Judgement(days=1, status="OutOfDate", advisories=("INTEL-SA-1",))
        )
        await until({"refused", "tcb_unacceptable"})
        pccs.collateral = platform.collateral(now - dt.timedelta(minutes=6), Judgement(days=1, revoke_pck=True))
        await until({"refused", "certificate_revoked"})
        # An older document, without the revocation, does not come back.
        pccs.collateral = platform.collateral(now - dt.timedelta(minutes=9), Judgement(days=1))
        asked = pccs.asked
        await stack.until_true(lambda: asyncio.sleep(0), lambda _: pccs.asked >= asked + 8)
        assert codes(await one.enrol(client)) == {"refused", "certificate_revoked"}
        # The service is away: what is held is served on, also by a replica that never reached it.
        pccs.collateral = platform.collateral(now - dt.timedelta(minutes=4), Judgement(days=1))
        await until({"admitted"})
        pccs.collateral = None
        assert codes(await one.enrol(client)) == {"admitted"}
        port = free_port()
        stack.start("second", ["gateway"], stack.gateway_environment(port, upstream=False) | environment)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=client.headers, trust_env=False
        ) as second:
            await stack.until_true(lambda: one.enrol(second), lambda answer: codes(answer) == {"admitted"})


async def test_fresh_evidence_keeps_a_worker_in_rotation_everywhere_and_none_takes_it_out(
    stack: Stack, tmp_path: Path
) -> None:
    brief = policy_environment(tmp_path, ("verdict_seconds_max = 3600", "verdict_seconds_max = 6"))
    await stack.start_gateway(upstream=False, processes=2, **brief)
    await stack.start_worker("fresh", stack.engine, **worker_environment())
    nonces = "SELECT nonce, attested_until FROM keysets WHERE name = 'fresh'"
    [first] = await stack.rows(nonces)
    async with stack.client(stack.worker_key) as client:
        stale = Enrollee("stale")

        async def shown() -> int:
            answer = msgspec.json.decode((await stale.enrol(client)).content, type=EnrolAnswer)
            assert 0 < answer.reattest_seconds <= 3
            await client.post(HEARTBEAT_PATH, content=BEAT, headers={"authorization": f"Bearer {answer.token}"})
            return (await client.get("/readyz")).json()["workers"]

        await stack.until_true(shown, lambda workers: workers == 2)
        answer = msgspec.json.decode((await stale.enrol(client)).content, type=EnrolAnswer)
        # It goes on reporting, and shows nothing new: every process drops it when its verdict ends.
        async with beating(client, answer):
            await stack.until_workers(1)
    [later] = await stack.until_true(
        lambda: stack.rows(nonces), lambda rows: rows[0]["attested_until"] > first["attested_until"]
    )
    assert later["nonce"] != first["nonce"]
    async with stack.client() as buyer:
        request = chat(provider={"require": "tdx"})
        await stack.until_true(
            lambda: buyer.post("/v1/chat/completions", json=request),
            lambda answer: (answer.status_code, answer.headers.get("x-cocoon-worker")) == (200, "fresh"),
        )
    # Showing fresh evidence is no new admission: the log has each keyset once.
    [leaves] = await stack.rows("SELECT count(*) AS n FROM log_envelopes WHERE leaf_type = 2")
    assert leaves["n"] == 2


async def test_two_releases_stand_side_by_side_and_the_old_one_is_drained(stack: Stack, tmp_path: Path) -> None:
    both = policy_environment(tmp_path, name="both", images=("old", "new"))
    text = (tmp_path / "both.toml").read_text()
    drained = policy_environment(
        tmp_path, ('name = "old"\n', 'name = "old"\ndraining = true\n'), name="drained", images=("old", "new")
    )
    assert text != (tmp_path / "drained.toml").read_text()
    await stack.start_gateway(upstream=False, **both)
    async with stack.client(stack.worker_key) as client, stack.client() as buyer:
        old = Enrollee("a", machine("a", image="old"))
        new = Enrollee("b", machine("b", image="new"))
        enrolled = [await one.enrol(client) for one in (old, new)]
        assert [codes(answer) for answer in enrolled] == [{"admitted"}, {"admitted"}]
        assert codes(await Enrollee("c", machine("c", image="other")).enrol(client)) == {
            "refused", "measurement_unknown",
        }  # fmt: skip
        beats = [msgspec.json.decode(answer.content, type=EnrolAnswer) for answer in enrolled]
        async with beating(client, beats[0]), beating(client, beats[1]):

            async def types(asking: httpx.AsyncClient) -> object:
                return (await asking.get("/v1/models")).json()["data"][0]["tee_types"]

            await stack.until_true(lambda: types(buyer), lambda found: found == {"tdx-simulated": 2})
            # A replica with the next policy judges what is stored by it, without asking the workers.
            port = free_port()
            stack.start("next", ["gateway"], stack.gateway_environment(port, upstream=False) | drained)
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers=buyer.headers, trust_env=False
            ) as other:
                await stack.until_true(lambda: types(other), lambda found: found == {"tdx-simulated": 1})
                assert await types(buyer) == {"tdx-simulated": 2}
                other.headers["authorization"] = client.headers["authorization"]
                assert codes(await old.enrol(other)) == {"quarantined", "release_draining"}
    policies = await stack.rows("SELECT count(*) AS n FROM log_envelopes WHERE leaf_type = 4")
    assert policies[0]["n"] == 2
