"""A contract as people use it from the command line: read it, send it an operation from a wallet, wait for the effect.

Needs liteservers, no gateway: every answer is read with proofs.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import msgspec

from billing.ton.chain import AccountState, AccountStatus, Chain
from billing.ton.wallet import OperatorWallet
from billing.ton.wallet_messages import Transfer
from cocoon.addresses import Address
from cocoon.cells import Cell
from cocoon.contracts.links import transfer_link
from cocoon.contracts.messages import Operation, StateInit, operation_of
from cocoon.contracts.records import Record
from cocoon.errors import CocoonError
from cocoon.money import Amount

VALID_S = 300
"""How long the chain takes a signed message; by the chain's own time."""
POLL_S = 0.3
WAIT_S_MAX = 180.0
Data = TypeVar("Data", bound=Record)


class ContractError(CocoonError):
    """The contract cannot do that now, refused it, or the chain did not show it in time."""

    code: ClassVar[str] = "contract_not_changed"


class Step(msgspec.Struct, Generic[Data], frozen=True):
    """What can be done with a contract: an operation, what it is sent with, and how its data shows that it was done.

    `sender` is who alone can do it, None where anybody can.
    """

    operation: Operation
    value_nano: int
    reached: Callable[[Data], bool]
    sender: Address | None = None


class Contract(Generic[Data]):
    """One contract of known code on one chain; `init` is what deploys it, where that is known."""

    def __init__(
        self, chain: Chain, address: Address, code: Cell, decode: Callable[[Cell], Data], init: StateInit | None = None
    ) -> None:
        self._chain = chain
        self._code_hash = code.hash
        self._decode = decode
        self._init = init
        self.address = address

    async def read(self) -> Data | None:
        """What it says; None before it is deployed.

        Raises:
            ContractError: something else is at its address, or it is frozen.
            ChainUnavailableError, ChainProofError: see `Chain`.
        """
        state = await self._chain.account(self.address)
        if state.status in {AccountStatus.ABSENT, AccountStatus.UNINITIALISED}:
            return None
        if state.data is None or state.code_hash != self._code_hash:
            raise ContractError(f"another contract than is meant is at {self.address} (it is {state.status.value})")
        return self._decode(state.data)

    async def chain_time(self) -> int:
        """Unix seconds by the chain."""
        return (await self._chain.head()).gen_utime

    async def link(self, step: Step[Data], global_id: int) -> str:
        """What any wallet app opens to do this; it deploys the contract only where that is not there.

        Raises:
            ChainUnavailableError, ChainProofError: see `Chain`.
        """
        body, init = step.operation.encode(), self._init_for(await self._chain.account(self.address))
        return transfer_link(self.address, step.value_nano, body, global_id=global_id, init=init)

    async def take(self, step: Step[Data], wallet: OperatorWallet) -> Data:
        """Do this from a wallet, and wait for its effect.

        Raises:
            ContractError: it is not this wallet's to do, and as `carry_out`.
        """
        if step.sender not in {None, wallet.address}:
            raise ContractError(f"only {step.sender} can do that; these words are {wallet.address}'s")
        return await self.carry_out(wallet, step.operation, step.value_nano, step.reached)

    async def carry_out(
        self, wallet: OperatorWallet, operation: Operation, value_nano: int, reached: Callable[[Data], bool]
    ) -> Data:
        """Send an operation with this value, deploying the contract where it is not there, and wait for its effect.

        Raises:
            ContractError: the wallet has too little, the contract refused, or the chain did not show it in time.
            ChainUnavailableError, ChainProofError, MessageRefusedError: see `Chain`.
        """
        before = await self._chain.account(self.address)
        body = operation.encode()
        await self._send(wallet, Transfer(self.address, value_nano, body, self._init_for(before)))
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                while True:
                    data = await self.read()
                    if data is not None and reached(data):
                        return data
                    await self._require_not_refused(body, before.last_lt)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise ContractError(
                "the chain has not shown it in time: look at the contract's status before you repeat it"
            ) from None

    def _init_for(self, state: AccountState) -> StateInit | None:
        return None if state.status is AccountStatus.ACTIVE else self._init

    async def _send(self, wallet: OperatorWallet, transfer: Transfer) -> None:
        account = await self._chain.account(wallet.address)
        if account.balance_nano <= transfer.value_nano:
            raise ContractError(
                f"the wallet {wallet.address} has {Amount(account.balance_nano)}, "
                f"and {Amount(transfer.value_nano)} and gas are needed"
            )
        valid_until = (await self._chain.head()).gen_utime + VALID_S
        await self._chain.send(wallet.sign([transfer], seqno=wallet.seqno_of(account), valid_until=valid_until))

    async def _require_not_refused(self, body: Cell, after_lt: int) -> None:
        for transaction in await self._chain.transactions(self.address, after_lt=after_lt):
            message = transaction.incoming
            if message is None or operation_of(message.body) != operation_of(body):
                continue
            if not transaction.succeeded:
                raise ContractError(f"the contract refused it (exit code {transaction.exit_code}, docs/contracts.md)")


def new_query_id() -> int:
    """A number by which an operation is known again."""
    return secrets.randbits(63)
