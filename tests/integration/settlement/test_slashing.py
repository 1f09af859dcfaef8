"""A worker that lies under its signature loses its stake on the local chain (a simulated TON), and nobody else does."""

import hashlib
import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest

from billing.postgres.alarms import Alarms
from billing.postgres.covers import Covers
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from billing.postgres.slashing import SlashEvidence, keep_evidence
from billing.postgres.stakes import Stakes
from billing.settlement.actions import SLASH_NANO
from billing.settlement.deployment import deploy_stake
from billing.settlement.reconcile import reconcile
from billing.settlement.watch import StakeWatcher
from billing.slashing import EvidenceState, StakeEvidence
from billing.stakes import CoverTerms, StakeState
from billing.ton.chain import TRANSACTIONS_MAX, ChainMessage, ChainTransaction
from billing.ton.wallet_messages import Transfer
from cocoon.addresses import Address
from cocoon.cells import Cell, write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.judge import Accused, Refusal, judge
from cocoon.contracts.messages import operation_of
from cocoon.contracts.stake import (
    CODE,
    Bounty,
    Burn,
    Evidence,
    EvidenceKind,
    RequestUnbond,
    Slash,
    StakeConfig,
    StakeData,
    StakePhase,
    delegate_receipt_key,
)
from cocoon.receipt import ReceiptHead
from cocoon.receipt_batch import Verdict
from cocoon.signed_batch import BatchHead
from cocoon.usage import TokenUsage
from tests.integration.postgres.test_receipt_desk import Scene
from tests.integration.settlement.test_lifecycle import biller
from tests.settlement_chain import GLOBAL_ID, TON, SettlementNetwork, key, public, until
from tests.signing_values import Operator
from workers.agent.staking import StakedKey

BOND = 5 * TON + 1
"""A nano that no bounty divides."""
BOUNTY_BPS = 1_500
BOUNTY = BOND * BOUNTY_BPS // 10_000
ABOVE = TokenUsage(prompt=101, completion=5)
"""The tickets of these tests allow 100 prompt tokens."""


class Staked:
    """A worker with a stake on the chain, and the gateway that keeps what it signs."""

    def __init__(self, network: SettlementNetwork, scene: Scene, config: StakeConfig) -> None:
        self.network = network
        self.chain = network.chain
        self.scene = scene
        self.config = config
        self.address = deploy_stake(config, 0).destination
        self.evidence = SlashEvidence(scene.pool)
        self.accused = Accused.of(self.address.account, config, global_id=GLOBAL_ID)

    async def data(self) -> StakeData:
        state = await self.chain.account(self.address)
        assert state.data is not None
        return StakeData.decode(state.data)

    async def slashes(self) -> list[ChainTransaction]:
        """Every message that asked the contract to slash, newest first."""
        return [
            one
            for one in await self.chain.transactions(self.address)
            if one.incoming is not None and (operation_of(one.incoming.body) or (0, 0))[0] == Slash.TAG
        ]

    async def states(self) -> dict[EvidenceKind, EvidenceState]:
        return {one.kind: one.state for one in await self.evidence.list(limit=10)}

    async def equivocate(self) -> None:
        """Two jobs are answered under one number, and both receipts are delivered."""
        for _ in range(2):
            await self.scene.deliver(await self.scene.answer(seq=7))

    async def use_more(self) -> None:
        """A receipt that says more than its ticket allows is delivered."""
        [verdict] = (await self.scene.deliver(await self.scene.answer(seq=8, usage=ABOVE))).verdicts
        assert verdict is Verdict.DISCREPANCY

    async def is_slashed(self) -> bool:
        [stake] = await Stakes(self.scene.pool).all()
        return stake.state is StakeState.SLASHED and EvidenceState.PENDING not in (await self.states()).values()

    async def no_alarm(self) -> bool:
        return not await Alarms(self.scene.pool).open()


@pytest.fixture
async def staked(
    network: SettlementNetwork, ledger: PostgresLedger, connection: Connection, pool: Pool
) -> AsyncIterator[Staked]:
    operator = Operator(GLOBAL_ID)
    config = StakeConfig(
        owner=network.operator.address, operator=network.operator.address, staked_key=public("staked"),
        operator_key=operator.public, unbond_s=86_400, bounty_bps=BOUNTY_BPS,
        salt=hashlib.sha256(network.name.encode()).digest(),
    )  # fmt: skip
    key_of_stake = StakedKey(key("staked"), config, global_id=GLOBAL_ID)
    async with Scene(ledger, pool, connection, operator=operator, staked=key_of_stake).running() as scene:
        made = Staked(network, scene, config)
        await Stakes(pool).register(str(made.address), scene.signer.worker_id)
        await network.operator.send(deploy_stake(config, BOND))
        yield made


def sent(slash: ChainTransaction, operation: int | None) -> ChainMessage:
    """The message of this operation that a slash has sent, under its own query id."""
    assert slash.incoming is not None
    wanted = operation, Slash.decode(slash.incoming.body).query_id
    [found] = [one for one in slash.outgoing if operation_of(one.body) == wanted]
    return found


async def test_two_heads_of_one_number_cost_the_stake_to_the_nano(staked: Staked, database_url: str) -> None:
    await staked.equivocate()
    assert await staked.states() == {EvidenceKind.EQUIVOCATION: EvidenceState.PENDING}
    async with biller(staked.network, database_url, staked.scene.pool, operator_key=staked.config.operator_key):
        await until(staked.is_slashed, "the slash")
        await until(staked.no_alarm, "an end of the alarm")

    data, [slash] = await staked.data(), await staked.slashes()
    assert (data.phase, data.bond_nano, data.unbonding_nano) == (StakePhase.SLASHED, 0, 0)
    operator = staked.network.operator.address
    assert slash.incoming is not None
    assert (slash.incoming.source, slash.incoming.value_nano) == (operator, SLASH_NANO)
    bounty, burn = sent(slash, Bounty.TAG), sent(slash, Burn.TAG)
    assert (bounty.destination, bounty.value_nano) == (operator, BOUNTY)
    assert (burn.destination, burn.value_nano) == (Address(0, bytes(32)), BOND - BOUNTY)
    assert Bounty.decode(bounty.body).amount_nano + Burn.decode(burn.body).amount_nano == BOND
    taken = [
        one.incoming
        for one in await staked.chain.transactions(operator, limit=TRANSACTIONS_MAX)
        if one.incoming is not None
    ]
    assert [one.value_nano for one in taken if one.source == staked.address and one.body.hash == bounty.body.hash] == [
        BOUNTY
    ]
    [kept] = await staked.evidence.list(limit=10)
    assert (kept.state, kept.staked_nano, kept.worker_id) == (
        EvidenceState.SLASHED, BOND, staked.scene.signer.worker_id
    )  # fmt: skip
    assert (await reconcile(staked.scene.pool, staked.chain, staked.network.payout)).differences == ()


async def test_asking_for_the_stake_back_escapes_nothing_and_two_lies_are_one_slash(
    staked: Staked, database_url: str
) -> None:
    await staked.network.operator.send(Transfer(staked.address, TON // 20, RequestUnbond(1, BOND).encode()))

    async def unbonding() -> bool:
        return (await staked.data()).unbonding_nano == BOND

    await until(unbonding, "the request")
    await staked.use_more()
    await staked.equivocate()
    assert await staked.states() == {
        EvidenceKind.OVER_USE: EvidenceState.PENDING, EvidenceKind.EQUIVOCATION: EvidenceState.PENDING
    }  # fmt: skip
    async with biller(staked.network, database_url, staked.scene.pool, operator_key=staked.config.operator_key):
        await until(staked.is_slashed, "the slash")

    [slash] = await staked.slashes()
    assert slash.incoming is not None
    assert Slash.decode(slash.incoming.body).kind is EvidenceKind.OVER_USE
    assert set((await staked.states()).values()) == {EvidenceState.SLASHED}
    first, second = sorted(await staked.evidence.list(limit=10), key=lambda one: one.id)
    assert (first.submitted_at is None, second.submitted_at is None) == (False, True)


async def test_routing_may_use_what_is_still_bonded_and_nothing_once_evidence_is_kept(staked: Staked) -> None:
    pool, asked_back = staked.scene.pool, 2 * TON
    watcher = StakeWatcher(
        staked.chain, Stakes(pool), Alarms(pool), code_hash=code_of(CODE).hash, operator_key=staked.config.operator_key
    )
    covers = Covers(pool, uuid.UUID(int=1), CoverTerms())

    async def headroom() -> int:
        await watcher.look()
        [seen] = await covers.headrooms([str(staked.address)])
        return seen.headroom_nano

    async def bonded() -> bool:
        return await headroom() == BOND

    async def less() -> bool:
        return await headroom() == BOND - asked_back

    await until(bonded, "the bond")
    await staked.network.operator.send(Transfer(staked.address, TON // 20, RequestUnbond(1, asked_back).encode()))
    await until(less, "the request")
    # The contract would slash all of it, but nobody has asked it to yet.
    await staked.equivocate()
    assert await headroom() == 0


def forgeries(staked: Staked) -> dict[str, tuple[EvidenceKind, Cell, Refusal]]:
    """What a gateway that has everything but the worker's keys can make against a worker that has not lied."""
    signer, operator = staked.scene.signer, staked.scene.operator
    ticket = signer.ticket()
    honest = signer.delivered(ticket, staked.scene.customer, TokenUsage(prompt=100, completion=50))
    named = Evidence.named_by(signer.keyset)
    assert named is not None
    head, forged = (honest.head, honest.signature), ReceiptHead.decode(honest.head)
    other = msgspec.structs.replace(forged, body_sha256=bytes(32)).encode()
    smaller = msgspec.structs.replace(ticket, max_prompt=1).encode()
    batch, [proof, *_] = operator.signed([smaller, ticket.encode()])
    size = BatchHead.decode(batch.head).size
    elsewhere = delegate_receipt_key(
        key("staked"), global_id=GLOBAL_ID, stake=bytes(32), receipt_key=named.receipt_key, not_after=named.not_after
    )
    return {
        "a head that the gateway signed": (
            EvidenceKind.EQUIVOCATION, named.equivocation(head, (other, operator.gateway.sign(other))),
            Refusal.WRONG_SIGNATURE,
        ),
        "a ticket that was made smaller afterwards": (
            EvidenceKind.OVER_USE, named.over_use(head, smaller, batch, proof, size=size), Refusal.BAD_EVIDENCE
        ),
        "a receipt key that was named for another stake": (
            EvidenceKind.EQUIVOCATION,
            msgspec.structs.replace(named, delegation_signature=elsewhere).equivocation(
                head, (other, signer.key.sign(other))
            ),
            Refusal.WRONG_SIGNATURE,
        ),
    }  # fmt: skip


async def test_a_gateway_that_forges_slashes_nobody(staked: Staked, connection: Connection, database_url: str) -> None:
    made = forgeries(staked)
    for name, (kind, cell, refusal) in made.items():
        assert judge(kind, cell, staked.accused) is refusal, name
        evidence = StakeEvidence(
            stake=str(staked.address), worker_id=staked.scene.signer.worker_id, kind=kind,
            slot=hashlib.sha256(name.encode()).digest() + bytes(8), job_id=uuid.uuid4(), attempt=0,
            boc=write_boc(cell),
        )  # fmt: skip
        await keep_evidence(connection, [evidence])

    async def judged() -> bool:
        return len([one for one in await Alarms(staked.scene.pool).open() if one.kind == "slash_refused"]) == len(made)

    async with biller(staked.network, database_url, staked.scene.pool, operator_key=staked.config.operator_key):
        await until(judged, "the judge")
    assert await staked.slashes() == []
    refused = {one.state: one.detail[:13] for one in await staked.evidence.list(limit=10)}
    assert refused.keys() == {EvidenceState.REFUSED}
    assert refused[EvidenceState.REFUSED].startswith("exit code 1")

    # The contract's own word, for who has no judge of ours.
    sent = [
        Transfer(staked.address, SLASH_NANO, Slash(number, kind, cell).encode())
        for number, (kind, cell, _) in enumerate(made.values())
    ]
    await staked.network.operator.send(*sent)

    async def answered() -> bool:
        return len(await staked.slashes()) == len(sent)

    await until(answered, "the contract's answers")
    exits = {
        Slash.decode(one.incoming.body).query_id: one.exit_code
        for one in await staked.slashes()
        if one.incoming is not None
    }
    assert exits == {number: int(refusal) for number, (_, _, refusal) in enumerate(made.values())}
    assert (await staked.data()).bond_nano == BOND
