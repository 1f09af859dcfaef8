"""When the operator's fee is withdrawn: never more than contract and books both have, never a second time."""

import datetime as dt
import uuid

import pytest

from billing.payouts import PayoutSeen
from billing.postgres.account import Accounts
from billing.postgres.asked import AskedFor
from billing.postgres.ledger import PostgresLedger
from billing.postgres.outbox import PostgresOutbox
from billing.postgres.payouts import Payouts
from billing.postgres.pool import Connection, Pool
from billing.settlement.fees import FeePlan
from billing.ton.chain import ChainMessage, ChainTransaction
from billing.ton.outbox import Delivery, Intent
from billing.ton.wallet_messages import Transfer
from cocoon.addresses import Address
from cocoon.contracts.payout import WithdrawFee
from cocoon.money import Amount
from tests.ledger_values import job_id
from tests.memory_chain import MemoryChain
from tests.settlement_books import spend
from tests.settlement_chain import FEE_BPS

PAYOUT, OPERATOR, STRANGER = (Address(0, bytes([number]) * 32) for number in (1, 2, 3))
REVENUE = 10_000 * FEE_BPS // 10_000
LEAST = 100


def shown(fee_max: int, withdrawn: int = 0) -> PayoutSeen:
    return PayoutSeen(
        seqno=1, at=dt.datetime.now(dt.UTC), received_nano=10**9, paid_nano=0, fee_withdrawn_nano=withdrawn,
        fee_max_nano=fee_max, active_epoch=0, active_root=bytes(32), active_total_nano=0, pending_epoch=0,
        pending_root=bytes(32), anchor_count=0, anchor_size=0, anchor_root=bytes(32),
    )  # fmt: skip


class PayoutHistory(MemoryChain):
    """A chain on which the payout contract has taken in messages."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: list[ChainTransaction] = []

    def take(self, message: ChainMessage, *, succeeded: bool) -> None:
        self.lt += 1
        self._taken.append(ChainTransaction(self.lt, bytes(32), self.now, succeeded, 0, message))

    async def transactions(self, address: Address, *, after_lt: int = 0, limit: int = 16) -> list[ChainTransaction]:
        assert address == PAYOUT
        return [one for one in reversed(self._taken) if one.lt > after_lt][:limit]


class Fees:
    """Books whose revenue is 500 nano, and an outbox."""

    def __init__(self, pool: Pool, connection: Connection) -> None:
        self.pool = pool
        self.connection = connection
        self.chain = PayoutHistory()
        self.outbox = PostgresOutbox(pool, OPERATOR)

    async def wanted(self, seen: PayoutSeen, least: int = LEAST) -> list[int]:
        """The amounts that are wanted now."""
        return [WithdrawFee.decode(one.body).amount_nano for _, one in await self._wanted(seen, least)]

    async def send(self, seen: PayoutSeen, number: int) -> ChainMessage:
        """What is wanted, as the wallet has sent it for the `number`th time, some minutes ago."""
        [(purpose, transfer)] = await self._wanted(seen, LEAST)
        key = f"{purpose}#{number}"
        await self.outbox.enqueue([Intent(key, transfer)])
        await self.outbox.keep(seqno=number, valid_until=2**31, boc=bytes(1), keys=[key])
        body = await self.connection.fetchval("SELECT id FROM chain_outbox WHERE state = 'open'")
        self.chain.lt += 1
        await self.outbox.settle(Delivery(body, self.chain.lt, frozenset({key})))
        await self.connection.execute("UPDATE chain_intents SET delivered_at = delivered_at - interval '5 minutes'")
        return ChainMessage(OPERATOR, PAYOUT, transfer.value_nano, transfer.body)

    async def _wanted(self, seen: PayoutSeen, least: int) -> list[tuple[str, Transfer]]:
        plan = FeePlan(
            self.chain, Payouts(self.pool, str(PAYOUT)), AskedFor(self.pool, OPERATOR), payout=PAYOUT,
            operator=OPERATOR, fee_min_nano=least,
        )  # fmt: skip
        return [(one.purpose, one.transfer) for one in await plan.wanted(seen)]


@pytest.fixture
async def fees(pool: Pool, connection: Connection, ledger: PostgresLedger) -> Fees:
    customer = await Accounts(pool).open_customer(uuid.uuid4(), "Ada")
    await ledger.deposit(job_id(), customer, Amount(10_000))
    await spend(ledger, customer, uuid.uuid4(), 10_000)
    return Fees(pool, connection)


async def test_a_fee_is_withdrawn_that_is_worth_it_and_in_contract_and_books(fees: Fees) -> None:
    assert await fees.wanted(shown(300)) == [300]
    assert await fees.wanted(shown(10_000)) == [REVENUE], "more than the books have"
    assert await fees.wanted(shown(300, withdrawn=200)) == [100]
    assert await fees.wanted(shown(300, withdrawn=201)) == []
    assert await fees.wanted(shown(10_000), least=REVENUE + 1) == []
    assert await fees.wanted(shown(10_000), least=0) == [], "off"


async def test_a_withdrawal_that_is_late_is_not_asked_for_again(fees: Fees) -> None:
    before = shown(300)
    late = await fees.send(before, 1)
    for fee_max in (300, 450):
        assert await fees.wanted(shown(fee_max)) == [], "whatever became due meanwhile"
    # Of another sender, or of another state of the contract: neither is ours to wait for.
    fees.chain.take(ChainMessage(STRANGER, PAYOUT, 1, late.body), succeeded=False)
    fees.chain.take(ChainMessage(OPERATOR, PAYOUT, 1, WithdrawFee(7, 300).encode()), succeeded=False)
    fees.chain.take(late, succeeded=True)
    assert await fees.wanted(before) == []
    assert await fees.wanted(shown(450, withdrawn=300)) == [150]


async def test_a_withdrawal_that_failed_is_asked_for_again_each_time(fees: Fees) -> None:
    for number in (1, 2):
        failed = await fees.send(shown(300), number)
        assert await fees.wanted(shown(300)) == []
        fees.chain.take(failed, succeeded=False)
    assert await fees.wanted(shown(300)) == [300]
