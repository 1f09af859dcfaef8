"""What an alert is and what it says. Pure: `billing.postgres.alerts` finds what was crossed, the gateway sends it."""

import datetime as dt
import enum
import uuid

import msgspec

from cocoon.money import NUMERATOR_PER_NANO, Asset, decimal_units


class AlertKind(enum.StrEnum):
    """What is watched. Days and months are UTC."""

    BALANCE_LOW = "balance_low"
    """All that is left to spend, what processes have reserved of it included, is below the threshold."""
    SPEND_DAY = "spend_day"
    """Charges of one day have reached the threshold."""
    SPEND_MONTH = "spend_month"
    """The same of one month."""


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold that was crossed. `value_nano` is the balance or what was spent, `period` the first day of it."""

    rule_id: uuid.UUID
    customer_id: uuid.UUID
    customer: str
    kind: AlertKind
    asset: Asset
    threshold_nano: int
    value_nano: int
    period: dt.date | None
    occurrence: int
    at: dt.datetime


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one message; `attempts` counts those before it."""

    alert_id: uuid.UUID
    url: str
    secret: bytes
    body: bytes
    attempts: int

    def __repr__(self) -> str:
        return f"Outgoing(alert_id={self.alert_id}, attempts={self.attempts})"


_TYPES = {
    AlertKind.BALANCE_LOW: "balance.low",
    AlertKind.SPEND_DAY: "spend.day",
    AlertKind.SPEND_MONTH: "spend.month",
}


def alert_body(crossing: Crossing, top_up: str) -> bytes:
    """The message: what was crossed, by how much, and how to top up. These bytes are signed and sent each time."""
    value = "balance" if crossing.kind is AlertKind.BALANCE_LOW else "spent"
    data: dict[str, object] = {
        "customer": crossing.customer,
        "customer_id": str(crossing.customer_id),
        "rule_id": str(crossing.rule_id),
        "asset": crossing.asset.value,
        "threshold": _units(crossing.threshold_nano),
        "threshold_nano": crossing.threshold_nano,
        value: _units(crossing.value_nano),
        f"{value}_nano": crossing.value_nano,
    }
    if crossing.period is not None:
        data["period_start"] = crossing.period.isoformat()
    data["top_up"] = top_up
    timestamp = crossing.at.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return msgspec.json.encode({"type": _TYPES[crossing.kind], "timestamp": timestamp, "data": data})


def _units(nano: int) -> str:
    return decimal_units(nano * NUMERATOR_PER_NANO)
