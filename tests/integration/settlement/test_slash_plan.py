"""What is submitted against a stake and when: one piece at a time, nothing that would be refused, nothing for dust."""

import datetime as dt
import hashlib
import uuid

import pytest

from billing.postgres.alarms import Alarms
from billing.postgres.asked import AskedFor
from billing.postgres.outbox import PostgresOutbox
from billing.postgres.pool import Connection, Pool
from billing.postgres.slashing import SlashEvidence, keep_evidence
from billing.postgres.stakes import Stakes
from billing.settlement.actions import Action
from billing.settlement.slashing import TRIES_MAX, WORTH_NANO, SlashPlan
from billing.slashing import EvidenceState, StakeEvidence
from billing.stakes import StakeSeen
from billing.ton.outbox import ATTEMPTS_MAX, Intent
from billing.ton.wallet import OperatorWallet
from cocoon.addresses import Address
from cocoon.cells import write_boc
from tests import slash_evidence
from tests.settlement_chain import TON, key
from tests.slash_evidence import NETWORK, STAKE, public

ADDRESS = str(Address(0, STAKE))
WALLET = OperatorWallet(key("operator"), global_id=NETWORK).address
CASES = {case.name: case for case in slash_evidence.cases()}
EQUIVOCATION, OVER_USE = "two heads of one number", "one prompt token above the ticket"
FORGED = "heads signed by a foreign key"


class Plan:
    """The biller's plan for one stake, which the chain shows as it is told."""

    def __init__(self, pool: Pool, connection: Connection) -> None:
        self.pool = pool
        self.connection = connection
        self.stakes = Stakes(pool)
        self.evidence = SlashEvidence(pool)
        self._seqno = 0

    async def actions(self) -> list[Action]:
        plan = SlashPlan(self.evidence, AskedFor(self.pool, WALLET), Alarms(self.pool), global_id=NETWORK)
        return await plan.wanted()

    async def wanted(self) -> list[str]:
        return [one.purpose for one in await self.actions()]

    async def see(self, bond: int, unbonding: int = 0, *, slashed: bool = False) -> None:
        self._seqno += 1
        seen = StakeSeen(
            seqno=self._seqno, at=dt.datetime.now(dt.UTC), slashed=slashed, owner=ADDRESS,
            staked_key=public("staked"), operator_key=public("operator"), unbond_s=60, bond_nano=bond,
            unbonding_nano=unbonding, unbond_at=0,
        )  # fmt: skip
        await self.stakes.observe(ADDRESS, seen)

    async def keep(self, *names: str) -> None:
        for name in names:
            case = CASES[name]
            slot = hashlib.sha256(name.encode()).digest() + bytes(8)
            one = StakeEvidence(
                stake=ADDRESS, worker_id=uuid.uuid4(), kind=slash_evidence.EvidenceKind(case.kind), slot=slot,
                job_id=uuid.uuid4(), attempt=0, boc=write_boc(case.evidence),
            )  # fmt: skip
            await keep_evidence(self.connection, [one])

    async def rows(self) -> list[tuple[EvidenceState, int | None]]:
        """States and stakes of what is kept, oldest first."""
        return [(one.state, one.staked_nano) for one in reversed(await self.evidence.list(limit=10))]

    async def alarms(self) -> dict[str, str]:
        return {one.kind: one.detail for one in await Alarms(self.pool).open()}


@pytest.fixture
async def plan(pool: Pool, connection: Connection) -> Plan:
    made = Plan(pool, connection)
    await made.stakes.register(ADDRESS, uuid.uuid4())
    return made


async def test_one_piece_is_submitted_until_the_chain_shows_that_it_was_enough(plan: Plan) -> None:
    await plan.keep(OVER_USE, EQUIVOCATION)
    assert await plan.wanted() == []  # nobody has seen the stake yet
    await plan.see(3 * TON, TON)
    [action] = await plan.actions()
    assert await plan.wanted() == [action.purpose]
    assert action.transfer.destination == Address(0, STAKE)
    assert await plan.rows() == [(EvidenceState.PENDING, 4 * TON), (EvidenceState.PENDING, None)]
    assert action.purpose in (await plan.alarms())["slash_pending"]

    await plan.see(0, slashed=True)
    assert await plan.wanted() == []
    assert await plan.rows() == [(EvidenceState.SLASHED, 4 * TON), (EvidenceState.SLASHED, None)]
    assert await plan.alarms() == {}


async def test_what_the_contract_would_refuse_is_an_alarm_and_the_next_piece_is_taken(plan: Plan) -> None:
    await plan.see(TON)
    await plan.keep(FORGED, EQUIVOCATION)
    [purpose] = await plan.wanted()

    assert purpose.endswith(":2")
    assert await plan.rows() == [(EvidenceState.REFUSED, None), (EvidenceState.PENDING, TON)]
    assert "exit code 104" in (await plan.alarms())["slash_refused"]


async def test_who_took_the_stake_back_in_time_is_too_late_until_more_is_bonded(plan: Plan) -> None:
    await plan.see(WORTH_NANO - 1)
    await plan.keep(EQUIVOCATION)
    assert await plan.wanted() == []
    assert await plan.rows() == [(EvidenceState.TOO_LATE, WORTH_NANO - 1)]
    assert await plan.alarms() == {}

    await plan.see(WORTH_NANO)
    assert len(await plan.wanted()) == 1
    assert await plan.rows() == [(EvidenceState.PENDING, WORTH_NANO)]


async def test_a_stake_of_another_network_is_not_bothered(plan: Plan) -> None:
    await plan.stakes.refuse(ADDRESS, 1, dt.datetime.now(dt.UTC))
    await plan.keep(EQUIVOCATION)

    assert await plan.wanted() == []
    assert await plan.rows() == [(EvidenceState.REFUSED, None)]


async def test_a_contract_that_does_not_act_is_not_asked_for_ever(plan: Plan) -> None:
    await plan.see(TON)
    await plan.keep(EQUIVOCATION)
    [action] = await plan.actions()
    outbox = PostgresOutbox(plan.pool, WALLET)
    for number in range(1, TRIES_MAX + 1):
        assert await plan.wanted() == [action.purpose]
        await outbox.enqueue([Intent(f"{action.purpose}#{number}", action.transfer)])
    assert await plan.wanted() == [action.purpose]  # the last one is still under way
    await plan.connection.execute("UPDATE chain_intents SET attempts = $1", ATTEMPTS_MAX)

    assert await plan.wanted() == []
    assert await plan.rows() == [(EvidenceState.REFUSED, TON)]
    assert "has not acted" in (await plan.alarms())["slash_refused"]
