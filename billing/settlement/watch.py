"""What the biller looks at: escrows, the payout contract and its children, stakes. Each look is of one block.

A contradiction (the chain says less than before, a contract is another one) books nothing and raises an alarm; the rest
is looked at all the same.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import structlog

from billing.escrows import ChainContradictionError, Escrow, Movement
from billing.payouts import OtherPayoutError, Payee, PayoutSeen
from billing.ports import RecordRefusedError
from billing.postgres.alarms import Alarms
from billing.postgres.escrows import Escrows
from billing.postgres.payouts import Payouts
from billing.postgres.stakes import Stakes
from billing.settlement.contracts import (
    ForeignContractError,
    block_time,
    escrow_seen,
    payee_seen,
    payout_seen,
    stake_seen,
)
from billing.stakes import Stake, StakeState
from billing.ton.chain import BlockRef, Chain
from billing.ton.outbox import LaggingError
from cocoon.addresses import Address
from cocoon.contracts.payout import PayoutConfig, account_init

READS_MAX = 16
"""Accounts that are read at the same time."""
SWEEP_EVERY = 30
"""Payees with nothing open are looked at in one of so many looks."""
Item = TypeVar("Item")
log = structlog.get_logger()


class EscrowWatcher:
    """Books deposits, settlements and refunds by the state of escrows."""

    def __init__(self, chain: Chain, escrows: Escrows, alarms: Alarms) -> None:
        self._chain = chain
        self._escrows = escrows
        self._alarms = alarms

    async def look(self) -> None:
        """Look at every escrow that can still change.

        Raises:
            ChainUnavailableError, LedgerUnavailableError: look again.
        """
        head = await self._chain.head()
        watched = await self._escrows.unfinished()
        trouble = await each(watched, lambda escrow: self._observe(escrow, head), lambda one: one.terms.address)
        await self._alarms.set("escrow_contradiction", trouble)

    async def _observe(self, escrow: Escrow, head: BlockRef) -> None:
        state = await self._chain.account(Address.parse(escrow.terms.address), head)
        seen = escrow_seen(state, escrow.terms)
        if seen is None:
            return
        observed = await self._escrows.observe(escrow.customer_id, escrow.terms.address, seen)
        for one in observed.moved:
            _log_movement(one)


class PayoutWatcher:
    """Books what the payout contract received and paid; `seen` and `config` are of the last look."""

    def __init__(
        self, chain: Chain, payouts: Payouts, alarms: Alarms, *, payout: Address, code_hash: bytes, operator: Address
    ) -> None:
        self._chain = chain
        self._payouts = payouts
        self._alarms = alarms
        self._payout = payout
        self._code_hash = code_hash
        self._operator = operator
        self._looks = 0
        self.seen: PayoutSeen | None = None

    async def look(self) -> None:
        """Look at the contract, and at the children of wallets that have something open.

        Raises:
            LaggingError: the block is older than one that the books have seen. Nothing is decided from it.
            ChainUnavailableError, LedgerUnavailableError: look again.
        """
        head = await self._chain.head()
        trouble: dict[str, str] = {}
        try:
            state = await self._chain.account(self._payout, head)
            seen, config = payout_seen(state, self._code_hash, self._operator)
            await self._book(seen)
            payees = [one for one in await self._payouts.payees() if self._is_due(one)]
            trouble = await each(payees, lambda payee: self._observe(payee, config, head), lambda one: one.wallet)
        except (ChainContradictionError, ForeignContractError, OtherPayoutError, RecordRefusedError) as error:
            self.seen = None
            trouble[str(self._payout)] = str(error)
        self._looks += 1
        await self._alarms.set("payout_contradiction", trouble)

    async def _book(self, seen: PayoutSeen) -> None:
        moved = await self._payouts.observe_contract(seen)
        if moved is None:
            raise LaggingError
        for one in moved:
            _log_movement(one)
        self.seen = seen

    def _is_due(self, payee: Payee) -> bool:
        return payee.leaf_nano != payee.paid_nano - payee.returned_nano or not self._looks % SWEEP_EVERY

    async def _observe(self, payee: Payee, config: PayoutConfig, head: BlockRef) -> None:
        wallet = Address.parse(payee.wallet)
        account = account_init(config.account_code, self._payout, wallet).address
        seen = payee_seen(await self._chain.account(account, head), config, self._payout, wallet)
        if seen is None:
            return
        for one in await self._payouts.observe_payee(payee.payee_id, str(account), seen):
            _log_movement(one, wallet=payee.wallet)


class StakeWatcher:
    """Keeps the table of stakes; routers hear of changes from the database."""

    def __init__(self, chain: Chain, stakes: Stakes, alarms: Alarms, *, code_hash: bytes, operator_key: bytes) -> None:
        self._chain = chain
        self._stakes = stakes
        self._alarms = alarms
        self._code_hash = code_hash
        self._operator_key = operator_key

    async def look(self) -> None:
        """Look at every stake that was ever named.

        Raises:
            ChainUnavailableError, LedgerUnavailableError: look again.
        """
        head = await self._chain.head()
        stakes = await self._stakes.all()
        trouble = await each(stakes, lambda stake: self._observe(stake, head), lambda one: one.address)
        await self._alarms.set("stake_contradiction", trouble)

    async def _observe(self, stake: Stake, head: BlockRef) -> None:
        state = await self._chain.account(Address.parse(stake.address), head)
        try:
            seen = stake_seen(state, self._code_hash, self._operator_key)
        except ForeignContractError as error:
            if await self._stakes.refuse(stake.address, state.block.seqno, block_time(state)):
                log.warning("biller_stake_refused", address=stake.address, reason=str(error))
            return
        if seen is None:
            return
        if seen.slashed and stake.state is not StakeState.SLASHED:
            log.warning("biller_stake_slashed", address=stake.address, worker_id=str(stake.worker_id))
        await self._stakes.observe(stake.address, seen)


async def each(
    items: Iterable[Item], work: Callable[[Item], Awaitable[None]], subject: Callable[[Item], str]
) -> dict[str, str]:
    """Do the work for each, a few at a time; what contradicts the books is returned by subject.

    Raises:
        BillingError: of those that failed otherwise, the first one's failure.
    """
    trouble: dict[str, str] = {}
    slots = asyncio.Semaphore(READS_MAX)

    async def one(item: Item) -> None:
        async with slots:
            try:
                await work(item)
            except (ChainContradictionError, ForeignContractError, RecordRefusedError) as error:
                trouble[subject(item)] = str(error)

    # Not a task group: one with a failure of its own forgets that its caller was told to stop.
    done = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
    for failure in done:
        if failure is not None:
            raise failure
    return trouble


def _log_movement(moved: Movement, **more: str) -> None:
    log.info(
        "biller_movement_booked", kind=moved.kind.value, contract=moved.subject, amount_nano=moved.amount_nano,
        cumulative_nano=moved.cumulative_nano, seqno=moved.seqno, **more,
    )  # fmt: skip
