"""What gateways keep of a worker that lies under its stake: enough for the contract, for ever."""

from collections.abc import AsyncIterator

import pytest

from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from billing.postgres.slashing import PER_STAKE_MAX, SlashEvidence
from billing.slashing import KeptEvidence, Unproven
from cocoon.cells import read_boc
from cocoon.contracts.judge import Accused, judge
from cocoon.contracts.stake import EvidenceKind
from cocoon.usage import TokenUsage
from gateway.postgres.receipts import ReceiptBook
from gateway.signing import SigningUnavailableError
from tests.integration.postgres.test_receipt_desk import Scene, job_of
from tests.signing_values import Operator
from tests.stake_values import GLOBAL_ID, STAKED, a_stake_config, a_staked_key

ABOVE = TokenUsage(prompt=10, completion=51)
"""The tickets of these tests allow 50 completion tokens."""


class StakedScene(Scene):
    """A gateway's desk, and a worker with a stake."""

    async def kept(self) -> list[KeptEvidence]:
        return await SlashEvidence(self.pool).list(limit=100)

    def accused(self) -> Accused:
        config = a_stake_config(operator_key=self.operator.public)
        assert config.staked_key == STAKED.public_key().public_bytes_raw()
        return Accused.of(self.signer.stake, config, global_id=GLOBAL_ID)


@pytest.fixture
async def scene(ledger: PostgresLedger, pool: Pool, connection: Connection) -> AsyncIterator[StakedScene]:
    operator = Operator(GLOBAL_ID)
    staked = a_staked_key(operator_key=operator.public)
    made = StakedScene(ledger, pool, connection, operator=operator, staked=staked)
    async with made.running():
        yield made


async def test_every_kind_is_kept_once_as_the_contract_takes_it(scene: StakedScene) -> None:
    first, second = await scene.answer(seq=7), await scene.answer(seq=7)
    above = await scene.answer(seq=8, usage=ABOVE)
    for _ in range(2):
        await scene.deliver(first, second, above)
    kept = {one.kind: one for one in await scene.kept()}

    assert len(await scene.kept()) == 2
    assert kept.keys() == {EvidenceKind.EQUIVOCATION, EvidenceKind.OVER_USE}
    assert kept[EvidenceKind.EQUIVOCATION].job_id == job_of(second)
    assert kept[EvidenceKind.OVER_USE].job_id == job_of(above)
    for kind, one in kept.items():
        assert one.stake == f"0:{scene.signer.stake.hex()}"
        assert one.worker_id == scene.signer.worker_id
        assert judge(kind, read_boc(one.boc), scene.accused()) is None
    assert await SlashEvidence(scene.pool).unproven() == ()


async def test_all_that_a_ticket_allows_is_no_evidence(scene: StakedScene) -> None:
    await scene.deliver(await scene.answer(usage=TokenUsage(prompt=100, completion=50)))

    assert await scene.kept() == []


async def test_evidence_outlives_the_receipts_that_it_came_from(scene: StakedScene) -> None:
    await scene.deliver(await scene.answer(seq=7), await scene.answer(seq=7), await scene.answer(8, usage=ABOVE))
    await scene.connection.execute("UPDATE receipt_slots SET day = current_date - 100")
    await scene.connection.execute("SELECT drop_receipts_before(current_date + 9)")
    await ReceiptBook(scene.pool).forget(90)

    assert await scene.count("receipt_slots") == await scene.count("receipts") == 0
    assert [judge(one.kind, read_boc(one.boc), scene.accused()) for one in await scene.kept()] == [None, None]


async def test_without_a_stake_or_a_signature_there_is_nothing_to_submit_and_people_are_told(
    scene: StakedScene, ledger: PostgresLedger, pool: Pool, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Scene(ledger, pool, connection).running() as unstaked:
        await unstaked.deliver(await unstaked.answer(seq=7), await unstaked.answer(seq=7))

    async def nobody(*_: object) -> None:
        raise SigningUnavailableError

    monkeypatch.setattr(scene.batches, "sign", nobody)
    await scene.deliver(await scene.answer(usage=ABOVE))

    assert await scene.kept() == []
    assert await SlashEvidence(pool).unproven() == (
        Unproven(kind=EvidenceKind.EQUIVOCATION, count=1), Unproven(kind=EvidenceKind.OVER_USE, count=1)
    )  # fmt: skip


async def test_a_worker_that_lies_all_day_fills_no_table(scene: StakedScene) -> None:
    for seq in range(PER_STAKE_MAX + 2):
        await scene.deliver(await scene.answer(seq, usage=ABOVE))

    assert len(await scene.kept()) == PER_STAKE_MAX
