"""Rows for people: columns as wide as they need to be."""

import datetime as dt
from collections.abc import Sequence

import click


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a heading and rows of as many cells."""
    cells = [columns, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def moment(unix_s: int) -> str:
    """A time in UTC, to the second."""
    return f"{dt.datetime.fromtimestamp(unix_s, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def shown(value: object) -> str:
    """A limit or a name; a dash for what is not there."""
    return "-" if value is None else str(value)
