"""Statements that name blocks of a real local chain: through an agent and a gateway, and each block that is refused."""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from attestation.evidence import Endorsements, Evidence
from attestation.judge import Question, judge
from attestation.policy import Deployment, load_policy
from billing.ton.beacons import beacon_of, own_beacon
from billing.ton.chain import ChainProofError, ChainUnavailableError
from billing.ton.liteclient import LiteChain, _Peer  # pyright: ignore[reportPrivateUsage]
from billing.ton.settings import read_liteservers
from cli.own_chain import LookedUp
from cocoon.clock import SystemClock
from cocoon.enrolment import CHALLENGE_PATH, HEARTBEAT_PATH, Challenge, EnrolAnswer, Heartbeat, HeartbeatAnswer
from cocoon.statement import Beacon, Statement
from gateway.beacons import Beacons
from tests.fixtures_attested import Enrollee, machine, policy_environment, worker_environment
from tests.fixtures_chain import LocalChain
from tests.fixtures_gateway import MODEL, Stack
from tests.memory_chain import MemoryChain

GLOBAL_ID = -3
PATIENCE_S = 60.0
BEAT = msgspec.json.encode(Heartbeat(running=0, queued=0, capacity=4))


@pytest.fixture(scope="module")
def ticking_chain() -> Iterator[LocalChain]:
    """A chain of this module's own, whose clock nobody moves: agents name no blocks of another time than theirs."""
    chain = LocalChain()
    try:
        chain.start()
        yield chain
    finally:
        chain.close()


@pytest.fixture
async def chain(ticking_chain: LocalChain) -> AsyncIterator[LiteChain]:
    async with LiteChain(read_liteservers(ticking_chain.config), SystemClock(), global_id=GLOBAL_ID) as opened:
        yield opened


@pytest.fixture
async def judging(stack: Stack, tmp_path: Path, ticking_chain: LocalChain) -> Stack:
    """A gateway with the simulated policy and the local chain, which its agents have heard of."""
    liteservers = str(ticking_chain.config)
    await stack.start_gateway(upstream=False, COCOON_LITESERVERS=liteservers, **policy_environment(tmp_path))
    async with stack.client(stack.worker_key) as client:
        await stack.until_true(lambda: client.post(CHALLENGE_PATH), lambda answer: told(answer) is not None)
    return stack


def told(answer: httpx.Response) -> Beacon | None:
    return msgspec.json.decode(answer.content, type=Challenge).beacon


def flipped(hash_: bytes) -> bytes:
    return hash_[:-1] + bytes((hash_[-1] ^ 1,))


async def test_an_agents_statements_name_the_chains_blocks(judging: Stack, chain: LiteChain) -> None:
    await judging.start_worker("attested", judging.engine, **worker_environment())
    [row] = await judging.rows("SELECT evidence, verdict FROM keysets WHERE name = 'attested'")
    named = Statement.decode(Evidence.decode(row["evidence"]).statement).beacon
    assert named.seqno > 0
    assert await own_beacon(chain, named) == named
    assert msgspec.json.decode(row["verdict"])["freshness"] == "nonce"

    # Whoever has a liteserver of their own knows how fresh it is without having given a nonce.
    async with judging.client() as client:
        shown = (await client.get("/v1/attestation", params={"model": MODEL})).json()["workers"][0]
    evidence, endorsements = (base64.b64decode(shown[name]) for name in ("evidence", "endorsements"))
    policy = machine().policy_toml(bind_manifest=False)
    verdict = judge(
        Evidence.decode(evidence), Endorsements.decode(endorsements),
        load_policy(policy, pinned_sha256=hashlib.sha256(policy).digest()),
        Question(SystemClock().now(), Deployment("development", GLOBAL_ID), beacon=await LookedUp(chain).beacon(named)),
    )  # fmt: skip
    assert (verdict.accepted, verdict.freshness) == (True, "own-liteserver"), verdict.in_words()

    # Heartbeats go on telling, so that what customers ask for later names later blocks.
    async with judging.client() as client:

        async def asked() -> Beacon | None:
            await asyncio.sleep(0.5)  # an agent states so often and no more
            answer = await client.get("/v1/attestation", params={"model": MODEL, "nonce": "ab" * 32})
            workers = answer.json().get("workers")
            if not workers:
                return None
            return Statement.decode(Evidence.decode(base64.b64decode(workers[0]["evidence"])).statement).beacon

        later = await judging.until_true(asked, lambda one: one is not None and one.seqno > named.seqno)
    assert await own_beacon(chain, later) == later


async def test_a_block_that_the_gateways_chain_does_not_have_is_refused(judging: Stack, chain: LiteChain) -> None:
    one = Enrollee("one")
    async with judging.client(judging.worker_key) as client:
        there = told(await client.post(CHALLENGE_PATH))
        assert there is not None
        head = beacon_of(await chain.head())
        elsewhere = hashlib.sha256(b"another chain").digest()
        for foreign in (
            msgspec.structs.replace(there, root_hash=flipped(there.root_hash)),
            msgspec.structs.replace(there, file_hash=flipped(there.file_hash)),
            msgspec.structs.replace(there, gen_utime=there.gen_utime + 1),
            Beacon(there.seqno, elsewhere, elsewhere, there.gen_utime),
            # A longer chain than ours: at that time ours was not so long.
            Beacon(head.seqno + 10_000_000, elsewhere, elsewhere, there.gen_utime - 1),
        ):
            answer = await one.send(client, one.evidence(await one.challenge(client), named=foreign))
            assert (answer.status_code, "[beacon_foreign]" in answer.text) == (403, True), answer.text
        old = msgspec.structs.replace(there, gen_utime=there.gen_utime - 3600)
        answer = await one.send(client, one.evidence(await one.challenge(client), named=old))
        assert (answer.status_code, "[beacon_old]" in answer.text) == (403, True), answer.text

        # The real one is admitted, and so is a worker that names none: the nonce alone says how fresh it is.
        for named in (there, None):
            answer = await one.send(client, one.evidence(await one.challenge(client), named=named))
            assert answer.status_code == 200, answer.text
        enrolled = msgspec.json.decode(answer.content, type=EnrolAnswer)
        headers = {"authorization": f"Bearer {enrolled.token}"}
        beat = await judging.until_true(
            lambda: client.post(HEARTBEAT_PATH, content=BEAT, headers=headers), lambda beat: beat.status_code == 200
        )
        assert msgspec.json.decode(beat.content, type=HeartbeatAnswer).beacon.seqno >= there.seqno


async def test_a_chain_that_is_away_costs_no_enrolment(stack: Stack, tmp_path: Path, own_chain: LocalChain) -> None:
    async with LiteChain(read_liteservers(own_chain.config), SystemClock(), global_id=GLOBAL_ID) as chain:
        there = beacon_of(await chain.head())
    own_chain.stop()
    liteservers = str(own_chain.config)
    await stack.start_gateway(upstream=False, COCOON_LITESERVERS=liteservers, **policy_environment(tmp_path))
    await stack.start_worker("attested", stack.engine, **worker_environment())
    one = Enrollee("one")
    async with stack.client(stack.worker_key) as client:
        # What cannot be looked up is neither believed nor refused.
        answer = await one.send(client, one.evidence(await one.challenge(client), named=there))
        assert answer.status_code == 200, answer.text
    rows = await stack.rows("SELECT name, evidence, verdict FROM keysets ORDER BY name")
    assert [msgspec.json.decode(row["verdict"])["freshness"] for row in rows] == ["nonce", "nonce"]
    named = [Statement.decode(Evidence.decode(row["evidence"]).statement).beacon for row in rows]
    assert (named[0].seqno, any(named[0].root_hash), named[1]) == (0, False, there)


async def test_a_named_block_is_looked_up_once_and_only_what_exists_is_remembered() -> None:
    chain, clock = MemoryChain(), SystemClock()
    beacons = Beacons(chain, clock)
    for _ in range(3):
        chain.mine()
    there = beacon_of(await chain.block(2))
    assert beacons.head is None
    forged = msgspec.structs.replace(there, root_hash=bytes(32))
    assert await beacons.own(there) == there == await beacons.own(forged)
    chain.unavailable = True
    assert (await beacons.own(there), await beacons.own(forged)) == (there, None)
    chain.unavailable = False
    ahead = msgspec.structs.replace(beacon_of(await chain.head()), seqno=99)
    assert await beacons.own(ahead) is None
    nothing = Beacon(0, bytes(32), bytes(32), chain.now)
    assert (await beacons.own(nothing), await Beacons(None, clock).own(there)) == (None, None)


async def test_the_last_block_is_kept_at_hand_while_the_chain_answers() -> None:
    chain = MemoryChain()
    beacons = Beacons(chain, SystemClock())
    assert beacons.head is None
    running = asyncio.create_task(beacons.run())
    end = time.monotonic() + PATIENCE_S
    while beacons.head is None:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    running.cancel()
    assert beacons.head == beacon_of(await chain.head())
    # What was handed out is known, whether or not the chain can be asked about it.
    chain.unavailable = True
    assert await beacons.own(beacons.head) == beacons.head


async def test_a_liteservers_lie_about_a_block_is_found_out(ticking_chain: LocalChain, chain: LiteChain) -> None:
    there = await chain.block(1)
    assert there.seqno == 1
    with pytest.raises(ChainUnavailableError):
        await chain.block(2**31 - 1)
    async with LiteChain(read_liteservers(ticking_chain.config), SystemClock(), global_id=-239) as other:
        with pytest.raises(ChainProofError):
            await other.block(1)


@pytest.mark.parametrize("lie", ["another root", "another number"])
async def test_a_block_that_does_not_exist_cannot_be_shown(
    chain: LiteChain, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A liteserver says that a statement's block is there, and has no header that proves it."""
    end = time.monotonic() + PATIENCE_S
    while (there := beacon_of(await chain.head())).seqno < 3:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    named = msgspec.structs.replace(there, root_hash=flipped(there.root_hash), seqno=2)
    honest = _Peer.ask

    async def lying(peer: _Peer, name: str, data: dict[str, Any]) -> dict[str, Any]:
        answer = await honest(peer, name, data)
        if name == "lookupBlock" and lie == "another root":
            answer["id"]["root_hash"] = named.root_hash.hex()
        elif name == "lookupBlock":
            answer = await honest(peer, name, {**data, "id": {**data["id"], "seqno": 1}})
        return answer

    monkeypatch.setattr(_Peer, "ask", lying)
    with pytest.raises(ChainProofError):
        await own_beacon(chain, named)
    assert await Beacons(chain, SystemClock()).own(named) is None
    assert await LookedUp(chain).beacon(named) is None
