"""What anybody may read of the log: checkpoints, tiles, entries, envelopes, proofs.

Nothing beyond the last signed checkpoint is shown: what is not signed is not said.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from audit.entries import Entry, LeafType
from audit.errors import NotLoggedError
from audit.postgres.connections import Connection, Pool, acquired
from audit.postgres.statements import SQL
from audit.tiles import LEVEL_MAX, TILE_HEIGHT, TILE_WIDTH, Tile, TileRange, encode_bundle
from audit.tree import Leaves, Tiles, consistency_ranges, hashes_of, inclusion_ranges, tiles_for
from cocoon.merkle import HASH_BYTES


class Signed(NamedTuple):
    """A stored checkpoint; `note` is what was signed."""

    size: int
    root: bytes
    note: str


class InclusionProof(msgspec.Struct, frozen=True):
    """Where an entry stands in the tree of `size` entries."""

    index: int
    size: int
    path: tuple[bytes, ...]


class ConsistencyProof(msgspec.Struct, frozen=True):
    """The tree of `size` entries begins with an older one's; `signed` is the last checkpoint."""

    size: int
    path: tuple[bytes, ...]
    signed: Signed


class LogReader:
    """Every method raises `LogUnavailableError` when Postgres cannot be reached, `NotLoggedError` for what is not."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def checkpoint(self) -> Signed:
        """The last one that was signed."""
        async with acquired(self._pool) as connection:
            return await _last(connection)

    async def tile(self, level: int, asked: TileRange) -> bytes:
        """Hashes of a tile."""
        async with acquired(self._pool) as connection:
            _require_tile(level, asked, (await _last(connection)).size)
            tile = Tile(level, asked.number)
            content = (await read_tiles(connection, {tile})).get(tile, b"")
        return content[: asked.width * HASH_BYTES]

    async def bundle(self, asked: TileRange) -> bytes:
        """The entries under a tile of level 0."""
        async with acquired(self._pool) as connection:
            _require_tile(0, asked, (await _last(connection)).size)
            first = asked.number * TILE_WIDTH
            rows = await connection.fetch(SQL["read_leaves"], first, first + asked.width)
        return encode_bundle([Entry(type=LeafType(row["leaf_type"]), digest=row["digest"]) for row in rows])

    async def envelope(self, entry: Entry) -> bytes:
        """What an entry is about, unless it is a customer's receipt."""
        async with acquired(self._pool) as connection:
            found: bytes | None = await connection.fetchval(SQL["read_envelope"], entry.digest, entry.type.value)
        if found is None:
            raise NotLoggedError("the log keeps no such envelope")
        return found

    async def inclusion(self, entry: Entry, size: int | None = None) -> tuple[InclusionProof, Signed]:
        """The proof that an entry is in the tree of `size` entries (the last signed), and the last checkpoint."""
        async with acquired(self._pool) as connection:
            signed = await _last(connection)
            size = _require_size(signed.size if size is None else size, signed.size)
            index: int | None = await connection.fetchval(SQL["find_leaf"], entry.digest, entry.type.value)
            if index is None or index >= signed.size:
                raise NotLoggedError("the log has no such entry")
            path = await _hashes(connection, inclusion_ranges(index, size))
        return InclusionProof(index=index, size=size, path=path), signed

    async def consistency(self, old_size: int, size: int | None = None) -> ConsistencyProof:
        """The proof that the tree of `size` entries (the last signed) begins with the one of `old_size` entries."""
        async with acquired(self._pool) as connection:
            signed = await _last(connection)
            size = _require_size(signed.size if size is None else size, signed.size)
            path = await _hashes(connection, consistency_ranges(old_size, size))
        return ConsistencyProof(size=size, path=path, signed=signed)


async def read_tiles(connection: Connection, tiles: set[Tile]) -> Tiles:
    """Those of these tiles that are stored."""
    asked = sorted(tiles)
    rows = await connection.fetch(SQL["read_tiles"], [one.level for one in asked], [one.number for one in asked])
    return {Tile(row["tile_level"], row["tile_index"]): row["content"] for row in rows}


async def _hashes(connection: Connection, ranges: Sequence[Leaves]) -> tuple[bytes, ...]:
    return hashes_of(ranges, await read_tiles(connection, tiles_for(ranges)))


async def _last(connection: Connection) -> Signed:
    row = await connection.fetchrow(SQL["read_checkpoint"])
    if row is None:
        raise NotLoggedError("the log has signed nothing yet")
    return Signed(row["size"], row["root"], row["note"])


def _require_size(size: int, signed: int) -> int:
    if not 0 <= size <= signed:
        raise NotLoggedError(f"the log has signed {signed} entries")
    return size


def _require_tile(level: int, asked: TileRange, signed: int) -> None:
    if not 0 <= level <= LEVEL_MAX or asked.number * TILE_WIDTH + asked.width > signed >> (TILE_HEIGHT * level):
        raise NotLoggedError("the log has no such tile yet")
