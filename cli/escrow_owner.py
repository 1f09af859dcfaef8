"""What the owner of an escrow does on the chain: top up, ask for the close, finalize. Needs liteservers, no gateway."""

from billing.ton.chain import Chain
from cli.contract import Contract, ContractError, Step, new_query_id
from cocoon.contracts.deposits import TOP_UP_EXTRA_NANO
from cocoon.contracts.escrow import CloseTerms, CoClose, EscrowData, EscrowPhase, Finalize, RequestClose, TopUp
from cocoon_client.escrow_file import EscrowFile

CLOSE_VALUE_NANO = 50_000_000
"""Attached to a close; what gas does not need comes back."""


class EscrowOwner(Contract[EscrowData]):
    """One escrow on one chain. Nothing is believed of a gateway."""

    def __init__(self, chain: Chain, escrow: EscrowFile) -> None:
        super().__init__(chain, escrow.address, escrow.init.code, EscrowData.decode, escrow.init)
        self._client = escrow.config.client

    async def top_up(self, amount_nano: int) -> Step[EscrowData]:
        """Deposit exactly this. Anybody can.

        Raises:
            ContractError: it is closing or closed, and as `Contract.read`.
        """
        before = await self.read()
        if before is not None and before.phase is not EscrowPhase.OPEN:
            raise ContractError("the escrow takes no more deposits: open another one")
        wanted = amount_nano if before is None else before.deposited_nano + amount_nano
        top_up = TopUp(new_query_id(), amount_nano)
        return Step(top_up, amount_nano + TOP_UP_EXTRA_NANO, lambda data: data.deposited_nano >= wanted)

    def request_close(self) -> Step[EscrowData]:
        """Start the challenge window."""
        request = RequestClose(new_query_id())
        return Step(request, CLOSE_VALUE_NANO, lambda data: data.phase is not EscrowPhase.OPEN, sender=self._client)

    def co_close(self, terms: CloseTerms, signature: bytes) -> Step[EscrowData]:
        """Settle what the operator signed for, and have the rest paid back at once."""
        co_close = CoClose(new_query_id(), signature, terms.encode())
        return Step(co_close, CLOSE_VALUE_NANO, lambda data: data.phase is EscrowPhase.CLOSED, sender=self._client)

    def finalize(self) -> Step[EscrowData]:
        """Pay back what was not settled, once the window is over. Anybody can."""
        return Step(Finalize(new_query_id()), CLOSE_VALUE_NANO, lambda data: data.phase is EscrowPhase.CLOSED)
