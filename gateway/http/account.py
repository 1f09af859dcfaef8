"""`/v1/account`, the reading part: what the caller's own organisation has, has used, and how its months ended."""

import datetime as dt
import re
import uuid
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Response, get
from litestar.connection import Request
from litestar.params import Parameter, QueryParameter

from billing.postgres.account import USAGE_DAYS_MAX, USAGE_LINES_MAX, UsageLine
from billing.postgres.ceilings import read_credits
from billing.postgres.monthly import Statement, month_after
from cocoon.money import NUMERATOR_PER_NANO, decimal_units
from gateway.auth import Principal
from gateway.errors import InvalidRequestError
from gateway.http.access import require_member
from gateway.http.records import decimal
from gateway.http.tables import Exact, csv_answer, wants_csv
from gateway.services import Services

USAGE_DAYS_DEFAULT = 30
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_YEAR_MIN, _YEAR_MAX = 2020, 2999
_Shape = Annotated[str | None, QueryParameter(name="format", description="json or csv")]
_Day = Annotated[dt.date | None, Parameter(description="A UTC day, YYYY-MM-DD")]


class BalanceView(msgspec.Struct, frozen=True, kw_only=True):
    """Credit in whole units (exact decimals) and in nano.

    `available` can be spent. `held` is reserved by running requests and by leases of gateways; `leased`, a part of it
    and of what is available, is what gateways have leased, in use or idle. `spent` is all that was ever charged.
    """

    object: Literal["balance"] = "balance"
    asset: str
    available: str
    available_nano: int
    held: str
    held_nano: int
    leased: str
    leased_nano: int
    spent: str
    spent_nano: int
    escrow: "EscrowSums | None" = None


class EscrowSums(msgspec.Struct, frozen=True, kw_only=True):
    """The organisation's open and closing escrows together, in nano; null where it has none."""

    deposited_nano: int
    settled_nano: int
    signed_nano: int
    charged_nano: int


class UsageItem(msgspec.Struct, frozen=True, kw_only=True):
    """Charged usage of one key with one model on one UTC day.

    `cost` is exact and unrounded; `charge_nano` is what moved, which rounds cumulatively.
    """

    day: dt.date
    model: str
    key_id: uuid.UUID
    key: str | None
    project_id: uuid.UUID | None
    project: str | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: str
    charge_nano: int


class UsageView(msgspec.Struct, frozen=True, kw_only=True):
    """Usage from `start` to `end`, both included, newest day first; `has_more` says that lines were left out."""

    object: Literal["list"] = "list"
    start: dt.date
    end: dt.date
    data: list[UsageItem]
    has_more: bool


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """One model's part of a month."""

    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charge: str
    charge_nano: int


class StatementView(msgspec.Struct, frozen=True, kw_only=True):
    """A month of UTC days: opening + deposits - reversals + credits + borne - charged = closing, to the nano.

    `borne` is what the network paid of charges that were recovered when the credit was gone. `complete` is false while
    the month lasts; what is recovered later still counts for the month of its request.
    """

    object: Literal["statement"] = "statement"
    month: str
    asset: str
    complete: bool
    opening: str
    opening_nano: int
    deposits: str
    deposits_nano: int
    reversals: str
    reversals_nano: int
    credits: str
    credits_nano: int
    borne: str
    borne_nano: int
    charged: str
    charged_nano: int
    charges: list[StatementLine]
    closing: str
    closing_nano: int


class AccountView:
    """One organisation's money, for itself or for an admin."""

    def __init__(self, services: Services, customer_id: uuid.UUID) -> None:
        self._services = services
        self._customer_id = customer_id

    async def balance(self) -> BalanceView:
        """What there is now."""
        balance = await self._services.ledger.balance(self._customer_id)
        leased = await self._services.accounts.leased(self._customer_id)
        found = (await read_credits(self._services.pool, self._customer_id)).escrows
        sums = EscrowSums(
            deposited_nano=sum(one.deposited_nano for one in found),
            settled_nano=sum(one.settled_nano for one in found),
            signed_nano=sum(one.signed_nano or 0 for one in found),
            charged_nano=sum(one.charged_nano for one in found),
        )
        return BalanceView(
            asset=balance.available.asset.value,
            available=decimal(balance.available), available_nano=balance.available.nano,
            held=decimal(balance.held), held_nano=balance.held.nano,
            leased=decimal(leased), leased_nano=leased.nano,
            spent=decimal(balance.spent), spent_nano=balance.spent.nano,
            escrow=sums if found else None,
        )  # fmt: skip

    async def usage(
        self, request: Request[Any, Any, Any], start: dt.date | None, end: dt.date | None, shape: str | None
    ) -> Response[UsageView] | Response[bytes]:
        """Usage by day, model, key and project.

        Raises:
            InvalidRequestError: not a span of days, or more lines than one CSV file holds.
        """
        as_csv = wants_csv(request, shape)
        last = end or self._services.clock.now().date()
        if last.year < _YEAR_MIN:
            raise InvalidRequestError("Nothing was used that long ago.", param="end")
        first = start or last - dt.timedelta(days=USAGE_DAYS_DEFAULT - 1)
        if first > last or (last - first).days >= USAGE_DAYS_MAX:
            raise InvalidRequestError(
                f"start must not lie after end, and at most {USAGE_DAYS_MAX} days apart.", param="start"
            )
        lines = await self._services.accounts.usage(self._customer_id, first, last)
        more, items = len(lines) > USAGE_LINES_MAX, [_item(line) for line in lines[:USAGE_LINES_MAX]]
        if not as_csv:
            return Response(UsageView(start=first, end=last, data=items, has_more=more))
        if more:
            # A file that silently lacks its end would be added up by somebody.
            raise InvalidRequestError(f"More than {USAGE_LINES_MAX} lines: ask for fewer days.", param="start")
        columns = [*UsageItem.__struct_fields__[:-2], "cost_ton", "charge_nano"]
        rows = [[_cell(getattr(item, name)) for name in UsageItem.__struct_fields__] for item in items]
        return csv_answer(f"usage-{first}-{last}", columns, rows)

    async def statement(
        self, request: Request[Any, Any, Any], month: str, shape: str | None
    ) -> Response[StatementView] | Response[bytes]:
        """One month.

        Raises:
            InvalidRequestError: not a month, or one that has not begun.
        """
        as_csv = wants_csv(request, shape)
        form = _MONTH.fullmatch(month)
        today = self._services.clock.now().date()
        if form is None or not _YEAR_MIN <= int(form[1]) <= _YEAR_MAX:
            raise InvalidRequestError("A month is YYYY-MM.", param="month")
        first = dt.date(int(form[1]), int(form[2]), 1)
        if first > today:
            raise InvalidRequestError("The month has not begun.", param="month")
        statement = await self._services.accounts.statement(self._customer_id, first)
        if as_csv:
            return csv_answer(f"statement-{month}", ["line", "model", "amount_ton", "amount_nano"], _lines(statement))
        return Response(_statement_view(statement, month, complete=month_after(first) <= today))


class AccountController(Controller):
    """The organisation's own view of its money; any of its keys may look, workers' keys may not."""

    path = "/v1/account"
    guards = (require_member,)
    tags = ("account",)

    @get("/balance")
    async def balance(self, request: Request[Any, Principal, Any], services: Services) -> BalanceView:
        """Credit in nano and in whole units."""
        return await AccountView(services, request.auth.customer_id).balance()

    @get("/usage")
    async def usage(
        self, request: Request[Any, Principal, Any], services: Services, start: _Day = None, end: _Day = None,
        shape: _Shape = None,
    ) -> Response[UsageView] | Response[bytes]:  # fmt: skip
        """Charged usage by UTC day, model, key and project, newest first; the last 30 days unless told otherwise."""
        return await AccountView(services, request.auth.customer_id).usage(request, start, end, shape)

    @get("/statements/{month:str}")
    async def statement(
        self, request: Request[Any, Principal, Any], services: Services, month: str, shape: _Shape = None
    ) -> Response[StatementView] | Response[bytes]:
        """A month (YYYY-MM): opening balance, what came, charges by model, closing balance."""
        return await AccountView(services, request.auth.customer_id).statement(request, month, shape)


def _item(line: UsageLine) -> UsageItem:
    return UsageItem(
        day=line.day, model=line.model, key_id=line.key_id, key=line.key_name, project_id=line.project_id,
        project=line.project, requests=line.requests, prompt_tokens=line.prompt_tokens,
        cached_tokens=line.cached_tokens, completion_tokens=line.completion_tokens,
        cost=decimal_units(line.numerator), charge_nano=line.charge.nano,
    )  # fmt: skip


def _cell(value: object) -> str | int | None:
    return value if value is None or isinstance(value, int) else str(value)


def _statement_view(statement: Statement, month: str, *, complete: bool) -> StatementView:
    charged = sum(line.charge.nano for line in statement.charges)
    return StatementView(
        month=month, asset=statement.opening.asset.value, complete=complete,
        opening=decimal(statement.opening), opening_nano=statement.opening.nano,
        deposits=decimal(statement.deposits), deposits_nano=statement.deposits.nano,
        reversals=decimal(statement.reversals), reversals_nano=statement.reversals.nano,
        credits=decimal(statement.credits), credits_nano=statement.credits.nano,
        borne=decimal(statement.borne), borne_nano=statement.borne.nano,
        charged=decimal_units(charged * NUMERATOR_PER_NANO), charged_nano=charged,
        charges=[
            StatementLine(
                model=line.model, requests=line.requests, prompt_tokens=line.prompt_tokens,
                cached_tokens=line.cached_tokens, completion_tokens=line.completion_tokens,
                charge=decimal(line.charge), charge_nano=line.charge.nano,
            )
            for line in statement.charges
        ],
        closing=decimal(statement.closing), closing_nano=statement.closing.nano,
    )  # fmt: skip


def _lines(statement: Statement) -> list[list[str | int | None]]:
    """The statement from top to bottom, with signs: what lies between opening and closing adds up."""
    signed = [
        ("opening", None, statement.opening.nano),
        ("deposits", None, statement.deposits.nano),
        ("reversals", None, -statement.reversals.nano),
        ("credits", None, statement.credits.nano),
        ("borne", None, statement.borne.nano),
        *(("charge", line.model, -line.charge.nano) for line in statement.charges),
        ("closing", None, statement.closing.nano),
    ]
    return [[name, model, Exact(decimal_units(nano * NUMERATOR_PER_NANO)), nano] for name, model, nano in signed]
