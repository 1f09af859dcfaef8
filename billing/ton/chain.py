"""The chain as billing sees it: one head, accounts with proofs, an account's transactions, and a way to send.

A port of five methods; `billing.ton.liteclient` is the real one, `tests/memory_chain.py` the double. Credit follows
contract state read at a named block, never a sender's claim. Amounts are nano.
"""

import enum
from typing import ClassVar, Protocol

import msgspec

from billing.ports import BillingError
from cocoon.addresses import Address
from cocoon.cells import Cell

TRANSACTIONS_MAX = 4096
"""Most transactions of one question: a batch of payouts brings hundreds of answers back to the wallet."""


class ChainError(BillingError):
    """The chain was asked in vain."""

    code: ClassVar[str] = "chain_error"


class ChainUnavailableError(ChainError):
    """No liteserver answered in time; the same question may be answered later."""

    code: ClassVar[str] = "chain_unavailable"
    transient: ClassVar[bool] = True


class ChainProofError(ChainError):
    """A liteserver's answer does not follow from the block it was asked about."""

    code: ClassVar[str] = "chain_proof_failed"


class MessageRefusedError(ChainError):
    """The message was looked at and refused: as things stand it will not be executed."""

    code: ClassVar[str] = "chain_message_refused"


class BlockRef(msgspec.Struct, frozen=True):
    """A masterchain block. `gen_utime` is Unix seconds by the validators' clock."""

    seqno: int
    root_hash: bytes
    file_hash: bytes
    gen_utime: int


class AccountStatus(enum.StrEnum):
    """Whether there is a contract at an address."""

    ABSENT = "absent"
    UNINITIALISED = "uninitialised"
    ACTIVE = "active"
    FROZEN = "frozen"


class AccountState(msgspec.Struct, frozen=True):
    """An account as of `block`. Only an active one has code and data; `last_lt` 0 is no transaction yet."""

    address: Address
    block: BlockRef
    status: AccountStatus
    balance_nano: int = 0
    code_hash: bytes | None = None
    data: Cell | None = None
    last_lt: int = 0
    last_hash: bytes = bytes(32)


class ChainMessage(msgspec.Struct, frozen=True):
    """A message of a transaction. External ones have no source (in) or no destination (out) and carry no value."""

    source: Address | None
    destination: Address | None
    value_nano: int
    body: Cell
    bounced: bool = False


class ChainTransaction(msgspec.Struct, frozen=True):
    """One transaction of an account. `exit_code` is None where nothing was computed; `succeeded` is not aborted."""

    lt: int
    hash: bytes
    now: int
    succeeded: bool
    exit_code: int | None
    incoming: ChainMessage | None
    outgoing: tuple[ChainMessage, ...] = ()


class Chain(Protocol):
    """A chain that is read at named blocks.

    Raises:
        ChainUnavailableError: from any method, where nobody answered in time.
        ChainProofError: from any method that reads, where an answer does not prove itself.
    """

    async def head(self) -> BlockRef:
        """The last masterchain block that is known; it never goes back."""
        ...

    async def block(self, seqno: int) -> BlockRef:
        """The masterchain block of a number; that it is in the chain is as sure as which one is the last."""
        ...

    async def account(self, address: Address, block: BlockRef | None = None) -> AccountState:
        """An account as of a block, of the last one where none is named."""
        ...

    async def transactions(self, address: Address, *, after_lt: int = 0, limit: int = 16) -> list[ChainTransaction]:
        """Transactions with a logical time above `after_lt`, newest first, at most `limit` (`TRANSACTIONS_MAX`)."""
        ...

    async def send(self, boc: bytes) -> None:
        """Broadcast an external message. That it was taken says nothing about whether it will be executed.

        Raises:
            MessageRefusedError: the liteserver tried it and it failed: wrong signature, seqno or time.
        """
        ...
