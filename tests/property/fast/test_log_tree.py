"""Random logs: tiles grow in any batches into the same tree, and what was altered or cut does not verify."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import LogRewrittenError
from audit.tiles import Tile
from audit.tree import (
    Leaves,
    Tiles,
    consistency_ranges,
    edge_ranges,
    grow,
    hashes_of,
    inclusion_ranges,
    range_hash,
    tiles_for,
)
from cocoon.errors import MalformedError
from cocoon.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion

SIZE_MAX = 2100
LEAVES = [b"\x01" + hashlib.sha256(str(number).encode()).digest() for number in range(SIZE_MAX)]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
sizes = st.one_of(st.integers(0, 20), st.integers(250, 260), st.integers(510, 514), st.integers(0, SIZE_MAX))


def grown(*batches: int, leaves: list[bytes] = LEAVES) -> tuple[int, bytes, dict[Tile, bytes]]:
    size, root, tiles = 0, hashlib.sha256().digest(), dict[Tile, bytes]()
    for count in batches:
        edge = {tile: tiles[tile] for tile in tiles_for(edge_ranges(size))}
        growth = grow(size, edge, leaves[size : size + count])
        for tile, content in growth.tiles.items():
            assert content.startswith(tiles.get(tile, b"")), "a tile only grows at its end"
        size, root = growth.size, growth.root
        tiles.update(growth.tiles)
    return size, root, tiles


WHOLE: Tiles = grown(SIZE_MAX)[2]


@given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 700)), max_size=5))
def test_batches_of_any_sizes_make_the_same_tree(batches: list[int]) -> None:
    batches = [count for at, count in enumerate(batches) if sum(batches[: at + 1]) <= SIZE_MAX]
    batches = batches if sum(batches) <= SIZE_MAX else []
    size, root, tiles = grown(*batches)

    assert root == Tree(HASHES[:size]).root
    assert tiles == grown(size)[2]


@given(st.data(), sizes)
def test_proofs_from_tiles_are_those_of_the_whole_tree(data: st.DataObject, size: int) -> None:
    tree = Tree(HASHES[:size])
    old = data.draw(st.integers(0, size))
    ranges = consistency_ranges(old, size)
    # Only the named tiles are read, and they may have grown since.
    tiles = {tile: WHOLE[tile] for tile in tiles_for(ranges)}
    path = hashes_of(ranges, tiles)

    assert path == tree.consistency(old)
    assert range_hash(Leaves(0, size), WHOLE) == tree.root
    verify_consistency(old, size, path, Tree(HASHES[:old]).root, tree.root)
    if size:
        index = data.draw(st.integers(0, size - 1))
        ranges = inclusion_ranges(index, size)
        path = hashes_of(ranges, {tile: WHOLE[tile] for tile in tiles_for(ranges)})
        assert path == tree.inclusion(index)
        verify_inclusion(LEAVES[index], index, size, path, tree.root)


@given(st.data(), st.integers(2, SIZE_MAX))
def test_a_log_that_was_rewritten_is_not_consistent(data: st.DataObject, size: int) -> None:
    old = data.draw(st.integers(1, size - 1))
    altered = data.draw(st.integers(0, old - 1))
    leaves = [*LEAVES[:altered], b"\x01" + bytes(32), *LEAVES[altered + 1 : size]]
    _, root, tiles = grown(size, leaves=leaves)
    path = hashes_of(consistency_ranges(old, size), tiles)

    with pytest.raises(MalformedError, match="does not join"):
        verify_consistency(old, size, path, Tree(HASHES[:old]).root, root)


@given(st.data(), st.integers(2, SIZE_MAX))
def test_a_log_that_was_cut_is_not_consistent(data: st.DataObject, old: int) -> None:
    size = data.draw(st.integers(1, old - 1))

    with pytest.raises(MalformedError, match="does not shrink"):
        verify_consistency(old, size, (), Tree(HASHES[:old]).root, Tree(HASHES[:size]).root)


@given(st.data(), st.integers(1, SIZE_MAX))
def test_an_altered_entry_is_not_included(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    at = data.draw(st.integers(0, 32))
    leaf = bytearray(LEAVES[index])
    leaf[at] ^= 1 << data.draw(st.integers(0, 7))
    path = hashes_of(inclusion_ranges(index, size), WHOLE)

    with pytest.raises(MalformedError, match="does not lead to the root"):
        verify_inclusion(bytes(leaf), index, size, path, range_hash(Leaves(0, size), WHOLE))


@given(st.data(), st.integers(1, SIZE_MAX))
def test_a_missing_tile_stops_the_log(data: st.DataObject, size: int) -> None:
    _, _, tiles = grown(size)
    lost = data.draw(st.sampled_from(sorted(tiles_for(edge_ranges(size)))))
    del tiles[lost]

    with pytest.raises(LogRewrittenError):
        range_hash(Leaves(0, size), tiles)
