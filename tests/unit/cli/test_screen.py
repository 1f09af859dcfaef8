"""The screen of status, on a terminal and elsewhere."""

import datetime as dt
import io
import re

from cli.dev.screen import Row, Screen

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def visible(text: str) -> list[str]:
    """Lines that a terminal shows after these bytes: only the sequences that the screen uses."""
    lines: list[str] = []
    row = 0
    for part in re.split(r"(\x1b\[\d*[FKJ]|\n)", text):
        if match := re.fullmatch(r"\x1b\[(\d*)F", part):
            row -= int(match[1])
        elif part == "\x1b[2K":
            lines[row:] = [*([""] if row < len(lines) else []), *lines[row + 1 :]]
        elif part == "\x1b[J":
            del lines[row:]
        elif part == "\n":
            row += 1
        elif part:
            lines[row : row + 1] = [part]
    return lines


def test_without_a_terminal_each_change_is_one_line() -> None:
    output = io.StringIO()
    screen = Screen(output)
    row = Row("postgres", "starting", None, "127.0.0.1:5", NOON)
    other = Row("redis", "starting", None, "127.0.0.1:6", NOON)
    screen.show([row, other], ["Starting"])
    screen.show([row, other], ["Starting"])
    screen.show([Row("postgres", "ready", 7, "127.0.0.1:5", NOON), other], ["Starting"])
    lines = output.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["postgres", "starting"],
        ["redis", "starting"],
        ["Starting"],
        ["postgres", "ready"],
    ]
    assert "pid 7" in lines[-1]
    assert "\x1b" not in output.getvalue()


def test_a_terminal_is_redrawn_in_place() -> None:
    output = Terminal()
    screen = Screen(output)
    screen.show([Row("postgres", "starting", None, "", NOON)], ["Starting", "more"])
    screen.show([Row("postgres", "ready", 7, "", NOON), Row("redis", "ready", 8, "", NOON)], ["Ready"])
    shown = visible(output.getvalue())
    assert [line.split()[:2] for line in shown if line] == [["postgres", "ready"], ["redis", "ready"], ["Ready"]]


def test_a_closed_output_is_no_error() -> None:
    output = io.StringIO()
    screen = Screen(output)
    output.close()
    screen.show([Row("postgres", "ready", 1, "", NOON)], ["Ready"])
