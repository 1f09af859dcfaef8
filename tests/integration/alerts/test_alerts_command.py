"""`cocoon alerts` against a real database."""

import uuid

import msgspec
import pytest

from billing.postgres.account import Accounts
from billing.postgres.pool import open_pool
from tests.integration.postgres.test_commands import cocoon


@pytest.fixture
async def url(database_url: str) -> str:
    async with open_pool(database_url, application="test") as pool:
        await Accounts(pool).open_customer(uuid.uuid4(), "Ada")
    return database_url


async def test_the_secret_is_shown_once_and_alone(url: str) -> None:
    made = await cocoon(url, "alerts", "webhook", "Ada", "https://hooks.example.org/x")
    secret = made.stdout.strip()
    assert (made.returncode, secret.startswith("whsec_"), len(secret)) == (0, True, 50)
    again = await cocoon(url, "alerts", "webhook", "Ada", "https://hooks.example.org/y")
    assert again.stdout.strip() != secret
    listed = await cocoon(url, "alerts", "add", "Ada", "--balance-below", "1.5", "--spend-day", "2")
    assert len(listed.stdout.splitlines()) == 2
    shown = (await cocoon(url, "alerts", "list", "--json")).stdout
    assert secret not in shown
    rules = [msgspec.json.decode(line) for line in shown.splitlines()]
    assert [(rule["kind"], rule["threshold"]["nano"], rule["url"]) for rule in rules] == [
        ("balance_low", 1_500_000_000, "https://hooks.example.org/y"),
        ("spend_day", 2_000_000_000, "https://hooks.example.org/y"),
    ]
    assert (await cocoon(url, "alerts", "sent", "Ada")).stdout == ""


async def test_thresholds_come_once_and_go(url: str) -> None:
    first = await cocoon(url, "alerts", "add", "Ada", "--spend-month", "3")
    assert (await cocoon(url, "alerts", "add", "Ada", "--spend-month", "3")).stdout == first.stdout
    rule = first.stdout.strip()
    assert "nowhere" in (await cocoon(url, "alerts", "list", "Ada")).stdout
    assert (await cocoon(url, "alerts", "remove", rule)).stdout == f"removed {rule}\n"
    assert (await cocoon(url, "alerts", "remove", rule)).returncode == 1
    assert (await cocoon(url, "alerts", "list")).stdout == ""
    assert (await cocoon(url, "alerts", "webhook", "Ada", "--remove")).stdout == "there was none\n"


async def test_addresses_inside_and_strangers_are_refused(url: str) -> None:
    for address in (
        "https://10.0.0.1/x",
        "http://hooks.example.org/",
        "https://localhost/",
        "https://169.254.169.254/",
    ):
        refused = await cocoon(url, "alerts", "webhook", "Ada", address)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "webhook_address_refused" in refused.stderr
    for command in (("add", "Bob", "--spend-day", "1"), ("webhook", "Bob", "https://hooks.example.org/")):
        stranger = await cocoon(url, "alerts", *command)
        assert (stranger.returncode, "no customer 'Bob'" in stranger.stderr) == (1, True)
    assert (await cocoon(url, "alerts", "add", "Ada")).returncode == 2
    assert (await cocoon(url, "alerts", "add", "Ada", "--spend-day", "0")).returncode == 1
