"""Monthly statements: opening balance, what came, charges by model, closing balance.

A transfer belongs to the UTC day inside its id, as in the books, so an answer begun before midnight at the end of a
month is in that month. What is recovered later from a worker's receipt is added to the month of its request.
"""

import datetime as dt
import uuid

import msgspec

from billing.ledger import Code
from billing.postgres.pool import Pool, acquired
from billing.postgres.statements import load_statements
from cocoon.money import Amount, Asset

_SQL = load_statements("monthly.sql")
_MONTHS = 12
_TAKEN_BACK = frozenset({Code.REVERSAL, Code.REFUND})


class ModelCharge(msgspec.Struct, frozen=True, kw_only=True):
    """What one model's answers cost in the month."""

    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charge: Amount


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """One customer's month; `first_day` is its first UTC day.

    `reversals` are deposits that were taken back, refunds of closed escrows included.

    `closing` is `opening` + `deposits` - `reversals` + `credits` + `borne` - the charges, to the nano. `borne` is what
    the network paid of recovered charges that the customer could no longer cover.
    """

    first_day: dt.date
    opening: Amount
    deposits: Amount
    reversals: Amount
    credits: Amount
    borne: Amount
    charges: tuple[ModelCharge, ...]
    closing: Amount


def month_after(first_day: dt.date) -> dt.date:
    """The first day of the next month."""
    assert first_day.day == 1, "a month begins with its first day"
    year, month = divmod(first_day.year * _MONTHS + first_day.month, _MONTHS)
    return dt.date(year, month + 1, 1)


async def read_statement(pool: Pool, customer_id: uuid.UUID, first_day: dt.date, asset: Asset = Asset.TON) -> Statement:
    """The statement of the month that begins with `first_day`; all zeros for a customer without accounts.

    Raises:
        LedgerUnavailableError: the database is away.
    """
    end = month_after(first_day)
    async with acquired(pool) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        crossed = await connection.fetch(_SQL["border_movements"], customer_id, asset.value, first_day, end)
        charged_before = await connection.fetchval(_SQL["charged_before"], customer_id, asset.value, first_day)
        rows = await connection.fetch(_SQL["charges_by_model"], customer_id, asset.value, first_day, end)
    before = {Code(row["code"]): int(row["before"]) for row in crossed}
    within = {Code(row["code"]): int(row["within"]) for row in crossed}
    charges = tuple(
        ModelCharge(
            model=row["model"],
            requests=int(row["requests"]),
            prompt_tokens=int(row["prompt_tokens"]),
            cached_tokens=int(row["cached_tokens"]),
            completion_tokens=int(row["completion_tokens"]),
            charge=Amount(int(row["charge_nano"]), asset),
        )
        for row in rows
    )
    opening = _net(before) - int(charged_before)
    return Statement(
        first_day=first_day,
        opening=Amount(opening, asset),
        deposits=Amount(within.get(Code.DEPOSIT, 0), asset),
        reversals=Amount(sum(within.get(code, 0) for code in _TAKEN_BACK), asset),
        credits=Amount(within.get(Code.CREDIT, 0), asset),
        borne=Amount(within.get(Code.LOSS, 0), asset),
        charges=charges,
        closing=Amount(opening + _net(within) - sum(line.charge.nano for line in charges), asset),
    )


def _net(sums: dict[Code, int]) -> int:
    return sum(-nano if code in _TAKEN_BACK else nano for code, nano in sums.items())
