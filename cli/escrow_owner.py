"""What the owner of an escrow does on the chain: top up, ask for the close, finalize. Needs liteservers, no gateway."""

import asyncio
import secrets
from collections.abc import Callable
from typing import ClassVar

from billing.ton.chain import AccountStatus, Chain
from billing.ton.wallet import OperatorWallet
from billing.ton.wallet_messages import Transfer
from cocoon.cells import Cell
from cocoon.contracts.deposits import TOP_UP_EXTRA_NANO
from cocoon.contracts.escrow import EscrowData, EscrowPhase, Finalize, RequestClose, TopUp
from cocoon.errors import CocoonError
from cocoon_client.escrow_file import EscrowFile

CLOSE_VALUE_NANO = 50_000_000
"""Attached to a close; what gas does not need comes back."""
VALID_S = 300
"""How long the chain takes a signed message; by the chain's own time."""
POLL_S = 0.3
WAIT_S_MAX = 180.0


class EscrowOwnerError(CocoonError):
    """The escrow cannot do that now, or the chain did not show it in time."""

    code: ClassVar[str] = "escrow_not_changed"


class EscrowOwner:
    """One escrow on one chain. Every answer is read with proofs; nothing is believed of a gateway."""

    def __init__(self, chain: Chain, escrow: EscrowFile) -> None:
        self._chain = chain
        self.escrow = escrow

    async def read(self) -> EscrowData | None:
        """What the contract says; None before its first deposit.

        Raises:
            EscrowOwnerError: something else is at its address, or it is frozen.
            ChainUnavailableError, ChainProofError: see `Chain`.
        """
        state = await self._chain.account(self.escrow.address)
        if state.status in {AccountStatus.ABSENT, AccountStatus.UNINITIALISED}:
            return None
        if state.data is None or state.code_hash != self.escrow.init.code.hash:
            raise EscrowOwnerError(f"{self.escrow.address} is not the escrow (it is {state.status.value})")
        return EscrowData.decode(state.data)

    async def chain_time(self) -> int:
        """Unix seconds by the chain."""
        return (await self._chain.head()).gen_utime

    async def top_up(self, wallet: OperatorWallet, amount_nano: int) -> EscrowData:
        """Deposit exactly this; deploys the escrow the first time. Anybody's wallet will do.

        Raises:
            EscrowOwnerError: it is closing or closed, the wallet has too little, or the chain did not show it in time.
        """
        before = await self.read()
        if before is not None and before.phase is not EscrowPhase.OPEN:
            raise EscrowOwnerError("the escrow takes no more deposits: open another one")
        deposited = 0 if before is None else before.deposited_nano
        body = TopUp(_query_id(), amount_nano).encode()
        await self._send(wallet, body, amount_nano + TOP_UP_EXTRA_NANO, deploy=before is None)
        return await self._until(lambda data: data.deposited_nano >= deposited + amount_nano)

    async def request_close(self, wallet: OperatorWallet) -> EscrowData:
        """Start the challenge window. Only the client's wallet can.

        Raises:
            EscrowOwnerError: as `top_up`, or it is another wallet.
        """
        if wallet.address != self.escrow.config.client:
            raise EscrowOwnerError(f"only {self.escrow.config.client} can close it; these words are {wallet.address}'s")
        await self._send(wallet, RequestClose(_query_id()).encode(), CLOSE_VALUE_NANO)
        return await self._until(lambda data: data.phase is not EscrowPhase.OPEN)

    async def finalize(self, wallet: OperatorWallet) -> EscrowData:
        """Pay back what was not settled, once the window is over. Anybody's wallet will do.

        Raises:
            EscrowOwnerError: as `top_up`.
        """
        await self._send(wallet, Finalize(_query_id()).encode(), CLOSE_VALUE_NANO)
        return await self._until(lambda data: data.phase is EscrowPhase.CLOSED)

    async def _send(self, wallet: OperatorWallet, body: Cell, value_nano: int, *, deploy: bool = False) -> None:
        account = await self._chain.account(wallet.address)
        if account.balance_nano <= value_nano:
            raise EscrowOwnerError(
                f"the wallet {wallet.address} has {account.balance_nano} nano, and {value_nano} and gas are needed"
            )
        seqno = wallet.seqno_of(account)
        init = self.escrow.init if deploy else None
        transfer = Transfer(self.escrow.address, value_nano, body, init)
        valid_until = (await self._chain.head()).gen_utime + VALID_S
        signed = wallet.sign([transfer], seqno=seqno, valid_until=valid_until)
        await self._chain.send(signed)

    async def _until(self, reached: Callable[[EscrowData], bool]) -> EscrowData:
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                while True:
                    data = await self.read()
                    if data is not None and reached(data):
                        return data
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise EscrowOwnerError(
                "the chain has not shown it in time; look again with `cocoon escrow status`"
            ) from None


def _query_id() -> int:
    return secrets.randbits(63)
