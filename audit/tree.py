"""The tree over tiles: how it grows, its root, and proofs of any size that it had.

Only complete subtrees have their hash in a tile; everything else is a run of those. So every function here begins
with a range of leaves, `[start, end)`, cuts it into complete subtrees, and folds their hashes from the right, which is
RFC 6962's MTH. Pure: who asks reads the tiles that `tiles_for` names.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from audit.errors import LogRewrittenError, NotLoggedError
from audit.tiles import LEVEL_MAX, TILE_BYTES, TILE_HEIGHT, TILE_WIDTH, Tile
from cocoon.merkle import EMPTY_ROOT, HASH_BYTES, leaf_hash, node_hash

Tiles = Mapping[Tile, bytes]


class Leaves(NamedTuple):
    """The leaves from `start` on, before `end`, that one hash of a proof covers."""

    start: int
    end: int


class _Node(NamedTuple):
    """The complete subtree `number` of those over 2^`height` leaves."""

    height: int
    number: int


def inclusion_ranges(index: int, size: int) -> list[Leaves]:
    """What the hashes of an inclusion proof cover, lowest first (RFC 6962 §2.1.1).

    Raises:
        NotLoggedError: a tree of this size has no such leaf.
    """
    if not 0 <= index < size:
        raise NotLoggedError(f"a tree of {size} entries has no entry {index}")
    start, end = 0, size
    path: list[Leaves] = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(Leaves(middle, end))
            end = middle
        else:
            path.append(Leaves(start, middle))
            start = middle
    return path[::-1]


def consistency_ranges(old_size: int, size: int) -> list[Leaves]:
    """What the hashes of a consistency proof cover, in its order (RFC 6962 §2.1.2); empty from 0 and to itself.

    Raises:
        NotLoggedError: a tree does not shrink.
    """
    if not 0 <= old_size <= size:
        raise NotLoggedError(f"there is no tree of {old_size} entries before one of {size}")
    if old_size in (0, size):
        return []
    start, end, whole = 0, size, True
    path: list[Leaves] = []
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append(Leaves(middle, end))
            end = middle
        else:
            path.append(Leaves(start, middle))
            start, whole = middle, False
    if not whole:
        path.append(Leaves(start, end))
    return path[::-1]


def tiles_for(ranges: Iterable[Leaves]) -> set[Tile]:
    """The tiles that have the hashes for these ranges."""
    return {_place(node)[0] for leaves in ranges for node in _complete(leaves)}


def edge_ranges(size: int) -> list[Leaves]:
    """The range of the whole tree; its tiles are the right edge, which is all that growing needs."""
    return [Leaves(0, size)] if size else []


def range_hash(leaves: Leaves, tiles: Tiles) -> bytes:
    """The hash over a range whose start is aligned to it, as those of proofs and of whole trees are.

    Raises:
        LogRewrittenError: a tile is missing or too short.
    """
    hashes = [_node_in(node, tiles) for node in _complete(leaves)]
    if not hashes:
        return EMPTY_ROOT
    found = hashes[-1]
    for left in reversed(hashes[:-1]):
        found = node_hash(left, found)
    return found


def hashes_of(ranges: Sequence[Leaves], tiles: Tiles) -> tuple[bytes, ...]:
    """The hashes of a proof.

    Raises:
        LogRewrittenError: as `range_hash`.
    """
    return tuple(range_hash(leaves, tiles) for leaves in ranges)


class Growth(NamedTuple):
    """A tree that has grown: its size, its root, and the new contents of every tile that changed."""

    size: int
    root: bytes
    tiles: dict[Tile, bytes]


def grow(size: int, edge: Tiles, leaves: Sequence[bytes]) -> Growth:
    """Append leaves (exact bytes of entries) to the tree of `size` leaves whose right edge is given.

    Raises:
        LogRewrittenError: a tile of the edge is missing or has another length than the size says.
    """
    known = dict(edge)
    changed: dict[Tile, bytes] = {}
    hashes = [leaf_hash(leaf) for leaf in leaves]
    for level in range(LEVEL_MAX + 1):
        if not hashes:
            break
        count = size >> (TILE_HEIGHT * level)
        number, filled = divmod(count, TILE_WIDTH)
        buffer = known.get(Tile(level, number), b"") if filled else b""
        if len(buffer) != filled * HASH_BYTES:
            raise LogRewrittenError(f"tile {number} of level {level} has another length than a log of {size} entries")
        buffer += b"".join(hashes)
        complete: list[bytes] = []
        for at in range(0, len(buffer), TILE_BYTES):
            content = buffer[at : at + TILE_BYTES]
            tile = Tile(level, number + at // TILE_BYTES)
            changed[tile] = known[tile] = content
            if len(content) == TILE_BYTES:
                complete.append(_root_of(content))
        hashes = complete
    size += len(leaves)
    return Growth(size, range_hash(Leaves(0, size), known), changed)


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _complete(leaves: Leaves) -> list[_Node]:
    """The complete subtrees that a range consists of, from left to right: the largest first."""
    nodes: list[_Node] = []
    at, left = leaves.start, leaves.end - leaves.start
    while left:
        height = left.bit_length() - 1
        assert at % (1 << height) == 0, "ranges of proofs are aligned"
        nodes.append(_Node(height, at >> height))
        at, left = at + (1 << height), left - (1 << height)
    return nodes


def _place(node: _Node) -> tuple[Tile, int, int]:
    """The tile that has a node's hashes, and from where to where (in hashes)."""
    level, rest = divmod(node.height, TILE_HEIGHT)
    start = node.number << rest
    return Tile(level, start // TILE_WIDTH), start % TILE_WIDTH, start % TILE_WIDTH + (1 << rest)


def _node_in(node: _Node, tiles: Tiles) -> bytes:
    tile, start, end = _place(node)
    part = tiles.get(tile, b"")[start * HASH_BYTES : end * HASH_BYTES]
    if len(part) != (end - start) * HASH_BYTES:
        raise LogRewrittenError(f"tile {tile.number} of level {tile.level} is missing or too short")
    return _root_of(part)


def _root_of(part: bytes) -> bytes:
    """The root over a power of two of hashes."""
    hashes = [part[at : at + HASH_BYTES] for at in range(0, len(part), HASH_BYTES)]
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]
