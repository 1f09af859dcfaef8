"""Which vouchers are settled and when: never more than was charged, always before a window closes."""

import uuid

import pytest

from billing.escrows import Escrow, EscrowSeen, EscrowState, Voucher, VoucherSigner
from billing.postgres.account import Accounts
from billing.postgres.alarms import Alarms
from billing.postgres.escrows import Escrows
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Pool
from billing.settlement.plan import SettlePlan, SettlePolicy
from tests.settlement_books import spend
from tests.settlement_chain import GLOBAL_ID, key
from tests.settlement_values import seen, terms, voucher

CHALLENGE_S = 600
MINIMUM = 100
ASKED_TO_CLOSE = 1_000_000


class Plan:
    """An escrow of 1,000 nano of which 400 were charged, under a delegated allowance of 150."""

    def __init__(self, pool: Pool, escrow: Escrow) -> None:
        self.escrows = Escrows(pool)
        self.alarms = Alarms(pool)
        self.escrow = escrow
        self._seqno = 1

    async def wanted(self, now: int = 0, *, every: bool = False, delegated: bool = False) -> list[tuple[str, int]]:
        """Which operation is wanted, and for settlements the cumulative amount of the voucher."""
        policy = SettlePolicy(global_id=GLOBAL_ID, settle_min_nano=MINIMUM)
        plan = SettlePlan(self.escrows, self.alarms, policy, key("vouchers") if delegated else None)
        found = await plan.wanted(now, every=every)
        return [
            (kind, int(amount) if kind == "settle" else 0)
            for kind, amount in ((one.purpose.split(":")[0], one.purpose.split(":")[-2]) for one in found)
        ]

    async def sign(self, cumulative: int) -> None:
        await self.escrows.add_voucher(self.escrow.escrow_id, voucher(cumulative))

    async def see(self, settled: int = 0, **changes: object) -> None:
        self._seqno += 1
        shown: EscrowSeen = seen(self._seqno, 1000, settled, allow_at_nano=150, **changes)
        await self.escrows.observe(self.escrow.customer_id, self.escrow.terms.address, shown)

    async def open_alarms(self) -> dict[str, str]:
        return {one.kind: one.detail for one in await self.alarms.open()}


@pytest.fixture
async def plan(pool: Pool, ledger: PostgresLedger) -> Plan:
    customer = await Accounts(pool).open_customer(uuid.uuid4(), "Ada")
    public = key("vouchers").public_key().public_bytes_raw()
    made = await Escrows(pool).register(
        uuid.uuid4(), customer,
        terms(operator_key=public, allow_max_nano=150, allow_rate_nano=0, challenge_s=CHALLENGE_S),
    )  # fmt: skip
    plan = Plan(pool, made)
    await plan.see()
    await spend(ledger, customer, uuid.uuid4(), 400)
    return plan


async def test_no_more_is_settled_than_was_charged_whatever_was_signed(plan: Plan) -> None:
    assert await plan.wanted() == []
    await plan.sign(390)
    await plan.sign(401)
    assert await plan.wanted() == [("settle", 390)]
    await plan.see(390)
    assert await plan.wanted(every=True) == []


async def test_a_voucher_waits_until_it_is_worth_its_gas_or_the_epoch_ends(plan: Plan) -> None:
    await plan.sign(MINIMUM - 1)
    assert await plan.wanted() == []
    assert await plan.wanted(every=True) == [("settle", MINIMUM - 1)]
    await plan.sign(MINIMUM)
    assert await plan.wanted() == [("settle", MINIMUM)]


async def test_the_operator_signs_for_itself_what_the_allowance_pays(plan: Plan) -> None:
    assert await plan.wanted(delegated=True) == [("settle", 400)]
    kept = await plan.escrows.last_voucher(plan.escrow.escrow_id, VoucherSigner.OPERATOR)
    assert isinstance(kept, Voucher)
    assert kept.cumulative_nano == 400
    assert await plan.wanted(delegated=True) == [("settle", 400)], "the same voucher again, not another"
    await plan.sign(200)
    assert await plan.wanted(delegated=True) == [("settle", 200)], "the client's own pays more than the allowance"


async def test_a_close_is_settled_at_once_with_an_alarm_before_its_deadline(plan: Plan) -> None:
    await plan.sign(1)
    await plan.see(state=EscrowState.CLOSING, close_requested_at=ASKED_TO_CLOSE)
    assert await plan.wanted(ASKED_TO_CLOSE) == [("settle", 1)]
    assert await plan.open_alarms() == {}
    late = ASKED_TO_CLOSE + CHALLENGE_S * 3 // 4
    await plan.wanted(late)
    assert await plan.open_alarms() == {"close_deadline": "400 nano are not settled and 150 s are left"}
    assert [kind for kind, _ in await plan.wanted(ASKED_TO_CLOSE + CHALLENGE_S)] == ["finalize"]
    assert "the window is over" in (await plan.open_alarms())["close_deadline"]
    await plan.see(400, state=EscrowState.CLOSED, close_requested_at=ASKED_TO_CLOSE)
    await plan.wanted(late)
    assert await plan.open_alarms() == {}


async def test_what_bounced_is_sent_once_more(plan: Plan) -> None:
    await plan.see(300, owed_nano=50)
    assert "owed" in [kind for kind, _ in await plan.wanted()]
