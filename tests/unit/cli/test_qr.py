"""QR codes in a terminal are read back as a camera's decoder would, by code of our own (ISO/IEC 18004)."""

import io
import itertools
import re
import sys

import click
import pytest

from cli.qr import QUIET_MODULES, QRTooLargeError, qr_lines
from cli.wallet import no_qr_option, show_link
from cocoon.addresses import Address
from cocoon.contracts.escrow import TopUp
from cocoon.contracts.links import MAINNET, transfer_link

LINK = transfer_link(
    Address(0, b"\x81" * 32), 5_100_000_000, TopUp(2**62 + 12_345, 5_000_000_000).encode(), global_id=MAINNET
)
BLOCKS = {1: (1, 19), 2: (1, 34), 3: (1, 55), 4: (1, 80), 5: (1, 108), 6: (2, 68)}
"""Of each version at the lowest correction: blocks, and data codewords in each (table 9)."""
MASKS = (
    lambda row, column: (row + column) % 2,
    lambda row, column: row % 2,
    lambda row, column: column % 3,
    lambda row, column: (row + column) % 3,
    lambda row, column: (row // 2 + column // 3) % 2,
    lambda row, column: row * column % 2 + row * column % 3,
    lambda row, column: (row * column % 2 + row * column % 3) % 2,
    lambda row, column: ((row + column) % 2 + row * column % 3) % 2,
)


def modules(lines: list[str]) -> list[list[bool]]:
    """What the lines show, two rows in each, without the margin, which has to be light."""
    shown = [re.fullmatch(r"\x1b\[30;107m([█▀▄ ]+)\x1b\[0m", line) for line in lines]
    text = [match[1] for match in shown if match]
    assert len(text) == len(lines)
    rows = [[glyph in half for glyph in line] for line in text for half in ("█▀", "█▄")]
    size = len(rows[0]) - 2 * QUIET_MODULES
    inner = [row[QUIET_MODULES : QUIET_MODULES + size] for row in rows[QUIET_MODULES : QUIET_MODULES + size]]
    assert sum(map(sum, rows)) == sum(map(sum, inner))
    assert len(rows) >= size + 2 * QUIET_MODULES
    return inner


def decoded(code: list[list[bool]]) -> str:
    """The bytes of a code of version 1 to 6 without errors."""
    size = len(code)
    version = (size - 17) // 4
    bits = [code[8][column] for column in (0, 1, 2, 3, 4, 5, 7, 8)] + [code[row][8] for row in (7, 5, 4, 3, 2, 1, 0)]
    level_and_mask = (int("".join(map(str, map(int, bits))), 2) ^ 0x5412) >> 10
    assert level_and_mask >> 3 == 0b01  # the lowest correction
    mask = MASKS[level_and_mask & 7]

    def is_data(row: int, column: int) -> bool:
        finders = (row < 9 and column < 9) or (row < 9 and column >= size - 8) or (row >= size - 8 and column < 9)
        alignment = version > 1 and max(abs(row - size + 7), abs(column - size + 7)) < 3
        return not (finders or alignment or 6 in {row, column})

    right_edges = [column for column in range(size - 1, 0, -2) if column > 6] + [5, 3, 1]
    stream: list[bool] = []
    for edge, upwards in zip(right_edges, itertools.cycle((True, False)), strict=False):
        for row in reversed(range(size)) if upwards else range(size):
            stream += [
                code[row][column] ^ (not mask(row, column)) for column in (edge, edge - 1) if is_data(row, column)
            ]
    words = [int("".join(map(str, map(int, stream[at : at + 8]))), 2) for at in range(0, len(stream) - 7, 8)]
    blocks, length = BLOCKS[version]
    data = [words[block + blocks * at] for block in range(blocks) for at in range(length)]
    number = int.from_bytes(bytes(data))
    total = 8 * len(data)
    mode, count = number >> total - 4, number >> total - 12 & 0xFF
    assert mode == 0b0100  # bytes
    return (number >> total - 12 - 8 * count & (1 << 8 * count) - 1).to_bytes(count).decode()


@pytest.mark.parametrize("text", ["ton", "x" * 32, "y" * 100, LINK])
def test_a_decoder_reads_what_the_terminal_shows(text: str) -> None:
    assert decoded(modules(qr_lines(text, 80))) == text


def test_a_link_to_a_contract_that_is_there_fits_a_common_terminal() -> None:
    lines = qr_lines(LINK, 80)
    assert (len(lines), len(modules(lines))) == (25, 41)


@pytest.mark.parametrize(("text", "why"), [(LINK, "49 columns"), ("x" * 2_954, "more than a QR code holds")])
def test_what_does_not_fit_is_said(text: str, why: str) -> None:
    with pytest.raises(QRTooLargeError, match=why):
        qr_lines(text, 48)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, terminal: io.StringIO, link: str, *options: str) -> str:
    """What a command that shows a link writes."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    command = no_qr_option(click.command("show")(lambda: show_link("pay", link)))
    command.main(list(options), standalone_mode=False)
    return terminal.getvalue()


def test_the_code_is_shown_on_terminals_where_it_is_wanted_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = f"Open this in a wallet to pay:\n{LINK}\n"

    assert shown(monkeypatch, Terminal(), LINK) == plain + "\n".join(qr_lines(LINK, 80)) + "\n"
    assert shown(monkeypatch, Terminal(), LINK, "--no-qr") == plain
    assert shown(monkeypatch, io.StringIO(), LINK) == plain
    assert "(No QR code: 3000 characters" in shown(monkeypatch, Terminal(), "x" * 3_000)
