"""What the owner of a worker's stake does on the chain: bond, unbond, withdraw. Needs liteservers, no gateway."""

import datetime as dt

from billing.ton.chain import Chain
from cli.contract import Contract, ContractError, Step, new_query_id
from cocoon.contracts.codes import code_of
from cocoon.contracts.stake import CODE, Bond, RequestUnbond, StakeConfig, StakeData, StakePhase, Withdraw, stake_init
from cocoon.money import Amount

BOND_EXTRA_NANO = 100_000_000
"""Attached on top of a bond: the rent reserve (0.05 TON, once) and more than any gas; the rest comes back."""
UNBOND_VALUE_NANO = 50_000_000
"""Attached to what brings no money in; what gas does not need comes back."""


class StakeOwner(Contract[StakeData]):
    """One stake on one chain. A slash ends the wait for any step too."""

    def __init__(self, chain: Chain, config: StakeConfig) -> None:
        init = stake_init(code_of(CODE), config)
        super().__init__(chain, init.address, init.code, StakeData.decode, init)
        self._config = config

    async def bond(self, amount_nano: int) -> Step[StakeData]:
        """Bond exactly this, more where there is some. Anybody can.

        Raises:
            ContractError: it was slashed, and as `Contract.read`.
        """
        before = await self.read() or StakeData.initial(self._config)
        require_live(before)
        wanted = before.bond_nano + amount_nano
        return Step(
            Bond(new_query_id(), amount_nano),
            amount_nano + BOND_EXTRA_NANO,
            lambda data: _is_slashed(data) or data.bond_nano >= wanted,
        )

    async def unbond(self, amount_nano: int | None) -> Step[StakeData] | None:
        """Have this much returned after the wait, which begins again for what waits already; without an amount all.

        None where everything waits already.

        Raises:
            ContractError: there is no stake, it was slashed, or so much is not bonded; and as `Contract.read`.
        """
        before = await self.bonded()
        amount = before.bond_nano if amount_nano is None else amount_nano
        if amount > before.bond_nano:
            raise ContractError(f"only {Amount(before.bond_nano)} are bonded")
        if not amount:
            return None
        wanted = before.unbonding_nano + amount
        return Step(
            RequestUnbond(new_query_id(), amount),
            UNBOND_VALUE_NANO,
            lambda data: _is_slashed(data) or data.unbonding_nano >= wanted,
            sender=self._config.owner,
        )

    async def withdraw(self) -> Step[StakeData] | None:
        """Have what has waited long enough. None where nothing is left in the stake.

        Raises:
            ContractError: there is no stake, it was slashed, nothing waits, or it is too early; and as `Contract.read`.
        """
        before = await self.bonded()
        if not before.bond_nano + before.unbonding_nano:
            return None
        if not before.unbonding_nano:
            raise ContractError("nothing waits to be withdrawn: `cocoon worker stake unbond` comes first")
        left_s = withdrawable_at(before) - await self.chain_time()
        if left_s > 0:
            raise ContractError(f"too early: {left_s} s are left ({dt.timedelta(seconds=left_s)})")
        return Step(
            Withdraw(new_query_id()),
            UNBOND_VALUE_NANO,
            lambda data: not data.unbonding_nano,
            sender=self._config.owner,
        )

    async def bonded(self) -> StakeData:
        """What it says, where it is there and nobody has slashed it.

        Raises:
            ContractError: neither; and as `Contract.read`.
        """
        data = await self.read()
        if data is None:
            raise ContractError("nothing was bonded yet")
        require_live(data)
        return data


def require_live(data: StakeData) -> None:
    """Check that nobody has slashed it.

    Raises:
        ContractError: somebody has.
    """
    if _is_slashed(data):
        raise ContractError("the stake was slashed: nothing is left of it, and it takes nothing more")


def withdrawable_at(data: StakeData) -> int:
    """When what waits can be had, in Unix seconds of the chain."""
    return data.unbond_at + data.config.unbond_s


def _is_slashed(data: StakeData) -> bool:
    return data.phase is StakePhase.SLASHED
