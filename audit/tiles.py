"""Tiles: the log's hashes in files of 256 (C2SP tlog-tiles).

Tile `number` of level `level` has the hashes of 256 complete subtrees, each over 256^level entries. The last tile
of a level may be partial. Entry bundles hold the entries themselves, each behind its length in two bytes.
"""

import re
from typing import NamedTuple

from cocoon.errors import MalformedError
from cocoon.merkle import HASH_BYTES
from cocoon.transparency import Entry

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES
LEVEL_MAX = 7
"""Sizes have 63 bits."""
_INDEX = re.compile(r"(?:x[0-9]{3}/){0,6}[0-9]{3}")
_LENGTH_BYTES = 2


class Tile(NamedTuple):
    """Which tile: the `number`-th of its level, from 0."""

    level: int
    number: int


class TileRange(NamedTuple):
    """A tile as it is asked for: only its first `width` hashes."""

    number: int
    width: int


def tile_path(number: int, width: int = TILE_WIDTH) -> str:
    """`x001/x234/067`, and `.p/WIDTH` behind it for a partial tile."""
    parts = [f"{number % 1000:03d}"]
    while number := number // 1000:
        parts.append(f"x{number % 1000:03d}")
    path = "/".join(reversed(parts))
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def parse_tile_path(path: str) -> TileRange:
    """The tile that a path names.

    Raises:
        MalformedError: not a path of the one form that a tile has.
    """
    name, partial, width = path.partition(".p/")
    if _INDEX.fullmatch(name) is None or (partial and not (width.isascii() and width.isdecimal() and len(width) < 4)):  # noqa: PLR2004  widths are below 256
        raise MalformedError("not the path of a tile")
    found = TileRange(int("".join(part.removeprefix("x") for part in name.split("/"))), int(width or TILE_WIDTH))
    if (partial and not 0 < found.width < TILE_WIDTH) or tile_path(*found) != path:
        raise MalformedError("not the path of a tile")
    return found


def encode_bundle(entries: list[Entry]) -> bytes:
    """An entry bundle."""
    raws = [entry.encode() for entry in entries]
    return b"".join(len(raw).to_bytes(_LENGTH_BYTES, "big") + raw for raw in raws)


def decode_bundle(raw: bytes) -> list[Entry]:
    """The entries of a bundle.

    Raises:
        MalformedError: cut off, or not our entries.
    """
    entries: list[Entry] = []
    while raw:
        end = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "big")
        if len(raw) < end:
            raise MalformedError("the entry bundle is cut off")
        entries.append(Entry.decode(raw[_LENGTH_BYTES:end]))
        raw = raw[end:]
    return entries
