"""Our cells are TON's: equal to pytoniq-core's in hash and bag, and nothing else is read."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytoniq_core import Builder, Cell

from cocoon import cells
from cocoon.errors import MalformedError
from cocoon.wallets import FORMS, WalletForm


def _theirs(value: int, bits: int, refs: list[Cell]) -> Cell:
    builder = Builder()
    if bits:
        builder.store_uint(value, bits)
    for ref in refs:
        builder.store_ref(ref)
    return builder.end_cell()


@st.composite
def _pairs(draw: st.DrawFn, depth: int = 3) -> tuple[cells.Cell, Cell]:
    """The same tree as a cell of ours and of pytoniq-core's."""
    bits = draw(st.integers(0, cells.BITS_MAX))
    value = draw(st.integers(0, 2**bits - 1)) if bits else 0
    children = draw(st.lists(_pairs(depth - 1), max_size=cells.REFS_MAX)) if depth else []
    ours = cells.cell_of((value, bits), refs=tuple(mine for mine, _ in children))
    return ours, _theirs(value, bits, [theirs for _, theirs in children])


@given(_pairs())
def test_hashes_and_bags_are_those_of_pytoniq(pair: tuple[cells.Cell, Cell]) -> None:
    ours, theirs = pair
    assert ours.hash == theirs.hash
    assert ours.depth == theirs.get_depth(0)
    assert Cell.one_from_boc(cells.write_boc(ours)).hash == ours.hash
    for index, checksum in ((False, False), (False, True), (True, True)):
        assert cells.read_boc(theirs.to_boc(has_idx=index, hash_crc32=checksum)).hash == ours.hash


@given(st.binary(max_size=200))
def test_garbage_is_malformed_or_a_cell(raw: bytes) -> None:
    for text in (raw, bytes.fromhex("b5ee9c72") + raw):
        try:
            assert len(cells.read_boc(text).hash) == 32
        except MalformedError:
            continue


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_every_cut_or_longer_bag_is_malformed(form: WalletForm) -> None:
    raw = base64.b64decode(form.code)
    for length in range(len(raw)):
        with pytest.raises(MalformedError):
            cells.read_boc(raw[:length])
    with pytest.raises(MalformedError):
        cells.read_boc(raw + b"\x00")


def test_a_flipped_bit_never_keeps_the_hash() -> None:
    form = FORMS[0]
    raw = base64.b64decode(form.code)
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = cells.read_boc(bytes(flipped))
        except MalformedError:
            continue
        # Bits of the header that say nothing (the width of an offset that is not there) may change.
        assert found.hash != form.code_hash or bit < 8 * 12


def test_what_is_no_ordinary_cell_is_refused() -> None:
    with pytest.raises(MalformedError):
        cells.Cell(b"\xff", 4)  # bits behind the last one
    with pytest.raises(MalformedError):
        cells.Cell(b"\xff", 16)
    cell = cells.cell_of((1, 8))
    with pytest.raises(MalformedError):
        cells.Cell(b"", 0, (cell,) * 5)
    with pytest.raises(MalformedError):
        cell.read(1, 8)
    exotic = bytearray(cells.write_boc(cell))
    exotic[-3] |= 8
    with pytest.raises(MalformedError, match="not an ordinary cell"):
        cells.read_boc(bytes(exotic))


def test_a_chain_that_is_too_deep_is_refused() -> None:
    cell = cells.cell_of((1, 8))
    for _ in range(cells.DEPTH_MAX):
        cell = cells.cell_of((1, 8), refs=(cell,))
    with pytest.raises(MalformedError, match="too deeply"):
        cells.cell_of((1, 8), refs=(cell,))
