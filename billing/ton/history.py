"""An account's past: transactions as a liteserver lists them, each proven by the hash that the next one names."""

from typing import Any

from pytoniq_core import Cell as TheirCell
from pytoniq_core import Transaction

from billing.ton.chain import ChainMessage, ChainProofError, ChainTransaction, ChainUnavailableError
from billing.ton.proofs import BROKEN_CELLS, hash_of, our_cell
from cocoon.addresses import Address
from cocoon.cells import Builder, Cell
from cocoon.errors import MalformedError

_Transaction: Any = Transaction
"""Untyped on purpose: pytoniq-core's annotations are partial."""


def read_page(boc: bytes, newest: bytes) -> list[tuple[ChainTransaction, int, bytes]]:
    """Transactions newest first, each with the logical time and hash of the one before it.

    `newest` is the hash that the first must have.

    Raises:
        ChainProofError: one is not the one that the next one names, or cannot be read.
        ChainUnavailableError: the liteserver has none of them.
    """
    if not boc:
        raise ChainUnavailableError("the liteserver does not keep transactions of that time")
    page: list[tuple[ChainTransaction, int, bytes]] = []
    try:
        for cell in TheirCell.from_boc(boc):
            if hash_of(cell) != newest:
                raise ChainProofError("a transaction is not the one that the next one names")
            read = _Transaction.deserialize(cell.begin_parse())
            page.append((_transaction(read, newest), int(read.prev_trans_lt), bytes(read.prev_trans_hash)))
            newest = bytes(read.prev_trans_hash)
    except BROKEN_CELLS as error:
        raise ChainProofError(f"a transaction cannot be read: {error}") from error
    return page


def _transaction(read: Any, hash_: bytes) -> ChainTransaction:
    description = read.description
    exit_code = getattr(getattr(description, "compute_ph", None), "exit_code", None)
    return ChainTransaction(
        lt=int(read.lt), hash=hash_, now=int(read.now), succeeded=not getattr(description, "aborted", False),
        exit_code=None if exit_code is None else int(exit_code),
        incoming=None if read.in_msg is None else _message(read.in_msg),
        outgoing=tuple(_message(one) for one in read.out_msgs),
    )  # fmt: skip


def _message(read: Any) -> ChainMessage:
    info = read.info
    value = getattr(info, "value", None)
    return ChainMessage(
        source=_address(info.src), destination=_address(info.dest),
        value_nano=0 if value is None else int(value.grams), body=_body(read.body),
        bounced=bool(getattr(info, "bounced", False)),
    )  # fmt: skip


def _address(read: Any) -> Address | None:
    """A standard address; None for none, and for external ones, which nobody of ours has."""
    account = getattr(read, "hash_part", None)
    return None if account is None else Address(int(read.wc), bytes(account))


def _body(read: Any) -> Cell:
    try:
        return our_cell(read)
    except MalformedError:
        # A stranger's message with exotic cells says nothing to us; an empty body is no operation.
        return Builder().end()
