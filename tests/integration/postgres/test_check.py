"""Books that were tampered with are found out. Each tampering breaks what no CHECK can see."""

import uuid

import pytest

from billing.postgres.check import CHECKS, broken_invariants
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from cocoon.money import Amount
from tests.ledger_values import hold_request, job_id, settlement

WITHOUT_TRIGGERS = "SET session_replication_role = replica; "
TAMPERINGS = {
    "debits_equal_credits": "UPDATE accounts SET credits_posted = credits_posted + 1 WHERE kind = 'customer_available'",
    "counters_equal_transfers": "UPDATE accounts SET credits_pending = credits_pending + 1 WHERE kind = 'rounding'",
    "no_customer_below_zero": (
        "ALTER TABLE accounts DROP CONSTRAINT accounts_credit_not_overdrawn; "
        "UPDATE accounts SET debits_pending = credits_posted + 1 WHERE kind = 'customer_available'"
    ),
    "usage_equals_transfers": "UPDATE usage SET share_nano = share_nano + 1",
    "usage_equals_posts": "UPDATE usage SET charge_nano = charge_nano + 1",
    "open_holds_are_unresolved": "DELETE FROM open_holds",
    "resolutions_have_a_hold": "DELETE FROM transfers WHERE phase = 'pending'",
    "charges_are_distributed": "DELETE FROM transfers WHERE code = 'fee'",
    "numerators_equal_usage": "UPDATE usage SET numerator = numerator + 1",
    "nobody_is_off_by_a_nano": "UPDATE accounts SET numerator = numerator + 1000000 WHERE kind = 'customer_leased'",
}


async def seed_books(pool: Pool) -> None:
    """A settled job, a voided one and an open hold."""
    async with PostgresLedger(pool) as ledger:
        customer = uuid.uuid4()
        await ledger.deposit(job_id(), customer, Amount(100_000))
        settled, voided, opened = (hold_request(customer, 20_000) for _ in range(3))
        for request in (settled, voided, opened):
            await ledger.hold(request)
        await ledger.settle(settlement(settled.job_id, customer, worker=uuid.uuid4()))
        await ledger.void(voided.job_id, customer)


def test_every_invariant_has_its_tampering() -> None:
    assert set(TAMPERINGS) == set(CHECKS)


@pytest.mark.parametrize("invariant", TAMPERINGS)
async def test_tampering_is_found(connection: Connection, pool: Pool, invariant: str) -> None:
    await seed_books(pool)
    assert await broken_invariants(connection) == []
    await connection.execute(WITHOUT_TRIGGERS + TAMPERINGS[invariant])
    found = {row.invariant: row for row in await broken_invariants(connection)}
    assert invariant in found
    assert found[invariant].expected != found[invariant].actual
