"""The drop-in clients with a chain of one's own: what a gateway shows that the chain does not have is refused."""

import hashlib
import time
from typing import Any

import httpx
import msgspec
import pytest

from billing.ton.beacons import beacon_of
from cli.own_chain import LookedUp
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE as ESCROW
from cocoon.contracts.payout import CODE as PAYOUT
from cocoon.contracts.payout import Anchor, PayoutData
from cocoon.contracts.stake import CODE as STAKE
from cocoon.contracts.stake import StakeData, StakePhase
from cocoon_client import AsyncOpenAI, OpenAI
from cocoon_client.errors import NotTrustedError, TrustError
from cocoon_client.openai import AsyncSealingClient, SealingClient
from cocoon_client.verification.chain import OwnChain
from cocoon_client.verification.steps import Report, Step
from tests.fake_network import API_KEY, BASE_URL, MODEL, NETWORK, FakeGateway, FakeWorker
from tests.memory_chain import BLOCK_S, MemoryChain
from tests.settlement_chain import payout_config
from tests.signing_values import Operator
from tests.stake_values import a_stake_config, a_staked_key

ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "the plaintext"}], "max_tokens": 9}
OPERATOR = Operator(NETWORK)
STAKED = a_staked_key(operator_key=OPERATOR.public)
CONTRACT = Address(0, bytes([7]) * 32)
BLOCKS = 40
FOREIGN = "beacon_foreign"


class Scene:
    """A gateway with one worker, and a chain of the reader's own, whose last block is of just now."""

    def __init__(self) -> None:
        self.chain = MemoryChain(now=int(time.time()) - BLOCKS * BLOCK_S)
        for _ in range(BLOCKS):
            self.chain.mine()
        self.put_stake()
        self.own = LookedUp(self.chain, CONTRACT)
        self.worker = FakeWorker(staked=STAKED)
        self.gateway = FakeGateway(self.worker)
        self.gateway.operator = OPERATOR

    async def name(self, seqno: int, **claims: Any) -> None:
        """Have the worker name a block, and claim something else about it."""
        named = beacon_of(await self.chain.block(seqno))
        self.worker.named = msgspec.structs.replace(named, **claims)

    def put_stake(self, phase: StakePhase = StakePhase.LIVE, *, code: str = STAKE) -> None:
        data = StakeData(phase, 9, 2, 0, a_stake_config(operator_key=OPERATOR.public)).encode()
        self.chain.put(STAKED.address, data, code=code_of(code))
        self.chain.mine()

    def put_anchor(self, *, root: bytes | None = None) -> None:
        tree = self.gateway.log.tree
        anchor = Anchor(1, hashlib.sha256(b"log.test").digest(), tree.size, root or tree.root, bytes(32))
        data = PayoutData.initial(payout_config(CONTRACT, fee_bps=0, delay_s=0, salt=bytes(32)))
        self.chain.put(CONTRACT, msgspec.structs.replace(data, anchor=anchor).encode(), code=code_of(PAYOUT))
        self.chain.mine()

    def sealing(self, chain: OwnChain | None) -> SealingClient:
        return SealingClient(self.gateway.trust(), transport=self.gateway, asking=lambda: self.gateway, chain=chain)

    def ask(self, chain: OwnChain | None) -> None:
        with OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=self.sealing(chain), max_retries=0) as client:
            client.chat.completions.create(**ASKED)

    async def aask(self, chain: OwnChain | None) -> None:
        http = AsyncSealingClient(self.gateway.trust(), transport=self.gateway, chain=chain)
        async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http, max_retries=0) as client:
            await client.chat.completions.create(**ASKED)


@pytest.fixture
async def scene() -> Scene:
    made = Scene()
    await made.name(BLOCKS)
    made.put_anchor()
    return made


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_worker_that_dates_an_old_block_anew_gets_nothing(scene: Scene, *, asynchronous: bool) -> None:
    async def ask(chain: OwnChain | None) -> None:
        await scene.aask(chain) if asynchronous else scene.ask(chain)

    await ask(scene.own)
    now = int(time.time())
    for claims in ({"seqno": 3, "gen_utime": now}, {"seqno": BLOCKS, "root_hash": bytes(32)}):
        await scene.name(**claims)
        await ask(None)
        sent = len(scene.gateway.requests)
        with pytest.raises(NotTrustedError, match=FOREIGN):
            await ask(scene.own)
        assert [request.method for request in scene.gateway.requests[sent:]] == ["GET", "GET"]
    # A chain that cannot say is no reason to refuse: the evidence carries the client's own nonce.
    scene.chain.unavailable = True
    await ask(scene.own)


async def test_the_openai_class_hands_its_chain_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "HTTPTransport", lambda: scene.gateway)
    trust = scene.gateway.trust()
    await scene.name(BLOCKS, file_hash=bytes(32))
    with (
        OpenAI(base_url=BASE_URL, api_key=API_KEY, cocoon=trust, chain=scene.own, max_retries=0) as client,
        pytest.raises(NotTrustedError, match=FOREIGN),
    ):
        client.chat.completions.create(**ASKED)


async def test_a_chain_that_nobody_would_ask_is_refused(scene: Scene) -> None:
    with pytest.raises(TrustError, match="nobody would ask"):
        OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=scene.sealing(None), chain=scene.own)
    async with AsyncSealingClient(scene.gateway.trust(), transport=scene.gateway) as http:
        with pytest.raises(TrustError, match="nobody would ask"):
            AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=http, chain=scene.own)


def test_what_the_chain_has_against_a_receipt_is_found_out(scene: Scene) -> None:
    with OpenAI(base_url=BASE_URL, api_key=API_KEY, http_client=scene.sealing(scene.own)) as client:
        client.chat.completions.create(**ASKED)
        assert client.cocoon.newest is not None
        scene.gateway.bundle(client.cocoon.newest)
        scene.put_anchor()

        def step(name: str) -> tuple[Report, Step]:
            report = client.verify()
            return report, report.step(name)

        report = client.verify()
        assert report.holds, report.in_words()
        assert {report.step(name).outcome for name in ("beacon", "stake", "anchor")} == {"held"}
        assert "are bonded" in report.step("stake").sentence

        for phase, code in ((StakePhase.SLASHED, STAKE), (StakePhase.LIVE, ESCROW)):
            scene.put_stake(phase, code=code)
            report, found = step("stake")
            assert (report.holds, found.outcome) == (False, "failed"), (phase, code)
        scene.put_stake()
        scene.put_anchor(root=bytes(32))
        report, found = step("anchor")
        assert (report.holds, found.outcome) == (False, "failed")
