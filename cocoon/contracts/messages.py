"""What all messages share: a state init, an operation's number and query id, excesses, and external-out logs."""

from typing import ClassVar, Self

import msgspec

from cocoon.addresses import Address
from cocoon.cells import Builder, Cell, Slice
from cocoon.contracts.records import OP_BITS, Record, uint
from cocoon.errors import MalformedError

EXCESSES = 0xD53276DB
BOUNCED = 0xFFFFFFFF
"""A bounced body begins with this, then 256 bits of what was sent (TON's own rule)."""
_STATE_INIT_BITS = 5
_CODE_AND_DATA = 0b00110
QUERY = uint(64)


class Operation(Record, frozen=True):
    """The body of a message to one of our contracts: `op:uint32 query_id:uint64`, then its own fields.

    Every operation's first attribute is `query_id`.
    """


class Excesses(Operation, frozen=True):
    """What is left of an attached value, sent back."""

    TAG: ClassVar[int | None] = EXCESSES
    LAYOUT = (QUERY,)

    query_id: int


class StateInit(msgspec.Struct, frozen=True):
    """A contract as it is deployed: its address is the hash of both."""

    code: Cell
    data: Cell

    def encode(self) -> Cell:
        """The cell: no split depth, not special, code, data, no library."""
        return Builder().uint(_CODE_AND_DATA, _STATE_INIT_BITS).ref(self.code).ref(self.data).end()

    @classmethod
    def decode(cls, cell: Cell) -> Self:
        """The code and data in a cell.

        Raises:
            MalformedError: not a state init of code and data alone.
        """
        source = Slice(cell)
        if source.uint(_STATE_INIT_BITS) != _CODE_AND_DATA:
            raise MalformedError("a state init has other parts than code and data")
        code, data = source.ref(), source.ref()
        source.end()
        return cls(code, data)

    @property
    def address(self) -> Address:
        """Where it lives, in workchain 0."""
        return Address(0, self.encode().hash)


def operation_of(body: Cell) -> tuple[int, int] | None:
    """The operation's number and query id that a body begins with; None where it is too short to have them."""
    source = Slice(body)
    if source.bits_left < OP_BITS + 64:
        return None
    return source.uint(OP_BITS), source.uint(64)


def bounced_operation(body: Cell) -> tuple[int, int] | None:
    """As `operation_of`, of the message that came back; None where nothing came back or it says too little."""
    source = Slice(body)
    if source.bits_left < 2 * OP_BITS + 64 or source.uint(OP_BITS) != BOUNCED:
        return None
    return source.uint(OP_BITS), source.uint(64)
