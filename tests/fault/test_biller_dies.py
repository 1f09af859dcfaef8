"""A biller that dies at any step, and one that takes over: nothing is paid twice, nothing is lost.

The contracts are a model of what the real ones do (their own tests prove it): cumulative amounts, each paid once.
"""

import asyncio
import contextlib
import datetime as dt
import random
import uuid

import msgspec
import pytest

from billing.postgres.account import Accounts
from billing.postgres.check import broken_invariants
from billing.postgres.escrows import Escrows
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from billing.postgres.slashing import SlashEvidence, keep_evidence
from billing.postgres.stakes import Stakes
from billing.postgres.turn import Turn, TurnLostError, turn
from billing.settlement import actions
from billing.settlement.biller import Biller
from billing.settlement.reconcile import reconcile
from billing.settlement.settings import BillerSettings
from billing.slashing import EvidenceState, StakeEvidence
from billing.ton.chain import AccountState, BlockRef, ChainMessage
from billing.ton.wallet import OperatorWallet
from cocoon.addresses import Address
from cocoon.cells import write_boc
from cocoon.clock import ManualClock
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import EscrowConfig, EscrowData, Settle, Voucher
from cocoon.contracts.messages import StateInit, operation_of
from cocoon.contracts.payout import (
    Claim,
    PayoutAccountData,
    PayoutData,
    PostRoot,
    WithdrawFee,
    account_init,
    payout_init,
)
from cocoon.contracts.stake import StakeConfig, StakeData, StakePhase
from cocoon.wallets import state_init_of
from tests import slash_evidence
from tests.memory_chain import MemoryChain
from tests.settlement_books import NANO, enrol_worker, spend
from tests.settlement_chain import GLOBAL_ID, key, payout_config, public, terms_of

TON = 10**9
WALLET, CLIENT = Address(0, bytes([3]) * 32), Address(0, bytes([4]) * 32)
KEY = key("operator")
OPERATOR = OperatorWallet(KEY, global_id=GLOBAL_ID)
CONFIG = payout_config(OPERATOR.address, fee_bps=500, delay_s=0, salt=bytes(32))
PAYOUT = payout_init(code_of("payout"), CONFIG).address
STAKE = Address(0, slash_evidence.STAKE)
CHILD = account_init(CONFIG.account_code, PAYOUT, WALLET).address
ROUNDS_MAX = 200
DEADLY_ROUNDS = 40
DEATH = 0.12
EPOCH_S = 10.0
LOST = 0.2
TAKE_OVER_S_MAX = 60.0
DEPOSITED, SPENT = 10 * TON, 4 * TON


class DiesError(Exception):
    """The process is gone."""


class Contracts(MemoryChain):
    """Escrow, payout contract and child as a model; `paid` is every payment that the worker got, in order.

    `fees` is every withdrawal that was asked for, 0 for one that the contract refused.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.config = EscrowConfig(
            client=CLIENT, operator=OPERATOR.address, payout=PAYOUT, voucher_key=public("session"),
            operator_key=public("vouchers"), challenge_s=60, epoch=0, allow_max_nano=100 * TON, allow_rate_nano=0,
            salt=bytes(32),
        )  # fmt: skip
        self.escrow = msgspec.structs.replace(EscrowData.initial(self.config), deposited_nano=DEPOSITED)
        self.payout = PayoutData.initial(CONFIG)
        self.child = PayoutAccountData(PAYOUT, WALLET, 0, 0, 0, 0)
        self.paid: list[int] = []
        self.fees: list[int] = []
        self.dice = random.Random(seed)
        self.deadly = False
        self.deaths = 0
        self.on_message = self._take
        init = state_init_of("v5r1", KEY.public_key().public_bytes_raw(), global_id=GLOBAL_ID)
        self.deploy_wallet(StateInit.decode(init))
        self._show()
        self.mine()

    async def head(self) -> BlockRef:
        """As every question: the process may die before it is asked or after it was answered."""
        self._may_die()
        return await super().head()

    async def account(self, address: Address, block: BlockRef | None = None) -> AccountState:
        self._may_die()
        found = await super().account(address, block)
        self._may_die()
        return found

    async def send(self, boc: bytes) -> None:
        self._may_die()
        await super().send(boc)
        if self.deadly and self.dice.random() < 0.3:
            # In a block before anybody hears of it; sometimes it is there twice.
            self.pool += [boc] * self.dice.randrange(2)
            self.mine()
        self._may_die()

    def _may_die(self) -> None:
        if self.deadly and self.dice.random() < DEATH:
            self.deaths += 1
            raise DiesError

    def _take(self, message: ChainMessage) -> None:
        found = operation_of(message.body)
        if found is None:
            return
        if found[0] == Settle.TAG:
            cumulative = Voucher.decode(Settle.decode(message.body).voucher).cumulative_nano
            due = max(0, min(cumulative, self.escrow.deposited_nano) - self.escrow.settled_nano)
            self.escrow = msgspec.structs.replace(self.escrow, settled_nano=self.escrow.settled_nano + due)
            self.payout = msgspec.structs.replace(self.payout, received_nano=self.payout.received_nano + due)
        elif found[0] == PostRoot.TAG:
            said = PostRoot.decode(message.body)
            if said.epoch == self.payout.roots.epoch + 1:
                roots = msgspec.structs.replace(
                    self.payout.roots, epoch=said.epoch, root=said.root, total_nano=said.total_nano
                )
                self.payout = msgspec.structs.replace(self.payout, roots=roots)
        elif found[0] == Claim.TAG:
            due = Claim.decode(message.body).cumulative_nano - self.child.claimed_nano
            if due > 0:
                self.paid.append(due)
                self.child = msgspec.structs.replace(self.child, claimed_nano=self.child.claimed_nano + due)
                self.payout = msgspec.structs.replace(self.payout, paid_nano=self.payout.paid_nano + due)
        elif found[0] == WithdrawFee.TAG:
            asked = WithdrawFee.decode(message.body).amount_nano
            withdrawn = self.payout.fee_withdrawn_nano + asked
            self.fees.append(asked if withdrawn <= self.payout.fee_max_nano else 0)
            self.payout = msgspec.structs.replace(
                self.payout, fee_withdrawn_nano=self.payout.fee_withdrawn_nano + self.fees[-1]
            )
        self._show()

    def _show(self) -> None:
        address = Address.parse(terms_of(self.config).address)
        held = TON + self.escrow.deposited_nano - self.escrow.settled_nano
        self.put(address, self.escrow.encode(), code=code_of("client_escrow"), balance_nano=held)
        held = TON + self.payout.received_nano - self.payout.paid_nano - self.payout.fee_withdrawn_nano
        self.put(PAYOUT, self.payout.encode(), code=code_of("payout"), balance_nano=held)
        self.put(CHILD, self.child.encode(), code=CONFIG.account_code)


class StakeToo(Contracts):
    """And a worker's stake, against which there is evidence; `slashes` has the exit code of every message to it."""

    def __init__(self, seed: int) -> None:
        config = StakeConfig(
            owner=WALLET, operator=OPERATOR.address, staked_key=slash_evidence.public("staked"),
            operator_key=slash_evidence.public("operator"), unbond_s=60, bounty_bps=1_000, salt=bytes(32),
        )  # fmt: skip
        self.stake = StakeData(StakePhase.LIVE, DEPOSITED, TON, 0, config)
        self.slashes: list[int] = []
        super().__init__(seed)

    def _take(self, message: ChainMessage) -> None:
        super()._take(message)
        if message.destination == STAKE and operation_of(message.body) is not None:
            live = self.stake.phase is StakePhase.LIVE
            self.slashes.append(0 if live else 102)
            self.stake = StakeData(StakePhase.SLASHED, 0, 0, 0, self.stake.config)
            self._show()

    def _show(self) -> None:
        super()._show()
        self.put(STAKE, self.stake.encode(), code=code_of("worker_stake"))


def settings() -> BillerSettings:
    return BillerSettings(
        global_id=GLOBAL_ID, payout=PAYOUT, wallet_key=KEY, voucher_key=key("vouchers"),
        operator_key=slash_evidence.public("operator"),
        epoch_s=EPOCH_S, interval_s=1.0, settle_min_nano=1, claim_min_nano=1, fee_min_nano=1,
    )  # fmt: skip


async def live(database_url: str, pool: Pool, chain: Contracts, clock: ManualClock) -> None:
    """One process: it takes the turn, and does one thing after the other until it has done all or dies."""
    async with turn(database_url, application="test") as mine:
        biller = Biller(settings(), pool, chain, clock, mine)
        for work in (biller.look, biller.plan, biller.send, biller.send):
            await work()


async def live_on(database_url: str, pool: Pool, chain: Contracts, clock: ManualClock) -> None:
    """As `live`, once more where the server has ended a session that a slow machine left silent."""
    for _ in range(10):
        with contextlib.suppress(TurnLostError):
            return await live(database_url, pool, chain, clock)
    raise AssertionError("no turn lasts")


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_billers_that_keep_dying_pay_everything_once(
    database_url: str, pool: Pool, connection: Connection, seed: int
) -> None:
    chain, clock = Contracts(seed), ManualClock(dt.datetime.now(dt.UTC))
    worker = await enrol_worker(connection, WALLET)
    customer = await Accounts(pool).open_customer(uuid.uuid4(), "Ada")
    await Escrows(pool).register(uuid.uuid4(), customer, terms_of(chain.config))
    await live_on(database_url, pool, chain, clock)
    async with PostgresLedger(pool) as ledger:
        await spend(ledger, customer, worker, SPENT // 2)
        share = SPENT * NANO.share_bps // 10_000
        for number in range(ROUNDS_MAX):
            chain.deadly = number < DEADLY_ROUNDS
            if number == DEADLY_ROUNDS // 2:
                await spend(ledger, customer, worker, SPENT // 2)
            # A session that was silent for too long, on a slow machine, is one more death.
            with contextlib.suppress(DiesError, ExceptionGroup, TurnLostError):
                await live(database_url, pool, chain, clock)
            if chain.deadly and chain.dice.random() < LOST:
                chain.pool.clear()
            chain.mine(seconds=20)
            clock.advance(EPOCH_S)
            if (sum(chain.paid), sum(chain.fees)) == (share, SPENT - share) and not chain.deadly:
                break
    chain.deadly = False
    await live_on(database_url, pool, chain, clock)
    assert chain.deaths > 0
    assert sum(chain.paid) == share
    assert sum(chain.fees) == SPENT - share
    assert 0 not in chain.fees, "a second one, which only the contract has stopped"
    assert chain.escrow.settled_nano == SPENT
    assert await broken_invariants(connection) == []
    assert (await reconcile(pool, chain, PAYOUT)).differences == ()
    assert await connection.fetchval("SELECT count(*) FROM biller_alarms WHERE cleared_at IS NULL") == 0


@pytest.mark.parametrize("seed", [1, 2])
async def test_billers_that_keep_dying_slash_a_stake_once(
    database_url: str, pool: Pool, connection: Connection, seed: int
) -> None:
    chain, clock = StakeToo(seed), ManualClock(dt.datetime.now(dt.UTC))
    await Stakes(pool).register(str(STAKE), uuid.uuid4())
    for case in (one for one in slash_evidence.cases() if not one.exit):
        one = StakeEvidence(
            stake=str(STAKE), worker_id=uuid.uuid4(), kind=slash_evidence.EvidenceKind(case.kind),
            slot=case.evidence.hash + bytes(8), job_id=uuid.uuid4(), attempt=0, boc=write_boc(case.evidence),
        )  # fmt: skip
        await keep_evidence(connection, [one])
    for number in range(ROUNDS_MAX):
        chain.deadly = number < DEADLY_ROUNDS // 2
        with contextlib.suppress(DiesError, ExceptionGroup, TurnLostError):
            await live(database_url, pool, chain, clock)
        if chain.deadly and chain.dice.random() < LOST:
            chain.pool.clear()
        chain.mine(seconds=20)
        clock.advance(EPOCH_S)
        if chain.slashes and not chain.deadly:
            break
    await live_on(database_url, pool, chain, clock)
    assert chain.deaths > 0
    assert chain.slashes == [0]
    assert {one.state for one in await SlashEvidence(pool).list(limit=100)} == {EvidenceState.SLASHED}
    assert await connection.fetchval("SELECT count(*) FROM biller_alarms WHERE cleared_at IS NULL") == 0


async def test_a_second_biller_takes_over_and_the_first_signs_nothing_more(
    database_url: str, pool: Pool, connection: Connection
) -> None:
    chain, clock = Contracts(0), ManualClock(dt.datetime.now(dt.UTC))
    await Accounts(pool).open_customer(uuid.uuid4(), "Ada")
    async with turn(database_url, application="first") as first:
        await first.require()
        standing_by = asyncio.Event()

        async def second() -> Turn:
            async with turn(database_url, application="second") as mine:
                standing_by.set()
                return mine

        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(second())
            await asyncio.sleep(0)
            assert not standing_by.is_set()
            # The first one's session ends, as when its machine is cut off.
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'first'"
            )
            async with asyncio.timeout(TAKE_OVER_S_MAX):
                await waiting
        with pytest.raises(TurnLostError):
            await first.require()
        biller = Biller(settings(), pool, chain, clock, first)
        await biller.look()
        with pytest.raises(TurnLostError):
            await biller.ask([actions.post_root(PAYOUT, 1, bytes(32), 0)])
    assert chain.sent == []
    assert await connection.fetchval("SELECT count(*) FROM chain_intents") == 0
