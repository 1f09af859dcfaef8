"""What the owner of an escrow does on the chain: top up, ask for the close, finalize. Needs liteservers, no gateway."""

from billing.ton.chain import Chain
from billing.ton.wallet import OperatorWallet
from cli.contract import Contract, ContractError, new_query_id
from cocoon.contracts.deposits import TOP_UP_EXTRA_NANO
from cocoon.contracts.escrow import EscrowData, EscrowPhase, Finalize, RequestClose, TopUp
from cocoon_client.escrow_file import EscrowFile

CLOSE_VALUE_NANO = 50_000_000
"""Attached to a close; what gas does not need comes back."""


class EscrowOwner(Contract[EscrowData]):
    """One escrow on one chain. Nothing is believed of a gateway."""

    def __init__(self, chain: Chain, escrow: EscrowFile) -> None:
        super().__init__(chain, escrow.address, escrow.init.code, EscrowData.decode, escrow.init)
        self._client = escrow.config.client

    async def top_up(self, wallet: OperatorWallet, amount_nano: int) -> EscrowData:
        """Deposit exactly this; deploys the escrow the first time. Anybody's wallet will do.

        Raises:
            ContractError: it is closing or closed, and as `Contract.carry_out`.
        """
        before = await self.read()
        if before is not None and before.phase is not EscrowPhase.OPEN:
            raise ContractError("the escrow takes no more deposits: open another one")
        wanted = amount_nano if before is None else before.deposited_nano + amount_nano
        return await self.carry_out(
            wallet, TopUp(new_query_id(), amount_nano), amount_nano + TOP_UP_EXTRA_NANO,
            lambda data: data.deposited_nano >= wanted,
        )  # fmt: skip

    async def request_close(self, wallet: OperatorWallet) -> EscrowData:
        """Start the challenge window. Only the client's wallet can.

        Raises:
            ContractError: it is another wallet, and as `Contract.carry_out`.
        """
        if wallet.address != self._client:
            raise ContractError(f"only {self._client} can close it; these words are {wallet.address}'s")
        return await self.carry_out(
            wallet, RequestClose(new_query_id()), CLOSE_VALUE_NANO, lambda data: data.phase is not EscrowPhase.OPEN
        )

    async def finalize(self, wallet: OperatorWallet) -> EscrowData:
        """Pay back what was not settled, once the window is over. Anybody's wallet will do.

        Raises:
            ContractError: as `Contract.carry_out`.
        """
        return await self.carry_out(
            wallet, Finalize(new_query_id()), CLOSE_VALUE_NANO, lambda data: data.phase is EscrowPhase.CLOSED
        )
