"""Wallets as the chain has them now, for owners whose key was changed since their wallet was deployed.

The key is read from the account's proven data, where the wallet's code keeps it: a get-method's answer would
be the liteserver's word alone.
"""

from billing.ton.chain import AccountStatus, Chain
from cocoon.addresses import Address
from cocoon.ton_proof import OnChainWallet
from cocoon.wallets import owner_key


class ChainWalletKeys:
    """`cocoon.ton_proof.WalletKeys` on a chain."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    async def wallet(self, address: Address) -> OnChainWallet | None:
        """The wallet as of the last block; None where none that we know is deployed there, or it obeys no key.

        Raises:
            ChainUnavailableError: no liteserver answered.
            ChainProofError: a liteserver's answer does not prove itself.
        """
        state = await self._chain.account(address)
        if state.status is not AccountStatus.ACTIVE or state.code_hash is None or state.data is None:
            return None
        key = owner_key(state.code_hash, state.data)
        return None if key is None else OnChainWallet(state.code_hash, key)
