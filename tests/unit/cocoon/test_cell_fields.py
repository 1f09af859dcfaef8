"""What builds and reads cells, against pytoniq-core; addresses as wallet apps show them."""

import pytest
import pytoniq_core
from hypothesis import given
from hypothesis import strategies as st

from cocoon.addresses import Address
from cocoon.cells import Builder, Cell, Slice, write_boc
from cocoon.errors import MalformedError

WORKCHAINS = st.sampled_from([0, -1])
ACCOUNTS = st.binary(min_size=32, max_size=32)
ADDRESSES = st.builds(Address, WORKCHAINS, ACCOUNTS)
COINS_MAX = 2**120 - 1


def theirs(address: Address | None) -> pytoniq_core.Address | None:
    return None if address is None else pytoniq_core.Address((address.workchain, address.account))


@given(
    st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, COINS_MAX), st.none() | ADDRESSES,
    st.binary(min_size=32, max_size=32), st.booleans(),
)  # fmt: skip
def test_fields_are_those_of_pytoniq_and_are_read_back(
    number: int, signed: int, nano: int, address: Address | None, raw: bytes, present: bool
) -> None:
    leaf = Builder().uint(7, 3).end()
    ours = Builder().uint(number, 64).sint(signed, 32).coins(nano).address(address).raw(raw)
    ours = ours.maybe_ref(leaf if present else None).ref(leaf).end()
    other = pytoniq_core.begin_cell().store_uint(number, 64).store_int(signed, 32).store_coins(nano)
    other = other.store_address(theirs(address)).store_bytes(raw)
    small = pytoniq_core.begin_cell().store_uint(7, 3).end_cell()
    other = other.store_maybe_ref(small if present else None).store_ref(small).end_cell()

    source = Slice(ours)

    assert ours.hash == other.hash
    assert (source.uint(64), source.sint(32), source.coins(), source.maybe_address(), source.raw(32)) == (
        number, signed, nano, address, raw,
    )  # fmt: skip
    assert source.maybe_ref() == (leaf if present else None)
    assert source.ref() == leaf
    source.end()


@given(ADDRESSES, st.booleans(), st.booleans())
def test_friendly_addresses_are_those_of_pytoniq(address: Address, bounceable: bool, test_network: bool) -> None:
    shown = address.friendly(bounceable=bounceable, test_network=test_network)
    other = theirs(address)
    assert other is not None

    assert shown == other.to_str(is_bounceable=bounceable, is_test_only=test_network)
    assert Address.parse_any(shown) == address
    assert Address.parse_any(str(address)) == address


@given(ADDRESSES, st.integers(0, 47), st.sampled_from("ABCabc019-_"))
def test_a_mistyped_address_is_refused(address: Address, at: int, letter: str) -> None:
    shown = address.friendly(bounceable=True, test_network=True)
    mistyped = shown[:at] + letter + shown[at + 1 :]
    if mistyped == shown:
        return
    with pytest.raises(MalformedError):
        Address.parse_any(mistyped)


@pytest.mark.parametrize("text", ["", "0:12", "EQ", "1:" + "00" * 32, "ü" * 48, "=" * 48])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        Address.parse_any(text)


@pytest.mark.parametrize(
    "write",
    [
        lambda: Builder().uint(8, 3),
        lambda: Builder().uint(-1, 8),
        lambda: Builder().sint(128, 8),
        lambda: Builder().sint(-129, 8),
        lambda: Builder().coins(COINS_MAX + 1),
        lambda: Builder().coins(-1),
        lambda: Builder().address(Address(0, b"short")),
        lambda: Builder().raw(bytes(128)).end(),
    ],
)
def test_what_does_not_fit_is_refused(write: object) -> None:
    assert callable(write)
    with pytest.raises(MalformedError):
        write()


def test_a_slice_gives_no_more_than_there_is() -> None:
    cell = Builder().uint(0b0001_00000000, 12).end()
    for read in (
        lambda: Slice(cell).uint(13),
        lambda: Slice(cell).ref(),
        lambda: Slice(cell).end(),
        lambda: Slice(cell).address(),
        lambda: Slice(cell).coins(),  # one byte of zero: not as short as it could be
        lambda: Slice(Builder().uint(1, 1).end()).maybe_ref(),
    ):
        with pytest.raises(MalformedError):
            read()


def test_what_is_left_of_a_slice_is_a_cell() -> None:
    leaf = Builder().uint(1, 1).end()
    source = Slice(Builder().uint(5, 8).uint(9, 12).ref(leaf).ref(leaf).end())
    source.uint(8)
    source.ref()

    assert source.rest().hash == Builder().uint(9, 12).ref(leaf).end().hash
    source.end()


def test_a_list_as_deep_as_a_batch_is_written() -> None:
    cell = Builder().end()
    for number in range(400):
        cell = Builder().ref(cell).uint(number, 16).end()

    assert pytoniq_core.Cell.one_from_boc(write_boc(cell)).hash == cell.hash
    assert isinstance(cell, Cell)
