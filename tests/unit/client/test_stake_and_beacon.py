"""What a client finds out about the stake behind a worker and the block that its evidence names; attacks refused."""

import functools
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.evidence import Evidence
from cli.own_chain import LookedUp
from cocoon.addresses import Address
from cocoon.bundle import ReceiptBundle
from cocoon.cells import Builder, write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE as ESCROW
from cocoon.contracts.stake import CODE, StakeData, StakePhase
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.statement import Beacon, Statement
from cocoon_client.errors import NotTrustedError
from cocoon_client.openai import SealingClient
from cocoon_client.opening import Opening
from cocoon_client.store import Store
from cocoon_client.transport import AsyncSealingTransport, Sealer
from cocoon_client.verification.chain import OnChain, StakeOnChain, named_in
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.steps import Report, Step
from cocoon_client.verification.walk import verify
from tests.fake_network import API_KEY, BASE_URL, MODEL, FakeGateway, FakeWorker
from tests.memory_chain import MemoryChain
from tests.signing_values import Operator
from tests.stake_values import a_stake_config, a_staked_key
from workers.agent.staking import StakedKey

NETWORK = -3
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "a prompt"}]}
OPERATOR = Operator(NETWORK)
HEADERS = {"authorization": f"Bearer {API_KEY}"}


def ours(**changes: Any) -> StakedKey:
    return a_staked_key(operator_key=OPERATOR.public, **changes)


class Scene(msgspec.Struct):
    gateway: FakeGateway
    bundle: ReceiptBundle
    opening: Opening

    @property
    def proof(self) -> Proof:
        return Proof(bundle=self.bundle, opening=self.opening)

    @property
    def named(self) -> Beacon:
        found = named_in(self.proof).beacon
        assert found is not None
        return found

    def report(self, on_chain: OnChain | None = None, **bundle: Any) -> Report:
        changed = msgspec.structs.replace(self.bundle, **bundle)
        return verify(Proof(changed, self.opening), self.gateway.trust(), None, on_chain or OnChain())

    def stake(self, on_chain: OnChain | None = None, **bundle: Any) -> Step:
        return self.report(on_chain, **bundle).step("stake")


def scene_of(worker: FakeWorker) -> Scene:
    gateway = FakeGateway(worker)
    gateway.operator = OPERATOR
    client = SealingClient(gateway.trust(), transport=gateway)
    assert client.post(BASE_URL + "/chat/completions", json=BODY, headers=HEADERS).status_code == 200
    opening = client.kept.newest
    assert opening is not None
    return Scene(gateway, gateway.bundle(opening), opening)


@functools.cache
def staked() -> Scene:
    return scene_of(FakeWorker(staked=ours()))


class Restated(FakeWorker):
    """A worker whose keyset says something else about its stake, in evidence that holds all the same."""

    def __init__(self, staked: StakedKey, **changes: Any) -> None:
        super().__init__(staked=staked)
        self.keyset = msgspec.structs.replace(self.keyset, **changes)
        self.raw = self.keyset.encode()
        self.digest = keyset_digest(self.raw)


def test_the_staked_key_behind_a_receipt_is_shown() -> None:
    report = staked().report()
    assert report.holds, report.in_words()
    step = report.step("stake")
    assert (step.outcome, "was not looked up" in step.sentence) == ("held", True)
    bonded = OnChain(stake=StakeOnChain("live", 7, 5 * 10**9, 10**9))
    step = staked().stake(bonded)
    assert step.outcome == "held"
    assert "as of block 7 of your own chain 5 TON are bonded, and 1 TON on their way out" in step.sentence


def test_a_proof_from_before_configurations_were_kept_stays_good() -> None:
    old = msgspec.json.decode(Proof(staked().bundle, staked().opening).encode())
    del old["bundle"]["stake"]
    report = verify(Proof.decode(msgspec.json.encode(old)), staked().gateway.trust())
    assert report.holds, report.in_words()
    step = report.step("stake")
    assert (step.outcome, step.required) == ("not shown", False)


@pytest.mark.parametrize("state", ["slashed", "absent"])
def test_a_stake_that_is_gone_fails(state: Any) -> None:
    report = staked().report(OnChain(stake=StakeOnChain(state, 7)))
    assert not report.holds
    assert report.step("stake").outcome == "failed"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (ours(salt=b"\x01" * 32).config, "not that of the stake"),
        (ours(bounty_bps=2_000).config, "not that of the stake"),
        (write_boc(Builder().uint(7, 32).end()), "not its configuration"),
        (b"\xff" * 40, "not its configuration"),
        (b"", "not its configuration"),
    ],
    ids=["another salt", "another bounty", "another cell", "rubbish", "nothing"],
)
def test_the_configuration_of_something_else_is_refused(config: bytes, why: str) -> None:
    step = staked().stake(stake=config)
    assert (step.outcome, why in step.sentence) == ("failed", True), step


def test_a_stake_that_answers_for_another_operator_is_refused() -> None:
    worker = FakeWorker(staked=a_staked_key())
    with pytest.raises(NotTrustedError, match="another operator key"):
        scene_of(worker)
    worker.stake_config = None
    found = scene_of(worker)
    assert "another operator key" in found.stake(stake=a_staked_key().config).sentence
    assert found.stake(stake=a_staked_key().config).outcome == "failed"


def other_staked_key() -> StakedKey:
    key = Ed25519PrivateKey.from_private_bytes(b"\x77" * 32)
    config = a_stake_config(operator_key=OPERATOR.public, staked_key=key.public_key().public_bytes_raw())
    return StakedKey(key, config, global_id=NETWORK)


@functools.cache
def forgeries() -> dict[str, Restated]:
    stake = ours()
    honest = FakeWorker(staked=stake).keyset
    end = honest.not_after
    foreign = a_staked_key(-239, operator_key=OPERATOR.public)

    def made(make: Any) -> Restated:
        worker = Restated(stake)
        worker.keyset = msgspec.structs.replace(worker.keyset, delegation=make(worker.keyset))
        worker.raw = worker.keyset.encode()
        worker.digest = keyset_digest(worker.raw)
        return worker

    return {
        "another staked key": made(lambda keyset: other_staked_key().delegate(keyset.receipt_pk, keyset.not_after)),
        "another stake": made(lambda keyset: ours(salt=b"\x01" * 32).delegate(keyset.receipt_pk, keyset.not_after)),
        "another network": made(lambda keyset: foreign.delegate(keyset.receipt_pk, keyset.not_after)),
        "another receipt key": made(lambda keyset: stake.delegate(b"\x05" * 32, keyset.not_after)),
        "a delegation that has ended": made(lambda keyset: stake.delegate(keyset.receipt_pk, keyset.not_before - 1)),
        "a delegation for longer": made(lambda keyset: stake.delegate(keyset.receipt_pk, end + 10_000)),
        "no signature": made(lambda keyset: b"\x09" * 64),
    }


@pytest.mark.parametrize(
    "name",
    [
        "another staked key", "another stake", "another network", "another receipt key", "a delegation that has ended",
        "a delegation for longer", "no signature",
    ],
)  # fmt: skip
def test_a_keyset_that_its_staked_key_has_not_delegated_to_is_refused(name: str) -> None:
    worker = forgeries()[name]
    # Nothing is sealed for it where the configuration is shown.
    with pytest.raises(NotTrustedError, match="stake"):
        scene_of(worker)
    config, worker.stake_config = worker.stake_config, None
    found = scene_of(worker)
    worker.stake_config = config
    assert found.report().holds
    step = found.stake(stake=config)
    assert (step.outcome, "has not delegated" in step.sentence) == ("failed", True), step


def test_a_head_that_names_another_stake_than_the_keyset_is_refused() -> None:
    worker = FakeWorker(staked=ours())
    worker.stake = b"\x66" * 32
    step = scene_of(worker).stake()
    assert (step.outcome, "another stake than the keyset" in step.sentence) == ("failed", True)
    bare = FakeWorker()
    bare.stake = b"\x66" * 32
    assert scene_of(bare).stake().outcome == "failed"


def test_a_stake_that_is_no_address_or_lacks_a_delegation_is_refused() -> None:
    for changes in ({"delegation": b""}, {"stake_addr": "0:00"}, {"stake_addr": ""}):
        worker = Restated(ours(), **changes)
        with pytest.raises(NotTrustedError, match="stake"):
            scene_of(worker)


async def test_what_the_chain_has_of_a_stake_is_looked_up() -> None:
    chain, stake = MemoryChain(), ours()
    config = a_stake_config(operator_key=OPERATOR.public)
    looked_up = LookedUp(chain)

    async def seen() -> StakeOnChain | None:
        return (await looked_up.look(staked().proof)).stake

    assert await seen() == StakeOnChain("absent", chain.seqno)
    for phase, state in ((StakePhase.LIVE, "live"), (StakePhase.SLASHED, "slashed")):
        chain.put(stake.address, StakeData(phase, 9, 2, 0, config).encode(), code=code_of(CODE))
        chain.mine()
        found = await seen()
        assert found is not None
        assert (found.state, found.bond_nano, found.unbonding_nano) == (state, 9, 2)
    chain.put(stake.address, StakeData(StakePhase.LIVE, 9, 2, 0, config).encode(), code=code_of(ESCROW))
    chain.mine()
    assert await seen() == StakeOnChain("absent", chain.seqno)
    chain.unavailable = True
    assert await seen() is None


# Blocks


def test_evidence_is_younger_than_a_block_of_ones_own_chain() -> None:
    found = staked()
    report = found.report(OnChain(beacon=found.named))
    assert report.holds
    assert (report.step("beacon").outcome, "own-liteserver" in report.step("beacon").sentence) == ("held", True)
    # A bare bundle has no nonce of the verifier's: the block says how fresh its evidence is.
    bare = Proof(bundle=found.bundle)
    named = named_in(bare).beacon
    step = verify(bare, found.gateway.trust(), None, OnChain(beacon=named)).step("freshness")
    assert (step.outcome, "own-liteserver" in step.sentence) == ("held", True)
    assert verify(bare, found.gateway.trust()).step("freshness").outcome == "not shown"


def flipped(raw: bytes) -> bytes:
    return bytes((raw[0] ^ 1,)) + raw[1:]


def test_a_block_that_ones_own_chain_does_not_have_is_refused() -> None:
    found, named = staked(), staked().named
    for own in (
        msgspec.structs.replace(named, root_hash=flipped(named.root_hash)),
        msgspec.structs.replace(named, file_hash=flipped(named.file_hash)),
        msgspec.structs.replace(named, gen_utime=named.gen_utime + 1),
        Beacon(named.seqno - 1, bytes(32), bytes(32), named.gen_utime + 9),
    ):
        report = found.report(OnChain(beacon=own))
        assert not report.holds
        assert "[beacon_foreign]" in report.step("beacon").sentence


async def test_a_chain_that_cannot_say_changes_nothing() -> None:
    chain = MemoryChain()
    chain.unavailable = True
    on_chain = await LookedUp(chain).look(staked().proof)
    report = staked().report(on_chain)
    assert (on_chain, report.holds) == (OnChain(), True)
    step = report.step("beacon")
    assert (step.outcome, step.required) == ("not shown", False)


async def test_nothing_is_sealed_for_a_worker_whose_block_is_not_in_the_clients_chain(tmp_path: Any) -> None:
    gateway = FakeGateway()
    chain = MemoryChain(now=1_000_000)
    while chain.seqno < 9:
        chain.mine()
    sealer = Sealer(gateway.trust(), Store(tmp_path))
    async with httpx.AsyncClient(transport=AsyncSealingTransport(sealer, gateway, LookedUp(chain))) as client:
        with pytest.raises(NotTrustedError, match="beacon_foreign"):
            await client.post(BASE_URL + "/chat/completions", json=BODY, headers=HEADERS)
        chain.unavailable = True
        assert (await client.post(BASE_URL + "/chat/completions", json=BODY, headers=HEADERS)).status_code == 200


def test_the_named_block_is_the_statements() -> None:
    evidence = Evidence.decode(staked().opening.evidence)
    assert staked().named == Statement.decode(evidence.statement).beacon
    assert named_in(staked().proof).stake == ours().address.account
    assert Address.parse(Keyset.decode(evidence.keyset).stake_addr) == ours().address
    assert named_in(Proof(opening=staked().opening)).beacon is None
