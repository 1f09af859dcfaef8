"""Thresholds and their alerts in Postgres.

A crossing and its message are written in one transaction, so that neither is without the other. Looking for crossings
reads accounts and daily rollups without a lock: the usage journal never waits for it. One process at a time does so.
"""

import contextlib
import datetime as dt
import uuid
from collections.abc import AsyncGenerator, Callable

import msgspec

from billing.alerts import AlertKind, Crossing, Outgoing, alert_body
from billing.ports import RecordRefusedError, UnknownCustomerError
from billing.postgres.audit import SYSTEM_ACTOR, Change, record
from billing.postgres.pool import Connection, Pool, Record, acquired, transaction, translated
from billing.postgres.statements import load_statements
from cocoon.money import Amount, Asset

CROSSINGS_MAX = 500
"""Noted in one transaction; more wait for the next look."""
RULES_MAX = 32
"""Of one customer."""
KEPT_DAYS = 90
"""How long messages are kept, whatever became of them."""
OUTCOME_CHARS_MAX = 64
PENDING, DELIVERED, GIVEN_UP = "pending", "delivered", "given_up"
_SQL = load_statements("alerts.sql")


class AlertRule(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold of a customer. `occurrences` is how often it was crossed, `url` where that is told."""

    rule_id: uuid.UUID
    customer: str
    kind: AlertKind
    threshold: Amount
    occurrences: int
    url: str | None


class SentAlert(msgspec.Struct, frozen=True, kw_only=True):
    """A message and what became of it."""

    alert_id: uuid.UUID
    state: str
    attempts: int
    last_outcome: str | None
    created_at: dt.datetime
    body: bytes


# Configuration


async def put_webhook(
    pool: Pool, customer: str, *, webhook_id: uuid.UUID, url: str, secret: bytes, actor: str = SYSTEM_ACTOR
) -> None:
    """Send the customer's alerts to `url` from now on, and nowhere else. The caller has judged the address.

    Raises:
        UnknownCustomerError: there is no such customer.
    """
    async with transaction(pool) as connection:
        customer_id = await _customer(connection, customer)
        await connection.fetchval(_SQL["drop_webhook"], customer_id)
        await connection.execute(_SQL["add_webhook"], webhook_id, customer_id, url, secret)
        await _record(connection, actor, "webhook.set", customer_id, webhook_id, {})


async def remove_webhook(pool: Pool, customer: str, *, actor: str = SYSTEM_ACTOR) -> bool:
    """Tell the customer nothing more; False when nothing was told anyway.

    Raises:
        UnknownCustomerError: there is no such customer.
    """
    async with transaction(pool) as connection:
        customer_id = await _customer(connection, customer)
        removed: uuid.UUID | None = await connection.fetchval(_SQL["drop_webhook"], customer_id)
        if removed is not None:
            await _record(connection, actor, "webhook.removed", customer_id, removed, {})
    return removed is not None


async def add_rule(
    pool: Pool, customer: str, kind: AlertKind, threshold_nano: int, *, rule_id: uuid.UUID, actor: str = SYSTEM_ACTOR
) -> uuid.UUID:
    """Watch a threshold; its id, which is the earlier one's where the same is watched already.

    Raises:
        UnknownCustomerError: there is no such customer.
        RecordRefusedError: a threshold of nothing, or more than `RULES_MAX` rules.
    """
    async with transaction(pool) as connection:
        customer_id = await _customer(connection, customer)
        found: uuid.UUID | None = await connection.fetchval(_SQL["find_rule"], customer_id, kind.value, threshold_nano)
        if found is not None:
            return found
        if await connection.fetchval(_SQL["count_rules"], customer_id) >= RULES_MAX:
            raise RecordRefusedError(f"a customer has at most {RULES_MAX} thresholds")
        await connection.execute(_SQL["add_rule"], rule_id, customer_id, kind.value, threshold_nano)
        added: uuid.UUID = await connection.fetchval(_SQL["find_rule"], customer_id, kind.value, threshold_nano)
        detail: dict[str, str | int] = {"kind": kind.value, "threshold_nano": threshold_nano}
        await _record(connection, actor, "alert.added", customer_id, added, detail)
    return added


async def remove_rule(pool: Pool, rule_id: uuid.UUID, *, actor: str = SYSTEM_ACTOR) -> bool:
    """Watch a threshold no longer; False when it was not watched."""
    async with transaction(pool) as connection:
        removed = await connection.fetchval(_SQL["drop_rule"], rule_id) is not None
        if removed:
            await _record(connection, actor, "alert.removed", None, rule_id, {})
    return removed


async def list_rules(pool: Pool, customer: str | None = None) -> list[AlertRule]:
    """Every threshold, or one customer's.

    Raises:
        UnknownCustomerError: there is no such customer.
    """
    async with acquired(pool) as connection:
        customer_id = None if customer is None else await _customer(connection, customer)
        rows = await connection.fetch(_SQL["list_rules"], customer_id)
    return [
        AlertRule(
            rule_id=row["rule_id"],
            customer=row["customer"],
            kind=AlertKind(row["kind"]),
            threshold=Amount(row["threshold_nano"]),
            occurrences=row["occurrences"],
            url=row["url"],
        )
        for row in rows
    ]


async def list_alerts(pool: Pool, customer: str, limit: int) -> list[SentAlert]:
    """The customer's last messages, newest first.

    Raises:
        UnknownCustomerError: there is no such customer.
    """
    async with acquired(pool) as connection:
        rows = await connection.fetch(_SQL["list_alerts"], await _customer(connection, customer), limit)
    return [
        SentAlert(
            alert_id=row["alert_id"],
            state=row["state"],
            attempts=row["attempts"],
            last_outcome=row["last_outcome"],
            created_at=row["created_at"],
            body=row["body"],
        )
        for row in rows
    ]


# Watching and sending


@contextlib.asynccontextmanager
async def alert_turn(pool: Pool) -> AsyncGenerator[Connection | None]:
    """The connection of the one process that watches and sends, None while that is another.

    The turn is the connection's, by an advisory lock: it ends with it, however that ends.
    """
    async with acquired(pool) as connection:
        yield connection if await connection.fetchval(_SQL["take_turn"]) else None


async def note_crossings(connection: Connection, *, top_up: str, new_id: Callable[[], uuid.UUID]) -> int:
    """Note what was crossed since the last look, each threshold once, and write the messages; returns how many.

    A balance threshold is watched again once the balance was back above it; spending, from the next day or month on.
    """
    with translated():
        async with connection.transaction():
            await connection.execute(_SQL["rearm"])
            found = [_crossing(row) for row in await connection.fetch(_SQL["find_crossings"], CROSSINGS_MAX)]
            if not found:
                return 0
            noted = await connection.fetch(
                _SQL["note_crossings"],
                [crossing.rule_id for crossing in found],
                [crossing.occurrence for crossing in found],
                [crossing.period for crossing in found],
            )
            ours = {row["rule_id"] for row in noted}
            told = [crossing for crossing in found if crossing.rule_id in ours]
            await connection.execute(
                _SQL["add_alerts"],
                [new_id() for _ in told],
                [crossing.rule_id for crossing in told],
                [crossing.occurrence for crossing in told],
                [crossing.customer_id for crossing in told],
                [alert_body(crossing, top_up) for crossing in told],
            )
    return len(told)


async def due_alerts(connection: Connection, limit: int) -> list[Outgoing]:
    """Messages whose next attempt is due, the oldest first."""
    with translated():
        rows = await connection.fetch(_SQL["due_alerts"], limit)
    return [
        Outgoing(
            alert_id=row["alert_id"], url=row["url"], secret=row["secret"], body=row["body"], attempts=row["attempts"]
        )
        for row in rows
    ]


async def note_attempt(
    connection: Connection, alert_id: uuid.UUID, *, outcome: str, state: str, retry_s: float = 0.0
) -> None:
    """Write down what became of an attempt; a pending message is due again after `retry_s`."""
    with translated():
        await connection.execute(_SQL["note_attempt"], alert_id, outcome[:OUTCOME_CHARS_MAX], state, retry_s)


async def drop_old_alerts(connection: Connection) -> None:
    """Forget messages of more than `KEPT_DAYS` days ago."""
    with translated():
        await connection.execute(_SQL["drop_old_alerts"], KEPT_DAYS)


def _crossing(row: Record) -> Crossing:
    return Crossing(
        rule_id=row["rule_id"],
        customer_id=row["customer_id"],
        customer=row["customer"],
        kind=AlertKind(row["kind"]),
        asset=Asset(row["asset"]),
        threshold_nano=row["threshold_nano"],
        value_nano=int(row["value_nano"]),
        period=row["period"],
        occurrence=row["occurrences"] + 1,
        at=row["at"],
    )


async def _customer(connection: Connection, name: str) -> uuid.UUID:
    found: uuid.UUID | None = await connection.fetchval(_SQL["find_customer"], name)
    if found is None:
        raise UnknownCustomerError(f"there is no customer {name!r}")
    return found


async def _record(
    connection: Connection, actor: str, action: str, customer_id: uuid.UUID | None, subject_id: uuid.UUID,
    detail: dict[str, str | int],
) -> None:  # fmt: skip
    await record(
        connection,
        Change(actor=actor, action=action, customer_id=customer_id, subject_id=subject_id, detail={**detail}),
    )
