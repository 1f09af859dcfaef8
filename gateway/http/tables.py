"""Tables as CSV (RFC 4180) for people's spreadsheets, which run what looks like a formula."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from litestar import Response
from litestar.connection import Request

from gateway.errors import InvalidRequestError

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
"""What a spreadsheet may take for the beginning of a formula, or of another cell (OWASP, CSV injection)."""


class Exact(str):
    """A decimal number that we wrote: it may begin with a minus."""

    __slots__ = ()


Cell = str | int | None


def wants_csv(request: Request[Any, Any, Any], wanted: str | None) -> bool:
    """Whether the caller asked for CSV: by `?format=csv`, else by an Accept header that names it and not JSON.

    Raises:
        InvalidRequestError: an unknown format.
    """
    if wanted is not None:
        if wanted not in ("csv", "json"):
            raise InvalidRequestError("format is json or csv.", param="format")
        return wanted == "csv"
    types = {part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")}
    return "text/csv" in types and "application/json" not in types


def csv_answer(name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Response[bytes]:
    """A file `name`.csv. Texts are made harmless; numbers are ours and stay numbers."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return Response(
        text.getvalue().encode(),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}.csv"', "x-content-type-options": "nosniff"},
    )


def _harmless(cell: Cell) -> Cell:
    if isinstance(cell, str) and not isinstance(cell, Exact) and cell.startswith(_FORMULA):
        return "'" + cell
    return cell
