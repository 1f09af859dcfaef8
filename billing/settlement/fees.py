"""The operator's fee, taken from the payout contract when it is worth it.

`WithdrawFee` names an amount, not a sum of all that was ever taken: the contract would obey a second one. So there is
one for each state of the contract, whatever becomes due meanwhile, and another only where the chain shows that every
earlier one failed. A message between contracts may be late; it is not lost.
"""

from billing.payouts import PayoutSeen
from billing.postgres.asked import Asked, AskedFor
from billing.postgres.payouts import Payouts
from billing.settlement import actions
from billing.settlement.actions import Action
from billing.ton.chain import TRANSACTIONS_MAX, Chain
from billing.ton.outbox import query_id_of
from cocoon.addresses import Address
from cocoon.contracts.messages import operation_of
from cocoon.contracts.payout import WithdrawFee


class FeePlan:
    """Withdrawals of `fee_min_nano` or more; 0 is none at all. `operator` is the wallet that asks for them."""

    def __init__(
        self, chain: Chain, payouts: Payouts, asked: AskedFor, *, payout: Address, operator: Address, fee_min_nano: int
    ) -> None:
        self._chain = chain
        self._payouts = payouts
        self._asked = asked
        self._payout = payout
        self._operator = operator
        self._fee_min_nano = fee_min_nano

    async def wanted(self, seen: PayoutSeen) -> list[Action]:
        """The withdrawal that is worth it: no more than the contract lets go and the books have as revenue.

        Raises:
            ChainUnavailableError, LedgerUnavailableError: ask again.
        """
        if not self._fee_min_nano:
            return []
        due = min(seen.fee_max_nano - seen.fee_withdrawn_nano, await self._payouts.revenue())
        if due < self._fee_min_nano:
            return []
        action = actions.withdraw_fee(self._payout, due, withdrawn_nano=seen.fee_withdrawn_nano)
        before = (await self._asked([action.purpose])).get(action.purpose)
        if before is not None and await self._may_arrive(action, before):
            return []
        return [action]

    async def _may_arrive(self, action: Action, before: Asked) -> bool:
        """Whether one of the messages that were sent has not failed: it will show, or is about to."""
        if not before.is_over or not before.delivered:
            return not before.is_over
        query_id = query_id_of(action.purpose)
        failed = 0
        for one in await self._chain.transactions(self._payout, after_lt=before.first_lt, limit=TRANSACTIONS_MAX):
            message = one.incoming
            if message is None or message.source != self._operator or one.succeeded:
                continue
            failed += operation_of(message.body) == (WithdrawFee.TAG, query_id)
        return failed < before.delivered
