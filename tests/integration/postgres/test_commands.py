"""`cocoon migrate`, `cocoon keys` and `cocoon prices` against a real database, as processes."""

import asyncio
import os
import subprocess
import sys
import uuid

import msgspec
import pytest

from billing.ports import LedgerUnavailableError
from billing.postgres.account import Accounts
from billing.postgres.covers import Covers
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from billing.postgres.prices import load_price_book
from billing.stakes import CoverRequest, CoverTerms
from cocoon.ids import is_secret_key
from cocoon.money import Amount, Price
from tests.cover_values import ADDRESS, bond, earn
from tests.ledger_values import job_id


async def cocoon(url: str | None, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "COCOON_DATABASE_URL"}
    if url is not None:
        environment["COCOON_DATABASE_URL"] = url
    command = [sys.executable, "-m", "cli.main", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


async def test_migrate_applies_everything_then_nothing(empty_database_url: str) -> None:
    first = await cocoon(empty_database_url, "migrate")
    assert first.returncode == 0
    assert first.stdout.splitlines()[0] == "applied 0001_accounts"
    assert (await cocoon(empty_database_url, "migrate")).stdout == "up to date\n"


async def test_a_missing_url_is_named(database_url: str) -> None:
    failed = await cocoon(None, "keys", "list")
    assert failed.returncode == 1
    assert "COCOON_DATABASE_URL" in failed.stderr
    assert "Traceback" not in failed.stderr


async def test_an_unreachable_database_is_one_line_without_the_password() -> None:
    failed = await cocoon("postgresql://cocoon:hunter2@127.0.0.1:1/x", "migrate")
    assert failed.returncode == 1
    assert LedgerUnavailableError.code in failed.stderr
    assert "hunter2" not in failed.stderr
    assert "Traceback" not in failed.stderr


async def test_a_key_is_printed_alone_and_its_customer_credited(database_url: str, pool: Pool) -> None:
    created = await cocoon(
        database_url, "keys", "create", "--customer", "Ada", "--name", "app", "--rpm", "60", "--credit", "1.5"
    )
    assert created.returncode == 0, created.stderr
    secret = created.stdout.strip()
    assert is_secret_key(secret)
    customer = await Accounts(pool).find_customer("Ada")
    assert isinstance(customer, uuid.UUID)
    assert (await PostgresLedger(pool).balance(customer)).available == Amount(1_500_000_000)

    listed = await cocoon(database_url, "keys", "list", "--json")
    (key,) = (msgspec.json.decode(line) for line in listed.stdout.splitlines())
    assert (key["prefix"], key["customer"], key["requests_per_min"]) == (secret[:16], "Ada", 60)

    again = await cocoon(database_url, "keys", "create", "--customer", "Ada", "--name", "app")
    assert again.returncode == 1
    assert "live key named 'app'" in again.stderr

    assert (await cocoon(database_url, "keys", "revoke", secret[:16])).stdout == f"revoked {key['key_id']}\n"
    assert (await cocoon(database_url, "keys", "revoke", secret[:16])).returncode == 1
    table = (await cocoon(database_url, "keys", "list", "--revoked")).stdout
    assert table.splitlines()[1].endswith("revoked")
    assert secret not in table


@pytest.mark.parametrize("credit", ["1e3", "-1", "0.0000000001", "NaN", "1,5", ""])
async def test_an_inexact_credit_is_refused(database_url: str, credit: str) -> None:
    refused = await cocoon(database_url, "keys", "create", "--customer", "A", "--name", "b", f"--credit={credit}")
    assert refused.returncode == 2
    assert "amount in TON" in refused.stderr


async def test_a_new_price_is_a_new_version_in_force(database_url: str, pool: Pool) -> None:
    for completion in ("1.6", "2"):
        done = await cocoon(
            database_url, "prices", "set", "smollm2", "--context", "2048", "--prompt", "0.4", "--cached", "0.04",
            "--completion", completion,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    offer = (await load_price_book(pool)).offer("smollm2")
    assert offer is not None
    assert offer.price == Price(
        version=2, prompt=400_000_000, cached=40_000_000, completion=2_000_000_000, share_bps=9_500
    )
    assert (offer.context_tokens, offer.default_max_completion) == (2048, 4096)
    lines = (await cocoon(database_url, "prices", "list")).stdout.splitlines()
    assert [line[:12] for line in lines] == ["  smollm2 v1", "* smollm2 v2"]


async def test_a_scheduled_price_is_shown_and_not_yet_in_force(database_url: str, pool: Pool) -> None:
    numbers = ("--prompt", "0.4", "--completion", "1.6")
    unknown = await cocoon(database_url, "prices", "schedule", "m", "--from", "2999-01-01", *numbers)
    assert (unknown.returncode, "there is no model 'm'" in unknown.stderr) == (1, True)
    assert (await cocoon(database_url, "prices", "set", "m", "--context", "2048", *numbers)).returncode == 0
    done = await cocoon(database_url, "prices", "schedule", "m", "--from", "2999-01-01", *numbers, "--cached", "0.1")
    assert done.stdout == "m version 2 from 2999-01-01 00:00:00 UTC\n"
    offer = (await load_price_book(pool)).offer("m")
    assert offer is not None
    assert offer.price.version == 1
    shown = (await cocoon(database_url, "prices", "show", "m")).stdout.splitlines()
    assert [line[:6] for line in shown] == ["m: con", "now v1", "m v2 f"]
    lines = (await cocoon(database_url, "prices", "history", "m", "--json")).stdout.splitlines()
    assert [msgspec.json.decode(line)["cached"] for line in lines] == [400_000_000, 100_000_000]
    assert (await cocoon(database_url, "prices", "history", "other")).stdout == ""


async def test_a_price_in_the_past_is_refused(database_url: str, pool: Pool) -> None:
    numbers = ("--prompt", "0.4", "--completion", "1.6")
    late = await cocoon(
        database_url, "prices", "set", "m", "--context", "2048", *numbers, "--effective", "2020-01-01"
    )  # fmt: skip
    assert (late.returncode, "in the past" in late.stderr) == (1, True)
    assert (await load_price_book(pool)).offers() == ()


async def test_organisations_projects_and_keys_are_managed_by_command(database_url: str, pool: Pool) -> None:
    organisation = (await cocoon(database_url, "orgs", "create", "Ada")).stdout.strip()
    assert uuid.UUID(organisation)
    assert (await cocoon(database_url, "orgs", "create", "Ada", "--id", organisation)).stdout.strip() == organisation
    assert "organisation_taken" in (await cocoon(database_url, "orgs", "create", "Ada")).stderr
    project = await cocoon(database_url, "projects", "create", "--org", "Ada", "chat", "--spend-day", "0.5")
    assert uuid.UUID(project.stdout.strip())
    limited = await cocoon(database_url, "projects", "limit", "--org", "Ada", "chat", "--rpm", "7")
    assert limited.returncode == 0, limited.stderr
    shown = (await cocoon(database_url, "projects", "list", "--org", "Ada")).stdout
    assert [line.split()[1:4] for line in shown.splitlines()[1:]] == [["default", "-", "-"], ["chat", "7", "-"]]

    created = await cocoon(
        database_url, "keys", "create", "--org", "Ada", "--project", "chat", "--name", "app", "--org-admin"
    )
    old = created.stdout.strip()
    assert is_secret_key(old)
    assert (await cocoon(database_url, "keys", "limit", old[:16], "--spend-month", "2")).returncode == 0
    rotated = await cocoon(database_url, "keys", "rotate", old[:16], "--grace", "60")
    new = rotated.stdout.strip()
    assert is_secret_key(new)
    assert new != old
    [key] = [msgspec.json.decode(line) for line in (
        await cocoon(database_url, "keys", "list", "--json")
    ).stdout.splitlines()]  # fmt: skip
    assert (key["prefix"], key["project"], key["organisation_admin"]) == (new[:16], "chat", True)
    assert key["spend_month_nano_max"] == 2_000_000_000
    assert key["previous_expires_at"] is not None
    assert (await cocoon(database_url, "projects", "archive", "--org", "Ada", "chat")).returncode == 0
    assert (await cocoon(database_url, "keys", "list", "--json")).stdout == ""
    assert (await cocoon(database_url, "keys", "rotate", new[:16])).returncode == 1

    audit = await cocoon(database_url, "orgs", "audit", "--org", "Ada")
    rows = [msgspec.json.decode(line) for line in audit.stdout.splitlines()]
    assert [row["action"] for row in rows] == [
        "project.archive", "key.rotate", "key.limit", "key.create", "project.limit", "project.create",
        "organisation.create",
    ]  # fmt: skip
    assert all(row["actor"].startswith("cli:") for row in rows)
    assert old[16:] not in audit.stdout
    assert new[16:] not in audit.stdout


async def test_money_is_moved_by_command_once_for_its_id(database_url: str, pool: Pool) -> None:
    organisation = uuid.UUID((await cocoon(database_url, "orgs", "create", "Ada")).stdout.strip())
    first = await cocoon(database_url, "orgs", "move", "deposit", "Ada", "1.5", "--reason", "invoice 7")
    assert first.stdout == "moved\n"
    transfer = first.stderr.split()[1]
    command = ("orgs", "move", "deposit", "Ada", "1.5", "--reason", "invoice 7", "--transfer-id", transfer)
    assert (await cocoon(database_url, *command)).stdout == "moved before: nothing was changed\n"
    other = await cocoon(database_url, *(part if part != "1.5" else "1.6" for part in command))
    assert "transfer_conflict" in other.stderr
    assert (await PostgresLedger(pool).balance(organisation)).available == Amount(1_500_000_000)
    assert "available  1.5 TON" in (await cocoon(database_url, "orgs", "balance", "Ada")).stdout
    assert (await cocoon(database_url, "orgs", "move", "credit", "Ada", "0", "--reason", "x")).returncode == 2
    assert (await cocoon(database_url, "billing", "check")).returncode == 0


async def test_what_may_be_unsigned_is_set_by_command_and_recorded(
    database_url: str, pool: Pool, connection: Connection
) -> None:
    organisation = uuid.UUID((await cocoon(database_url, "orgs", "create", "Ada")).stdout.strip())
    command = ("orgs", "unsigned", "Ada", "2.5", "--reason", "pays on time")
    assert "unknown_escrow" in (await cocoon(database_url, *command)).stderr
    await connection.execute("INSERT INTO escrow_customers (customer_id, attributed_nano) VALUES ($1, 0)", organisation)

    assert (await cocoon(database_url, *command)).stdout == "2.5 TON; it was 0.5 TON\n"
    assert (await cocoon(database_url, *command)).stdout == "2.5 TON; it was 2.5 TON\n"
    assert await connection.fetchval("SELECT unsigned_max_nano FROM escrow_customers") == 2_500_000_000
    audit = await cocoon(database_url, "orgs", "audit", "--org", "Ada", "--limit", "2")
    changed, made = (msgspec.json.decode(line) for line in audit.stdout.splitlines())
    assert (changed["action"], made["action"]) == ("organisation.unsigned_max", "organisation.create")
    assert changed["detail"] == {
        "unsigned_max_nano": 2_500_000_000,
        "before_nano": 500_000_000,
        "reason": "pays on time",
    }
    much = await cocoon(database_url, "orgs", "unsigned", "Ada", "10000000000", "--reason", "x")
    assert much.returncode == 2


async def test_discrepancies_and_recoveries_are_listed(database_url: str, connection: Connection) -> None:
    job = job_id()
    await connection.execute(
        "INSERT INTO discrepancies (day, job_id, attempt, kind, worker_id, customer_id, against_worker, "
        "claimed_prompt_tokens, claimed_cached_tokens, claimed_completion_tokens, claimed_nano, receipt_head, "
        "receipt_signature) VALUES (current_date, $1, 0, 'over_claim', $1, $1, TRUE, 1, 0, 2, 3, '', '')",
        job,
    )
    [row] = (await cocoon(database_url, "billing", "discrepancies")).stdout.splitlines()[1:]
    assert row.split()[2:] == ["over_claim", str(job), "0", str(job), "yes", "-", "3"]
    [line] = (await cocoon(database_url, "billing", "discrepancies", "--json", "--against-worker")).stdout.splitlines()
    assert msgspec.json.decode(line)["claimed"]["nano"] == 3
    none = await cocoon(database_url, "billing", "discrepancies", "--kind", "broken", "--json")
    assert (none.returncode, none.stdout) == (0, "")
    assert (await cocoon(database_url, "billing", "recoveries")).stdout == ""


async def test_stakes_are_listed_with_what_is_exposed_under_them(
    database_url: str, pool: Pool, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOON_STAKE_PER_UNIT_NANO", "4000")
    await bond(connection)
    terms = CoverTerms()
    await Covers(pool, uuid.UUID(int=1), terms).claim([CoverRequest(ADDRESS, 0, 0, 2_000)])
    await earn(connection, 700)
    listed = await cocoon(database_url, "workers", "stakes")
    assert listed.returncode == 0, listed.stderr
    heading, row = listed.stdout.splitlines()

    assert heading.split()[:6] == ["worker", "stake", "state", "bonded", "unbonding", "weight"]
    assert row.split()[1:] == [
        ADDRESS, "live", "0.00001", "TON", "0", "TON", "2.5", "0.0000007", "TON", "0.000002", "TON",
    ]  # fmt: skip
