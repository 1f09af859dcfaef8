"""Tile paths, entry bundles and trees over tiles."""

import hashlib

import pytest

from audit.entries import Entry, LeafType, entry_of, receipt_envelope
from audit.errors import LogRewrittenError, NotLoggedError
from audit.tiles import Tile, decode_bundle, encode_bundle, parse_tile_path, tile_path
from audit.tree import Leaves, consistency_ranges, edge_ranges, grow, hashes_of, inclusion_ranges, range_hash, tiles_for
from cocoon.errors import MalformedError

# The well-known reference trees of Certificate Transparency's implementations of RFC 6962.
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 8): ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
             "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
             "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"],
    (5, 8): ["bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
             "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
             "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"],
    (1, 5): ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
             "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
             "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"],
}  # fmt: skip
CONSISTENCY = {
    (1, 8): ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
             "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
             "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"],
    (6, 8): ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
             "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
             "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"],
    (2, 5): ["5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
             "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"],
}  # fmt: skip
TILES = grow(0, {}, LEAVES).tiles


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_rfc_6962(size: int) -> None:
    assert grow(0, {}, LEAVES[:size]).root.hex() == ROOTS[size]
    assert range_hash(Leaves(0, size), TILES).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_proofs_are_those_of_rfc_6962(index: int, size: int) -> None:
    assert [one.hex() for one in hashes_of(inclusion_ranges(index, size), TILES)] == INCLUSION[index, size]


@pytest.mark.parametrize(("old", "size"), CONSISTENCY)
def test_consistency_proofs_are_those_of_rfc_6962(old: int, size: int) -> None:
    assert [one.hex() for one in hashes_of(consistency_ranges(old, size), TILES)] == CONSISTENCY[old, size]


@pytest.mark.parametrize(("index", "size"), [(0, 0), (8, 8), (-1, 8)])
def test_a_leaf_outside_of_the_tree_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(NotLoggedError):
        inclusion_ranges(index, size)


@pytest.mark.parametrize(("old", "size"), [(9, 8), (-1, 8)])
def test_a_tree_does_not_shrink(old: int, size: int) -> None:
    with pytest.raises(NotLoggedError):
        consistency_ranges(old, size)


def test_a_tile_that_was_cut_is_noticed_when_it_should_grow() -> None:
    edge = {Tile(0, 0): TILES[Tile(0, 0)][:-32]}

    assert tiles_for(edge_ranges(8)) == {Tile(0, 0)}
    with pytest.raises(LogRewrittenError, match="another length"):
        grow(8, edge, LEAVES)


@pytest.mark.parametrize(
    ("number", "width", "path"),
    [
        (0, 256, "000"), (999, 256, "999"), (1000, 256, "x001/000"), (1234067, 256, "x001/x234/067"),
        (1234067, 255, "x001/x234/067.p/255"), (5, 1, "005.p/1"),
    ],
)  # fmt: skip
def test_tile_paths_are_those_of_c2sp(number: int, width: int, path: str) -> None:
    assert tile_path(number, width) == path
    assert parse_tile_path(path) == (number, width)


@pytest.mark.parametrize(
    "path",
    ["", "0", "0000", "x000/001", "000/001", "x001", "000.p/0", "000.p/256", "000.p/01", "000.p/", "000.p/-1",
     "00\u0661", "x001/000/", "../000"],
)  # fmt: skip
def test_a_tile_has_one_path(path: str) -> None:
    with pytest.raises(MalformedError):
        parse_tile_path(path)


def test_an_entry_bundle_carries_its_entries() -> None:
    entries = [entry_of(LeafType.RECEIPT, b"a"), entry_of(LeafType.MANIFEST, b"b")]
    raw = encode_bundle(entries)

    assert raw[:3] == b"\x00\x21\x01"
    assert decode_bundle(raw) == entries
    with pytest.raises(MalformedError, match="cut off"):
        decode_bundle(raw[:-1])


def test_an_entry_is_type_and_digest() -> None:
    entry = entry_of(LeafType.ADMISSION, b"envelope")

    assert entry.encode() == b"\x02" + hashlib.sha256(b"envelope").digest()
    assert Entry.decode(entry.encode()) == entry
    with pytest.raises(MalformedError, match="unknown type"):
        Entry.decode(b"\x09" + entry.digest)
    with pytest.raises(MalformedError, match="33 bytes"):
        Entry.decode(entry.encode()[:-1])


def test_a_receipts_envelope_has_only_its_own_parts() -> None:
    assert receipt_envelope(b"k" * 32, b"h" * 124, b"s" * 64) == b"k" * 32 + b"h" * 124 + b"s" * 64
    with pytest.raises(MalformedError):
        receipt_envelope(b"k" * 33, b"h" * 123, b"s" * 64)
