"""The one screen of status: redrawn in place on a terminal, a line per change elsewhere."""

import datetime as dt
import shutil
from collections.abc import Sequence
from typing import TextIO

import msgspec

_COLUMNS = (10, 11, 12, 22)


class Row(msgspec.Struct, frozen=True):
    """One process as people see it; `since` is when it entered its state."""

    name: str
    state: str
    pid: int | None
    address: str
    since: dt.datetime
    note: str = ""

    def text(self) -> str:
        """One line, times in the machine's own zone."""
        pid = f"pid {self.pid}" if self.pid else ""
        cells = (self.name, self.state, pid, self.address)
        line = " ".join(cell.ljust(width) for cell, width in zip(cells, _COLUMNS, strict=True))
        return f"{line} since {self.since.astimezone():%H:%M:%S}  {self.note}".rstrip()


class Screen:
    """Draws rows and, below them, lines of explanation. A closed output is no error: nobody looks."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._terminal = output.isatty()
        self._drawn = 0
        self._shown: dict[str, tuple[str, dt.datetime]] = {}
        self._said: tuple[str, ...] = ()

    def show(self, rows: Sequence[Row], lines: Sequence[str]) -> None:
        """Show the current state."""
        if self._terminal:
            self._redraw([*(row.text() for row in rows), "", *lines])
        else:
            for row in rows:
                if self._shown.get(row.name) != (row.state, row.since):
                    self._shown[row.name] = (row.state, row.since)
                    self._write(f"{row.text()}\n")
            if tuple(lines) != self._said:
                self._said = tuple(lines)
                self._write("".join(f"{line}\n" for line in lines))

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self._write(f"{text}\n")
        self._drawn = 0

    def _redraw(self, lines: Sequence[str]) -> None:
        width = max(shutil.get_terminal_size().columns, 1)
        back = f"\x1b[{self._drawn}F" if self._drawn else ""
        self._write(back + "".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[J")
        self._drawn = sum(max(1, -(-len(line) // width)) for line in lines)

    def _write(self, text: str) -> None:
        try:
            self._output.write(text)
            self._output.flush()
        except (OSError, ValueError):
            return
