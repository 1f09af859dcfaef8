"""Contracts as they are deployed: each with its first message, because a plain transfer deploys nothing."""

from billing.ton.wallet_messages import Transfer
from cocoon.addresses import Address
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE as ESCROW
from cocoon.contracts.escrow import EscrowConfig, TopUp, escrow_init
from cocoon.contracts.payout import ACCOUNT_CODE, Fund, PayoutConfig, payout_init
from cocoon.contracts.payout import CODE as PAYOUT
from cocoon.contracts.stake import CODE as STAKE
from cocoon.contracts.stake import Bond, StakeConfig, stake_init

RENT_AND_GAS_NANO = 200_000_000
"""The rent reserve (0.05) and gas; what is not needed comes back."""


def payout_address(config: PayoutConfig) -> Address:
    """Where the payout contract of this configuration lives."""
    return payout_init(code_of(PAYOUT), config).address


def payout_config(operator: Address, *, fee_bps: int, delay_s: int, salt: bytes) -> PayoutConfig:
    """A payout contract whose fee goes to its operator."""
    return PayoutConfig(operator, operator, fee_bps, delay_s, salt, code_of(ACCOUNT_CODE))


def deploy_payout(config: PayoutConfig) -> Transfer:
    """The message that deploys a payout contract: nothing is funded by it."""
    init = payout_init(code_of(PAYOUT), config)
    return Transfer(init.address, RENT_AND_GAS_NANO, Fund(0, 0).encode(), init)


def deploy_escrow(config: EscrowConfig, amount_nano: int) -> Transfer:
    """The message that deploys an escrow with its first deposit."""
    init = escrow_init(code_of(ESCROW), config)
    return Transfer(init.address, amount_nano + RENT_AND_GAS_NANO, TopUp(0, amount_nano).encode(), init)


def deploy_stake(config: StakeConfig, amount_nano: int) -> Transfer:
    """The message that deploys a worker's stake with its first bond."""
    init = stake_init(code_of(STAKE), config)
    return Transfer(init.address, amount_nano + RENT_AND_GAS_NANO, Bond(0, amount_nano).encode(), init)
