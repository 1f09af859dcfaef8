"""Thresholds that real requests cross, heard of by a real receiver: once each, authentic, whatever fails meanwhile."""

import asyncio
import signal
import time
import uuid
from typing import Any

import msgspec
import pytest

from billing.alerts import AlertKind
from billing.postgres.alerts import add_rule, put_webhook
from billing.postgres.pool import open_pool
from cocoon.webhooks import secret_text, verify
from tests.fixtures_gateway import CREDIT_NANO, Stack, chat
from tests.integration.alerts.receiver import Receiver
from tests.scripted_engine import until

PATH = "/v1/chat/completions"
SECRET = bytes(range(32))
COST_NANO = 18
SETTINGS: dict[str, Any] = {
    "COCOON_ALLOW_PRIVATE_WEBHOOKS": "1",
    "COCOON_ALERTS_S": "0.1",
    "COCOON_ALERTS_RETRY_S": "0.05",
}


async def watch(stack: Stack, url: str, **thresholds: int) -> None:
    """Thresholds by kind, and the webhook that hears of them."""
    async with open_pool(stack.database_url, application="test") as pool:
        await put_webhook(pool, "customer", webhook_id=uuid.uuid4(), url=url, secret=SECRET)
        for kind, nano in thresholds.items():
            await add_rule(pool, "customer", AlertKind(kind), nano, rule_id=uuid.uuid4())


async def spend(stack: Stack, times: int = 1) -> None:
    before = len(await stack.rows("SELECT 1 FROM usage"))
    async with stack.client() as client:
        for _ in range(times):
            assert (await client.post(PATH, json=chat(max_tokens=5))).status_code == 200
    await stack.usage(before + times)


async def looked_again(stack: Stack) -> None:
    """Wait until thresholds have been looked at twice more: what was not told by then is not going to be."""
    marker = uuid.uuid4()
    await stack.rows(
        "INSERT INTO alert_rules (rule_id, customer_id, kind, threshold_nano, armed)"
        " VALUES ($1, $2, 'balance_low', 1, FALSE)", marker, stack.customer_id,
    )  # fmt: skip
    for _ in range(2):
        # Every look arms what is above its threshold.
        await stack.until_true(
            lambda: stack.rows("SELECT armed FROM alert_rules WHERE rule_id = $1", marker),
            lambda rows: rows[0]["armed"],
        )
        await stack.rows("UPDATE alert_rules SET armed = FALSE WHERE rule_id = $1", marker)
    await stack.rows("DELETE FROM alert_rules WHERE rule_id = $1", marker)


async def states(stack: Stack) -> list[tuple[str, int]]:
    rows = await stack.rows("SELECT state, attempts FROM alert_outbox ORDER BY created_at")
    return [(row["state"], row["attempts"]) for row in rows]


def judged(receiver: Receiver) -> list[dict[str, Any]]:
    """Every message, its signature verified."""
    for message in receiver.received:
        assert verify(secret_text(SECRET), message.headers, message.body, time.time()) == message.id
    return [msgspec.json.decode(message.body) for message in receiver.received]


async def test_a_low_balance_is_told_of_once_and_again_after_it_was_topped_up(stack: Stack) -> None:
    await stack.start_gateway(processes=2, **SETTINGS, COCOON_ALERTS_TOP_UP="https://example.org/top-up")
    async with Receiver() as receiver:
        await watch(stack, receiver.url, balance_low=CREDIT_NANO - COST_NANO)
        await looked_again(stack)
        await spend(stack)
        # Exactly at the threshold is not below it.
        await looked_again(stack)
        assert receiver.received == []
        await spend(stack, 3)
        await until(lambda: receiver.received)
        await spend(stack, 3)
        await looked_again(stack)
        [message] = judged(receiver)
        assert message["type"] == "balance.low"
        data = message["data"]
        assert (data["customer"], data["threshold_nano"]) == ("customer", CREDIT_NANO - COST_NANO)
        assert CREDIT_NANO - 4 * COST_NANO <= data["balance_nano"] < CREDIT_NANO - COST_NANO
        assert data["top_up"] == "https://example.org/top-up"
        assert receiver.received[0].target == "/hooks/cocoon"

        await stack.deposit(10 * COST_NANO)
        await looked_again(stack)
        await spend(stack, 10)
        await until(lambda: len(receiver.received) == 2)
        await looked_again(stack)
        judged(receiver)
        assert len({message.id for message in receiver.received}) == 2
    assert await states(stack) == [("delivered", 1)] * 2
    await stack.check_books()


async def test_spending_is_told_of_once_per_threshold_and_period(stack: Stack) -> None:
    await stack.start_gateway(**SETTINGS)
    async with Receiver() as receiver:
        await watch(stack, receiver.url, spend_day=COST_NANO + 1, spend_month=3 * COST_NANO)
        await spend(stack)
        await looked_again(stack)
        assert receiver.received == []
        await spend(stack)
        await until(lambda: receiver.received)
        await spend(stack)
        await until(lambda: len(receiver.received) == 2)
        await spend(stack)
        await looked_again(stack)
        first, second = judged(receiver)
        assert [(m["type"], m["data"]["spent_nano"]) for m in (first, second)] == [
            ("spend.day", 2 * COST_NANO), ("spend.month", 3 * COST_NANO),
        ]  # fmt: skip
        assert second["data"]["period_start"].endswith("-01")
        # As if it had been told of yesterday.
        await stack.rows("UPDATE alert_rules SET fired_for = fired_for - 1 WHERE kind = 'spend_day'")
        await until(lambda: len(receiver.received) == 3)
        assert judged(receiver)[2]["type"] == "spend.day"


async def test_a_receiver_that_fails_is_asked_again_with_the_same_message(stack: Stack) -> None:
    await stack.start_gateway(**SETTINGS)
    async with Receiver(500, 302, 404) as receiver:
        await watch(stack, receiver.url, spend_day=1)
        await spend(stack)
        await stack.until_true(lambda: states(stack), lambda found: found == [("delivered", 4)])
        judged(receiver)
        assert len(receiver.received) == 4
        assert len({(message.id, message.body) for message in receiver.received}) == 1
        # The redirect was not followed.
        assert {message.target for message in receiver.received} == {"/hooks/cocoon"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_message_outlives_the_gateway_that_noted_it(stack: Stack, how: signal.Signals) -> None:
    await stack.start_gateway(**SETTINGS)
    receiver = Receiver()
    async with receiver:
        await watch(stack, receiver.url, spend_day=1)
    # Nobody listens any more.
    await spend(stack)
    await stack.until_true(lambda: states(stack), lambda found: found and found[0][1] >= 1)
    assert stack.gateway is not None
    stack.gateway.send_signal(how)
    await asyncio.to_thread(stack.gateway.wait, 20)
    async with receiver:
        await stack.start_gateway(processes=2, **SETTINGS)
        await until(lambda: receiver.received)
        await looked_again(stack)
        judged(receiver)
        assert len(receiver.received) == 1
    [(state, attempts)] = await states(stack)
    assert (state, attempts >= 2) == ("delivered", True)


async def test_a_private_address_is_never_connected_to(stack: Stack) -> None:
    strict: dict[str, Any] = {**SETTINGS, "COCOON_ALLOW_PRIVATE_WEBHOOKS": "0"}
    await stack.start_gateway(**strict)
    async with Receiver() as receiver:
        # In the table all the same, as if the rules had been laxer once.
        await watch(stack, receiver.url, spend_day=1)
        await spend(stack)
        await stack.until_true(lambda: states(stack), lambda found: found and found[0][1] >= 2)
        assert receiver.received == []
    [row] = await stack.rows("SELECT state, last_outcome FROM alert_outbox")
    assert (row["state"], row["last_outcome"]) == ("pending", "the address is not public")


async def test_who_has_no_webhook_stays_armed(stack: Stack) -> None:
    await stack.start_gateway(**SETTINGS)
    async with open_pool(stack.database_url, application="test") as pool:
        await add_rule(pool, "customer", AlertKind.SPEND_DAY, 1, rule_id=uuid.uuid4())
    await spend(stack)
    await looked_again(stack)
    assert await states(stack) == []
    async with Receiver() as receiver:
        await watch(stack, receiver.url)
        await until(lambda: receiver.received)
        assert [message["type"] for message in judged(receiver)] == ["spend.day"]
