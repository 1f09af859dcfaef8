"""Records: structs whose fields stand in a cell one after the other.

A record names its layout once, as a tuple with one entry for each attribute in order; a nested tuple is the attributes
that stand in a reference of their own. Writing and reading both follow it, so that they cannot differ.
"""

import enum
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, Self, TypeVar, Union

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon.addresses import Address
from cocoon.cells import Builder, Cell, Slice
from cocoon.errors import MalformedError
from cocoon.receipt import is_strong_key

Value = TypeVar("Value")
Member = TypeVar("Member", bound=enum.IntEnum)

HASH_BYTES = 32
SIGNATURE_BYTES = 64
TIME_BITS = 32
"""Unix seconds, as the chain counts them (unsigned: until 2106)."""
OP_BITS = 32
QUERY_BITS = 64
QUERY_MAX = (1 << QUERY_BITS) - 1
NO_HASH = bytes(HASH_BYTES)


class Field(msgspec.Struct, Generic[Value], frozen=True):
    """How one attribute is written and read."""

    write: Callable[[Builder, Value], object]
    read: Callable[[Slice], Value]


Layout = tuple[Union[Field[Any], "Layout"], ...]


def uint(width: int) -> Field[int]:
    """An unsigned integer."""
    return Field(lambda builder, value: builder.uint(value, width), lambda source: source.uint(width))


def sint(width: int) -> Field[int]:
    """A signed integer."""
    return Field(lambda builder, value: builder.sint(value, width), lambda source: source.sint(width))


def _write_bytes(length: int) -> Callable[[Builder, bytes], object]:
    def write(builder: Builder, value: bytes) -> None:
        if len(value) != length:
            raise MalformedError(f"a field of {length} bytes has {len(value)}")
        builder.raw(value)

    return write


def octets(length: int) -> Field[bytes]:
    """Exactly `length` bytes."""
    return Field(_write_bytes(length), lambda source: source.raw(length))


HASH = octets(HASH_BYTES)
KEY = octets(HASH_BYTES)
SIGNATURE = octets(SIGNATURE_BYTES)
TIME = uint(TIME_BITS)
FLAG: Field[bool] = Field(lambda builder, flag: builder.uint(flag, 1), lambda source: bool(source.uint(1)))
COINS: Field[int] = Field(lambda builder, nano: builder.coins(nano), lambda source: source.coins())
ADDRESS: Field[Address] = Field(lambda builder, address: builder.address(address), lambda source: source.address())
REF: Field[Cell] = Field(lambda builder, cell: builder.ref(cell), lambda source: source.ref())
MAYBE_REF: Field[Cell | None] = Field(lambda builder, cell: builder.maybe_ref(cell), lambda source: source.maybe_ref())


class Record(msgspec.Struct, frozen=True):
    """A struct that stands in a cell. `TAG` is what the cell begins with, if it begins with a tag."""

    TAG: ClassVar[int | None] = None
    LAYOUT: ClassVar[Layout] = ()

    def encode(self) -> Cell:
        """The cell.

        Raises:
            MalformedError: a value does not fit its field.
        """
        builder = Builder()
        if self.TAG is not None:
            builder.uint(self.TAG, OP_BITS)
        values = iter(msgspec.structs.astuple(self))
        _write(builder, self.LAYOUT, values)
        assert next(values, None) is None, "the layout covers every attribute"
        return builder.end()

    @classmethod
    def decode(cls, cell: Cell) -> Self:
        """The record in a cell.

        Raises:
            MalformedError: another tag, too little in it, or too much.
        """
        source = Slice(cell)
        if cls.TAG is not None and source.uint(OP_BITS) != cls.TAG:
            raise MalformedError(f"not a {cls.__name__}")
        values: list[object] = []
        _read(source, cls.LAYOUT, values)
        return cls(*values)


def enumeration(kind: type[Member], width: int) -> Field[Member]:
    """One of an enumeration's numbers; another one is malformed."""

    def read(source: Slice) -> Member:
        number = source.uint(width)
        try:
            return kind(number)
        except ValueError as error:
            raise MalformedError(f"not a {kind.__name__}: {number}") from error

    return Field(lambda builder, member: builder.uint(member, width), read)


def record(kind: type[Record]) -> Field[Any]:
    """Another record in a reference of its own."""
    return Field(lambda builder, value: builder.ref(value.encode()), lambda source: kind.decode(source.ref()))


def _write(builder: Builder, layout: Layout, values: Iterator[object]) -> None:
    for entry in layout:
        if isinstance(entry, Field):
            entry.write(builder, next(values))
        else:
            inner = Builder()
            _write(inner, entry, values)
            builder.ref(inner.end())


def _read(source: Slice, layout: Layout, values: list[object]) -> None:
    for entry in layout:
        if isinstance(entry, Field):
            values.append(entry.read(source))
        else:
            _read(Slice(source.ref()), entry, values)
    source.end()


def sign_cell(key: Ed25519PrivateKey, cell: Cell) -> bytes:
    """The Ed25519 signature over a cell's hash: what the contracts check for cells."""
    return key.sign(cell.hash)


def is_usable_key(key: bytes) -> bool:
    """Whether a contract accepts this as a key: neither zero (which means none) nor of small order."""
    return key != NO_HASH and is_strong_key(key)
