"""What the database refuses by itself, whatever a program believes."""

import uuid

import asyncpg
import pytest

from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection
from cocoon.money import Amount
from cocoon.usage import TokenUsage
from tests.ledger_values import hold_request, job_id, settlement


@pytest.fixture
async def customer(ledger: PostgresLedger) -> uuid.UUID:
    customer = uuid.uuid4()
    await ledger.deposit(job_id(), customer, Amount(1000))
    return customer


async def refuse(connection: Connection, constraint: str, statement: str, *arguments: object) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match=constraint):
        await connection.execute(statement, *arguments)


async def test_a_customer_cannot_be_overdrawn_posted_or_pending(connection: Connection, customer: uuid.UUID) -> None:
    for counter in ("debits_posted", "debits_pending"):
        await refuse(
            connection,
            "accounts_credit_not_overdrawn",
            f"UPDATE accounts SET {counter} = {counter} + 1001 WHERE owner = $1 AND kind = 'customer_available'",
            customer,
        )


@pytest.mark.parametrize(
    "kind",
    ["customer_leased", "lease_recovery", "worker_payable", "payout_in_flight", "network_revenue", "rounding",
     "stake_memo"],
)  # fmt: skip
async def test_whatever_is_owed_cannot_go_below_zero(connection: Connection, kind: str) -> None:
    owner = None if kind in {"network_revenue", "rounding"} else uuid.uuid4()
    await connection.execute(
        "INSERT INTO accounts (kind, owner, asset) VALUES ($1, $2, 'TON') ON CONFLICT DO NOTHING", kind, owner
    )
    await refuse(
        connection,
        "accounts_credit_not_overdrawn",
        "UPDATE accounts SET debits_posted = debits_posted + 1 WHERE kind = $1 AND owner IS NOT DISTINCT FROM $2",
        kind,
        owner,
    )


async def test_the_escrow_cannot_pay_what_it_does_not_hold(connection: Connection) -> None:
    insert = (
        "INSERT INTO accounts (kind, owner, asset, debits_posted, credits_posted) "
        "VALUES ('escrow_asset', $1, 'TON', 5, $2)"
    )
    await refuse(connection, "accounts_escrow_not_overdrawn", insert, uuid.uuid4(), 6)
    await connection.execute(insert, uuid.uuid4(), 5)


async def test_suspense_has_no_limit_either_way(connection: Connection) -> None:
    await connection.execute("UPDATE accounts SET debits_posted = 5 WHERE kind = 'suspense'")
    await connection.execute("UPDATE accounts SET debits_posted = 0, credits_posted = 5 WHERE kind = 'suspense'")


@pytest.mark.parametrize("table", ["transfers", "usage", "prices"])
@pytest.mark.parametrize("change", ["UPDATE {0} SET created_at = now()", "DELETE FROM {0}"])
async def test_history_cannot_be_changed(
    connection: Connection, ledger: PostgresLedger, customer: uuid.UUID, table: str, change: str
) -> None:
    request = hold_request(customer, 1000)
    await ledger.hold(request)
    await ledger.settle(settlement(request.job_id, customer, usage=TokenUsage(prompt=1)))
    await connection.execute(
        "INSERT INTO models (id, context_tokens) VALUES ('m', 1); INSERT INTO prices (model, version, "
        "prompt_nano_per_mtok, cached_nano_per_mtok, completion_nano_per_mtok, share_bps, effective_from) "
        "VALUES ('m', 1, 1, 1, 1, 1, now())"
    )
    with pytest.raises(asyncpg.RestrictViolationError, match="insert-only"):
        await connection.execute(change.format(table))


async def test_a_hold_is_resolved_at_most_once(
    connection: Connection, ledger: PostgresLedger, customer: uuid.UUID
) -> None:
    request = hold_request(customer, 1000)
    await ledger.hold(request)
    await ledger.void(request.job_id, customer)
    with pytest.raises(asyncpg.UniqueViolationError, match="pending_id"):
        await connection.execute(
            "INSERT INTO transfers (day, id, phase, code, pending_id, debit_account_id, credit_account_id, amount) "
            "SELECT day, gen_random_uuid(), 'post', code, pending_id, debit_account_id, credit_account_id, 0 "
            "FROM transfers WHERE pending_id = $1",
            request.job_id,
        )


async def test_a_job_is_charged_at_most_once(
    connection: Connection, ledger: PostgresLedger, customer: uuid.UUID
) -> None:
    request = hold_request(customer, 1000)
    await ledger.hold(request)
    await ledger.settle(settlement(request.job_id, customer, usage=TokenUsage(prompt=1)))
    columns = await connection.fetchval(
        "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attrelid = 'usage'::regclass "
        "AND attnum > 0 AND attname <> 'attempt'"
    )
    with pytest.raises(asyncpg.UniqueViolationError, match="customer_id_job_id"):
        await connection.execute(f"INSERT INTO usage (attempt, {columns}) SELECT attempt + 1, {columns} FROM usage")
