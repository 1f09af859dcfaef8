"""TON cells: ordinary cells and their hashes, bags of one root, what builds cells and what reads them.

Exotic cells, levels and stored hashes are refused: wallets and our contracts have none. Source: TON's `boc.tlb`,
`block.tlb` (addresses, Grams) and the whitepaper's §1.1 (The Open Network virtual machine). Pure; equality with
pytoniq-core is a property of the tests.
"""

import hashlib
from typing import Self

from cocoon.addresses import ACCOUNT_BYTES, Address
from cocoon.errors import MalformedError

CELLS_MAX = 256
"""Cells of a bag from a stranger; the largest wallet that we know has 23."""
BAG_CELLS_MAX = 8192
"""Cells of a message: TON's own limit (config parameter 43). A wallet's batch of 255 messages has some 800."""
DEPTH_MAX = 512
"""TON's limit for messages; a batch of 255 messages is a list of that depth."""
BITS_MAX = 1023
REFS_MAX = 4
_MAGIC = bytes.fromhex("b5ee9c72")
_HAS_INDEX, _HAS_CHECKSUM, _HAS_CACHE_BITS, _FLAGS, _SIZE = 0x80, 0x40, 0x20, 0x18, 0x07
_EXOTIC_LEVEL_HASHES = 0xF8
_CHECKSUM_BYTES = 4
_ADDR_STD = 0b100
"""`addr_std$10` without anycast."""


class Cell:
    """An ordinary cell: `bits` bits of `data` (what is left of the last byte is zero) and up to four references.

    `depth` is 0 without references, `hash` the representation hash.
    """

    __slots__ = ("bits", "data", "depth", "hash", "refs")

    def __init__(self, data: bytes, bits: int, refs: tuple["Cell", ...] = ()) -> None:
        if not 0 <= bits <= BITS_MAX or len(data) != -(-bits // 8) or len(refs) > REFS_MAX:
            raise MalformedError("not a cell")
        if bits % 8 and data[-1] & (0xFF >> bits % 8):
            raise MalformedError("a cell's unused bits are zero")
        self.data = data
        self.bits = bits
        self.refs = refs
        self.depth: int = 1 + max(ref.depth for ref in refs) if refs else 0
        if self.depth > DEPTH_MAX:
            raise MalformedError("the cells are nested too deeply")
        self.hash = hashlib.sha256(
            self.described()
            + b"".join(ref.depth.to_bytes(2, "big") for ref in refs)
            + b"".join(ref.hash for ref in refs)
        ).digest()

    def described(self) -> bytes:
        """The two descriptor bytes, then the data with a one behind its last bit where that is no whole byte."""
        padded = self.data
        if self.bits % 8:
            padded = padded[:-1] + bytes([padded[-1] | 0x80 >> self.bits % 8])
        return bytes([len(self.refs), self.bits // 8 + -(-self.bits // 8)]) + padded

    def read(self, offset: int, count: int) -> int:
        """`count` bits from bit `offset` on, as an unsigned integer.

        Raises:
            MalformedError: the cell has fewer bits.
        """
        if offset + count > self.bits:
            raise MalformedError("the cell is too short")
        return int.from_bytes(self.data, "big") >> (len(self.data) * 8 - offset - count) & ((1 << count) - 1)


def cell_of(*fields: tuple[int, int], refs: tuple[Cell, ...] = ()) -> Cell:
    """A cell of unsigned integers, each with its width in bits, one after the other."""
    value, bits = 0, 0
    for number, width in fields:
        assert 0 <= number < 1 << width, "a field fits its width"
        value, bits = value << width | number, bits + width
    length = -(-bits // 8)
    return Cell((value << length * 8 - bits).to_bytes(length, "big"), bits, refs)


class Builder:
    """A cell in the making; every method returns the builder.

    Raises:
        MalformedError: from any method, for a value that does not fit its field, and from `end` for too much data.
    """

    __slots__ = ("_bits", "_refs", "_value")

    def __init__(self) -> None:
        self._value = 0
        self._bits = 0
        self._refs: list[Cell] = []

    def uint(self, value: int, width: int) -> Self:
        """An unsigned integer of `width` bits."""
        if not 0 <= value < 1 << width:
            raise MalformedError(f"a number does not fit {width} bits")
        self._value = self._value << width | value
        self._bits += width
        return self

    def sint(self, value: int, width: int) -> Self:
        """A signed integer of `width` bits (two's complement)."""
        if not -(1 << width - 1) <= value < 1 << width - 1:
            raise MalformedError(f"a number does not fit {width} signed bits")
        return self.uint(value & (1 << width) - 1, width)

    def raw(self, data: bytes) -> Self:
        """Whole bytes."""
        return self.uint(int.from_bytes(data, "big"), len(data) * 8)

    def coins(self, nano: int) -> Self:
        """An amount (`VarUInteger 16`): four bits of length, then as few bytes as it needs, at most 15."""
        if nano < 0:
            raise MalformedError("an amount is not negative")
        length = -(-nano.bit_length() // 8)
        return self.uint(length, 4).uint(nano, length * 8)

    def address(self, address: Address | None) -> Self:
        """A standard internal address without anycast, 267 bits; None is `addr_none`, 2 bits."""
        if address is None:
            return self.uint(0, 2)
        if len(address.account) != ACCOUNT_BYTES:
            raise MalformedError("an account has 32 bytes")
        return self.uint(_ADDR_STD, 3).sint(address.workchain, 8).raw(address.account)

    def ref(self, cell: Cell) -> Self:
        """A reference."""
        self._refs.append(cell)
        return self

    def maybe_ref(self, cell: Cell | None) -> Self:
        """A bit, and a reference where there is something."""
        return self.uint(0, 1) if cell is None else self.uint(1, 1).ref(cell)

    def append(self, cell: Cell) -> Self:
        """All of another cell's bits and references."""
        self._refs.extend(cell.refs)
        return self.uint(cell.read(0, cell.bits), cell.bits)

    def end(self) -> Cell:
        """The cell."""
        length = -(-self._bits // 8)
        return Cell((self._value << length * 8 - self._bits).to_bytes(length, "big"), self._bits, tuple(self._refs))


class Slice:
    """A cell that is read from the front, bits and references each in their order.

    Raises:
        MalformedError: from any method, where the cell has less than is asked for, or has it in another form.
    """

    __slots__ = ("_at", "_cell", "_ref")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._at = 0
        self._ref = 0

    @property
    def bits_left(self) -> int:
        """Bits that were not read yet."""
        return self._cell.bits - self._at

    @property
    def refs_left(self) -> int:
        """References that were not read yet."""
        return len(self._cell.refs) - self._ref

    def uint(self, width: int) -> int:
        """An unsigned integer of `width` bits."""
        value = self._cell.read(self._at, width)
        self._at += width
        return value

    def sint(self, width: int) -> int:
        """A signed integer of `width` bits."""
        value = self.uint(width)
        return value - (1 << width) if value >> width - 1 else value

    def raw(self, length: int) -> bytes:
        """Whole bytes."""
        return self.uint(length * 8).to_bytes(length, "big")

    def coins(self) -> int:
        """An amount in nano; one that is written with more bytes than it needs is refused."""
        length = self.uint(4)
        nano = self.uint(length * 8)
        if length and not nano >> (length - 1) * 8:
            raise MalformedError("an amount has leading zeros")
        return nano

    def address(self) -> Address:
        """A standard internal address without anycast."""
        if self.uint(3) != _ADDR_STD:
            raise MalformedError("not a standard address")
        workchain = self.sint(8)
        return Address(workchain, self.raw(ACCOUNT_BYTES))

    def maybe_address(self) -> Address | None:
        """A standard internal address, or None for `addr_none`."""
        if self._cell.read(self._at, 2) == 0:
            self._at += 2
            return None
        return self.address()

    def ref(self) -> Cell:
        """The next reference."""
        if not self.refs_left:
            raise MalformedError("the cell has too few references")
        self._ref += 1
        return self._cell.refs[self._ref - 1]

    def maybe_ref(self) -> Cell | None:
        """The next reference, if the next bit says that there is one."""
        return self.ref() if self.uint(1) else None

    def rest(self) -> Cell:
        """What was not read yet, as a cell; it counts as read then."""
        width, refs = self.bits_left, self._cell.refs[self._ref :]
        self._ref = len(self._cell.refs)
        builder = Builder().uint(self.uint(width), width)
        for ref in refs:
            builder.ref(ref)
        return builder.end()

    def end(self) -> None:
        """Require that everything was read."""
        if self.bits_left or self.refs_left:
            raise MalformedError("the cell has more in it than it should")


def write_boc(root: Cell) -> bytes:
    """A bag of one root without index and checksum, every cell once, parents before children."""
    order: list[Cell] = []
    _place(root, order, set())
    order.reverse()
    index = {cell.hash: number for number, cell in enumerate(order)}
    assert len(order) <= BAG_CELLS_MAX, "what we write others can read"
    size = 1 if len(order) <= 0xFF else 2  # noqa: PLR2004  references of one byte
    body = b"".join(
        cell.described() + b"".join(index[ref.hash].to_bytes(size, "big") for ref in cell.refs) for cell in order
    )
    offset_bytes = -(-len(body).bit_length() // 8)
    counts = (len(order), 1, 0)
    header = bytes([size, offset_bytes]) + b"".join(count.to_bytes(size, "big") for count in counts)
    return _MAGIC + header + len(body).to_bytes(offset_bytes, "big") + bytes(size) + body


def read_boc(raw: bytes, *, cells_max: int = CELLS_MAX) -> Cell:
    """The root of a bag. A checksum is not looked at: whoever reads a cell knows the hash that it must have.

    Raises:
        MalformedError: not a bag of at most `cells_max` ordinary cells under one root.
    """
    source = _Bytes(raw)
    if source.take(4) != _MAGIC:
        raise MalformedError("not a bag of cells")
    flags, offset_bytes = source.take(2)
    size = flags & _SIZE
    if flags & (_HAS_CACHE_BITS | _FLAGS) or size not in {1, 2} or offset_bytes not in range(1, 5):
        raise MalformedError("not a bag of cells that we read")
    cells, roots, absent = (source.integer(size) for _ in range(3))
    total = source.integer(offset_bytes)
    if not 1 <= cells <= cells_max or roots != 1 or absent:
        raise MalformedError("a bag has one root and a bounded number of cells")
    root = source.integer(size)
    if flags & _HAS_INDEX:
        source.take(cells * offset_bytes)
    body = _Bytes(source.take(total))
    if source.left != (_CHECKSUM_BYTES if flags & _HAS_CHECKSUM else 0):
        raise MalformedError("the bag has another length than it says")
    described = [_read_cell(body, size) for _ in range(cells)]
    if body.left or root >= cells:
        raise MalformedError("the bag has other cells than it says")
    return _linked(described, root)


def _read_cell(body: "_Bytes", size: int) -> tuple[bytes, int, list[int]]:
    first, second = body.take(2)
    if first & _EXOTIC_LEVEL_HASHES or first > REFS_MAX:
        raise MalformedError("not an ordinary cell")
    data = body.take(-(-second // 2))
    bits = len(data) * 8
    if second % 2:
        last = data[-1]
        if not last:
            raise MalformedError("a cell's last bit is not marked")
        unused = (last & -last).bit_length()
        bits -= unused
        data = data[:-1] + bytes([last & last - 1])
        if unused == 8:  # noqa: PLR2004  a whole byte of padding is one byte too many
            raise MalformedError("a cell's padding is not minimal")
    return data, bits, [body.integer(size) for _ in range(first)]


def _linked(described: list[tuple[bytes, int, list[int]]], root: int) -> Cell:
    made: dict[int, Cell] = {}
    for number in range(len(described) - 1, -1, -1):
        data, bits, refs = described[number]
        # References point forward only: no cycle, and every child is made before its parent.
        if any(ref not in made for ref in refs):
            raise MalformedError("a cell refers backwards")
        made[number] = Cell(data, bits, tuple(made[ref] for ref in refs))
    return made[root]


def _place(root: Cell, order: list[Cell], seen: set[bytes]) -> None:
    """Children before their parents, every cell once; iterative, since a batch is deeper than Python likes to go."""
    pending: list[tuple[Cell, bool]] = [(root, False)]
    while pending:
        cell, done = pending.pop()
        if done:
            order.append(cell)
        elif cell.hash not in seen:
            seen.add(cell.hash)
            pending.append((cell, True))
            pending.extend((ref, False) for ref in cell.refs)


class _Bytes:
    """Bytes that are taken from the front."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise MalformedError("the bag of cells is cut short")
        self._at += count
        return self._raw[self._at - count : self._at]

    def integer(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")
