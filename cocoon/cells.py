"""TON cells, as far as a wallet's state init needs them: ordinary cells, their hashes, and bags of one root.

Exotic cells, levels and stored hashes are refused: the wallets that we know have none. Source: TON's `boc.tlb` and the
whitepaper's §1.1 (The Open Network virtual machine). Pure; equality with pytoniq-core is a property of the tests.
"""

import hashlib

from cocoon.errors import MalformedError

CELLS_MAX = 256
"""Cells of one bag; the largest wallet that we know has 23."""
DEPTH_MAX = 64
BITS_MAX = 1023
REFS_MAX = 4
_MAGIC = bytes.fromhex("b5ee9c72")
_HAS_INDEX, _HAS_CHECKSUM, _HAS_CACHE_BITS, _FLAGS, _SIZE = 0x80, 0x40, 0x20, 0x18, 0x07
_EXOTIC_LEVEL_HASHES = 0xF8
_CHECKSUM_BYTES = 4


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


def write_boc(root: Cell) -> bytes:
    """A bag of one root without index and checksum, every cell once, parents before children."""
    order: list[Cell] = []
    _place(root, order, set())
    order.reverse()
    index = {cell.hash: number for number, cell in enumerate(order)}
    assert len(order) <= CELLS_MAX, "what we write we can read"
    size = 1 if len(order) <= 0xFF else 2  # noqa: PLR2004  references of one byte
    body = b"".join(
        cell.described() + b"".join(index[ref.hash].to_bytes(size, "big") for ref in cell.refs) for cell in order
    )
    offset_bytes = -(-len(body).bit_length() // 8)
    counts = (len(order), 1, 0)
    header = bytes([size, offset_bytes]) + b"".join(count.to_bytes(size, "big") for count in counts)
    return _MAGIC + header + len(body).to_bytes(offset_bytes, "big") + bytes(size) + body


def read_boc(raw: bytes) -> Cell:
    """The root of a bag. A checksum is not looked at: whoever reads a cell knows the hash that it must have.

    Raises:
        MalformedError: not a bag of at most `CELLS_MAX` ordinary cells under one root.
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
    if not 1 <= cells <= CELLS_MAX or roots != 1 or absent:
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


def _place(cell: Cell, order: list[Cell], seen: set[bytes]) -> None:
    if cell.hash in seen:
        return
    seen.add(cell.hash)
    for ref in reversed(cell.refs):
        _place(ref, order, seen)
    order.append(cell)


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
