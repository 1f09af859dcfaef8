"""`GET /v1/account/balance` and `/v1/account/usage`: what the caller's own customer has and has spent."""

import datetime as dt
from typing import Annotated, Any

from litestar import Controller, get
from litestar.connection import Request
from litestar.params import Parameter

from billing.postgres.account import USAGE_DAYS_MAX
from cocoon.money import NUMERATOR_PER_NANO, Amount, decimal_units
from gateway.errors import InvalidRequestError
from gateway.http.access import customer_of
from gateway.services import Services

USAGE_DAYS_DEFAULT = 30


class AccountController(Controller):
    """The customer's view of its money."""

    path = "/v1/account"

    @get("/balance")
    async def balance(self, request: Request[Any, Any, Any], services: Services) -> dict[str, Any]:
        """Credit in nano and in whole units: `available` can be spent, `held` is reserved by running requests."""
        balance = await services.ledger.balance(customer_of(request, services).customer_id)
        return {
            "object": "balance",
            "asset": balance.available.asset.value,
            **_shown("available", balance.available),
            **_shown("held", balance.held),
            **_shown("spent", balance.spent),
        }

    @get("/usage")
    async def usage(
        self,
        request: Request[Any, Any, Any],
        services: Services,
        start: Annotated[dt.date | None, Parameter(description="First UTC day")] = None,
        end: Annotated[dt.date | None, Parameter(description="Last UTC day")] = None,
    ) -> dict[str, Any]:
        """Charged usage by UTC day, model and key, newest first; the last 30 days unless told otherwise."""
        principal = customer_of(request, services)
        last = end or services.clock.now().date()
        first = start or last - dt.timedelta(days=USAGE_DAYS_DEFAULT - 1)
        if first > last or (last - first).days >= USAGE_DAYS_MAX:
            raise InvalidRequestError(
                f"start must not lie after end, and at most {USAGE_DAYS_MAX} days apart.", param="start"
            )
        lines = await services.accounts.usage(principal.customer_id, first, last)
        return {
            "object": "list",
            "start": first.isoformat(),
            "end": last.isoformat(),
            "data": [
                {
                    "day": line.day.isoformat(),
                    "model": line.model,
                    "key_id": str(line.key_id),
                    "requests": line.requests,
                    "prompt_tokens": line.prompt_tokens,
                    "cached_tokens": line.cached_tokens,
                    "completion_tokens": line.completion_tokens,
                    "cost": decimal_units(line.numerator),
                    "charge_nano": line.charge.nano,
                }
                for line in lines
            ],
        }


def _shown(name: str, amount: Amount) -> dict[str, Any]:
    return {name: decimal_units(amount.nano * NUMERATOR_PER_NANO), f"{name}_nano": amount.nano}
