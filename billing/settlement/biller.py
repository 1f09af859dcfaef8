"""The biller: one process at a time watches the chain, decides what it wants from it, and has the outbox send it.

Each task has one loop. What a task cannot do now (no database, no chain) it tries again; a lost turn ends all of them
before anything more is signed or sent, and the process waits for its next turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from billing.ports import BillingError
from billing.postgres.alarms import Alarms
from billing.postgres.asked import AskedFor
from billing.postgres.escrows import Escrows
from billing.postgres.outbox import PostgresOutbox
from billing.postgres.partitions import ensure_partitions
from billing.postgres.payouts import Payouts
from billing.postgres.pool import Pool
from billing.postgres.slashing import SlashEvidence
from billing.postgres.stakes import Stakes
from billing.postgres.turn import Turn, TurnLostError, turn
from billing.settlement.actions import Action
from billing.settlement.fees import FeePlan
from billing.settlement.plan import AnchorPlan, EpochPlan, SettlePlan, SettlePolicy
from billing.settlement.settings import BillerSettings
from billing.settlement.slashing import SlashPlan
from billing.settlement.watch import EscrowWatcher, PayoutWatcher, StakeWatcher
from billing.ton.chain import Chain
from billing.ton.outbox import Intent, Outbox, WalletEmptyError
from billing.ton.wallet import OperatorWallet
from cocoon.clock import Clock
from cocoon.contracts.codes import code_of

RETRY_S_MAX = 30.0
PARTITIONS_S = 3600.0
log = structlog.get_logger()


class Biller:
    """Everything that one turn does."""

    def __init__(self, settings: BillerSettings, pool: Pool, chain: Chain, clock: Clock, turn_: Turn) -> None:
        self._settings = settings
        self._pool = pool
        self._chain = chain
        self._turn = turn_
        wallet = OperatorWallet(settings.wallet_key, global_id=settings.global_id)
        alarms = self._alarms = Alarms(pool)
        escrows = Escrows(pool)
        self._payouts = Payouts(pool, str(settings.payout))
        self._store = PostgresOutbox(pool, wallet.address)
        self._outbox = Outbox(chain, self._store, wallet, turn_.require)
        self._asked = AskedFor(pool, wallet.address)
        self._escrow_watcher = EscrowWatcher(chain, escrows, alarms)
        self._payout_watcher = PayoutWatcher(
            chain, self._payouts, alarms, payout=settings.payout, code_hash=code_of("payout").hash,
            operator=wallet.address,
        )  # fmt: skip
        self._stake_watcher = None
        if settings.operator_key is not None:
            self._stake_watcher = StakeWatcher(
                chain, Stakes(pool), alarms, code_hash=code_of("worker_stake").hash,
                operator_key=settings.operator_key,
            )  # fmt: skip
        policy = SettlePolicy(global_id=settings.global_id, settle_min_nano=settings.settle_min_nano)
        self._settling = SettlePlan(escrows, alarms, policy, settings.voucher_key)
        self._slashing = SlashPlan(SlashEvidence(pool), self._asked, alarms, global_id=settings.global_id)
        self._epochs = EpochPlan(
            self._payouts, clock, payout=settings.payout, epoch_s=settings.epoch_s,
            claim_min_nano=settings.claim_min_nano,
        )  # fmt: skip
        self._anchors = AnchorPlan(self._payouts, clock, payout=settings.payout, epoch_s=settings.epoch_s)
        self._fees = FeePlan(
            chain, self._payouts, self._asked, payout=settings.payout, operator=wallet.address,
            fee_min_nano=settings.fee_min_nano,
        )  # fmt: skip

    async def run(self) -> None:
        """Work until the turn is lost.

        Raises:
            TurnLostError: always, in the end.
        """
        interval = self._settings.interval_s
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._turn.keep(), name="turn")
                group.create_task(every(interval, "escrows", self._escrow_watcher.look))
                group.create_task(every(interval, "payout", self._payout_watcher.look))
                if self._stake_watcher is not None:
                    group.create_task(every(interval, "stakes", self._stake_watcher.look))
                group.create_task(every(interval, "plan", self.plan))
                group.create_task(every(interval, "outbox", self.send))
                group.create_task(every(PARTITIONS_S, "partitions", self._partitions))
        except ExceptionGroup as failed:
            # A fault of ours in another task goes before it.
            if failed.split(TurnLostError)[1] is not None:
                raise
            raise TurnLostError from failed

    async def look(self) -> None:
        """Look at everything once."""
        await self._escrow_watcher.look()
        await self._payout_watcher.look()
        if self._stake_watcher is not None:
            await self._stake_watcher.look()

    async def plan(self) -> None:
        """Decide what is wanted, and have it sent."""
        head = await self._chain.head()
        seen = self._payout_watcher.seen
        due = await self._epochs.is_due()
        wanted = await self._settling.wanted(head.gen_utime, every=due)
        wanted += await self._slashing.wanted()
        if seen is not None:
            if due:
                epoch = await self._epochs.prepare(seen, self._settling.outstanding)
                if epoch is not None:
                    log.info("biller_epoch_fixed", epoch=epoch.epoch, total_nano=epoch.total_nano)
            wanted += await self._epochs.wanted(seen)
            wanted += await self._anchors.wanted(seen)
            wanted += await self._fees.wanted(seen)
        await self.ask(wanted)

    async def send(self) -> None:
        """Bring what is under way one step further."""
        try:
            await self._outbox.step()
        except WalletEmptyError:
            await self._alarms.set("wallet_empty", {"operator": "the wallet cannot pay for what it shall send"})
            raise
        await self._alarms.set("wallet_empty", {})

    async def ask(self, wanted: Sequence[Action]) -> None:
        """Hand to the outbox what is not on its way already.

        Raises:
            TurnLostError: somebody else may be the biller.
        """
        if not wanted:
            return
        asked = await self._asked([one.purpose for one in wanted])
        intents: list[Intent] = []
        for one in wanted:
            before = asked.get(one.purpose)
            if before is None:
                intents.append(Intent(f"{one.purpose}#1", one.transfer))
            elif before.is_over:
                log.warning("biller_asks_again", purpose=one.purpose, times=before.times)
                intents.append(Intent(f"{one.purpose}#{before.times + 1}", one.transfer))
        if intents:
            await self._turn.require()
            await self._store.enqueue(intents)

    async def _partitions(self) -> None:
        await ensure_partitions(self._pool)


async def run_biller(settings: BillerSettings, database_url: str, pool: Pool, chain: Chain, clock: Clock) -> None:
    """Be the biller whenever it is this process' turn, for ever."""
    delay_s = settings.interval_s
    while True:
        try:
            async with turn(database_url, application="cocoon-biller") as mine:
                delay_s = settings.interval_s
                await Biller(settings, pool, chain, clock, mine).run()
        except BillingError as error:
            if not error.transient:
                raise
            log.warning("biller_turn_lost", error=error.code, reason=str(error))
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, RETRY_S_MAX)


async def every(seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work again and again; what fails is logged and tried again, later and later."""
    delay_s = seconds
    while True:
        try:
            await work()
            delay_s = seconds
        except TurnLostError:
            raise
        except BillingError as error:
            delay_s = min(2 * delay_s, max(seconds, RETRY_S_MAX))
            log.warning("biller_task_failed", task=name, error=error.code, reason=str(error))
        await asyncio.sleep(delay_s)
