"""Books that were tampered with are found out. Each tampering breaks what no CHECK can see."""

import uuid

import pytest

from billing.lease_store import LeaseAnswer
from billing.ledger import Code
from billing.postgres.account import Accounts
from billing.postgres.adjustments import Adjustment, post_adjustment
from billing.postgres.check import CHECKS, broken_invariants
from billing.postgres.escrows import Escrows
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool, acquired
from billing.postgres.recoveries import Recoveries
from cocoon.clock import system_random
from cocoon.money import Amount
from cocoon.receipt_batch import Verdict
from gateway.postgres.keys import KeySpec, KeyStore
from gateway.recovery import verify
from tests.lease_store_conformance import change, row
from tests.ledger_values import hold_request, job_id, settlement
from tests.receipt_values import GLOBAL_ID, SECRET, Signer
from tests.settlement_values import seen, terms

WITHOUT_TRIGGERS = "SET session_replication_role = replica; "
EPOCH_OF_ONE = """
WITH payee AS (
    INSERT INTO payees (id, wallet) VALUES (gen_random_uuid(), '0:' || repeat('a', 64)) RETURNING id
), epoch AS (
    INSERT INTO epochs (epoch, root, total_nano, earned_nano) VALUES (1, sha256(''), 7, 7) RETURNING epoch
), paying AS (
    UPDATE accounts SET debits_posted = debits_posted + 7
    WHERE id = (SELECT id FROM accounts WHERE kind = 'worker_payable' AND credits_posted >= 7 LIMIT 1) RETURNING id
), flight AS (
    INSERT INTO accounts (kind, owner, asset, credits_posted)
    SELECT 'payout_in_flight', id, 'TON', 7 FROM payee RETURNING id
), moved AS (
    INSERT INTO transfers (day, id, phase, code, debit_account_id, credit_account_id, amount)
    SELECT (now() AT TIME ZONE 'utc')::date, gen_random_uuid(), 'single', 'claim', paying.id, flight.id, 7
    FROM paying, flight
)
INSERT INTO epoch_leaves (epoch, payee_id, cumulative_nano) SELECT epoch, id, 7 FROM epoch, payee
"""
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
    "leases_tie_to_pending_transfers": "UPDATE leases SET amount = amount + 1 WHERE state = 'active'",
    "lease_posts_equal_usage": "UPDATE usage SET charge_nano = charge_nano + 1 WHERE lease_id IS NOT NULL",
    "recovery_equals_expired_leases": "UPDATE leases SET amount = amount + 1 WHERE state = 'recovering'",
    "recoveries_equal_transfers": "UPDATE transfers SET amount = amount + 1 WHERE code = 'recovered'",
    "recovered_holds_had_expired": "DELETE FROM transfers WHERE phase = 'expire'",
    "rollups_equal_usage": "UPDATE usage_daily SET completion_tokens = completion_tokens + 1",
    "statements_equal_balances": "UPDATE usage_daily SET charge_nano = charge_nano + 1",
    "adjustments_are_recorded": "DELETE FROM audit_log WHERE action = 'ledger.credit'",
    "usage_has_a_project": "UPDATE usage_daily SET key_id = (SELECT id FROM api_keys)",
    "usage_is_priced_at_its_version": (
        "INSERT INTO models (id, context_tokens) VALUES ('smollm2', 2048); "
        "INSERT INTO prices (model, version, prompt_nano_per_mtok, cached_nano_per_mtok, completion_nano_per_mtok, "
        "share_bps, effective_from) VALUES ('smollm2', 1, 400000000, 40000000, 1600000000, 9500, now())"
    ),
    "escrows_equal_accounts": "UPDATE escrows SET deposited_nano = deposited_nano + 1",
    "movements_equal_transfers": "UPDATE chain_movements SET amount_nano = amount_nano - 1 WHERE kind = 'deposit'",
    "movements_equal_contracts": "DELETE FROM chain_movements WHERE kind = 'settle'",
    "payees_equal_accounts": "UPDATE epoch_leaves SET cumulative_nano = cumulative_nano + 1",
    "payout_equals_account": "UPDATE accounts SET debits_posted = debits_posted + 1 WHERE kind = 'payout_asset'",
    "epochs_equal_leaves": "UPDATE epochs SET total_nano = total_nano + 1",
    "escrows_charge_what_was_charged": "UPDATE escrow_customers SET attributed_nano = attributed_nano + 1",
    "nobody_is_off_by_a_nano": "UPDATE accounts SET numerator = numerator + 1000000 WHERE kind = 'customer_leased'",
}


async def seed_books(pool: Pool) -> None:
    """A settled job, a voided one, an open hold, and one recovered from its receipt."""
    async with PostgresLedger(pool) as ledger:
        customer = uuid.uuid4()
        await ledger.deposit(job_id(), customer, Amount(100_000))
        settled, voided, opened = (hold_request(customer, 20_000) for _ in range(3))
        for request in (settled, voided, opened):
            await ledger.hold(request)
        await ledger.settle(settlement(settled.job_id, customer, worker=uuid.uuid4()))
        await ledger.void(voided.job_id, customer)
        await recover_one(pool, ledger, customer)
        await lease_two(pool, ledger)
    organisation = await Accounts(pool).open_customer(uuid.uuid4(), "Ada")
    await KeyStore(pool, system_random()).create(KeySpec(customer_id=organisation, name="unused"))
    await settle_one(pool, organisation)
    gift = Adjustment(
        transfer_id=job_id(), customer_id=organisation, code=Code.CREDIT, amount=Amount(5), reason="an outage"
    )
    assert await post_adjustment(pool, gift, actor="test")


async def settle_one(pool: Pool, customer: uuid.UUID) -> None:
    """An escrow that has settled part of its deposit, and an epoch that pays one worker."""
    escrows = Escrows(pool)
    escrow = await escrows.register(uuid.uuid4(), customer, terms())
    await escrows.observe(customer, escrow.terms.address, seen(1, 100, 40))
    async with acquired(pool) as connection:
        await connection.execute(EPOCH_OF_ONE)


async def lease_two(pool: Pool, ledger: PostgresLedger) -> None:
    """A lease that has paid, and one in recovery."""
    customer, store = uuid.uuid4(), PostgresLeases(pool, "")
    await ledger.deposit(job_id(), customer, Amount(100_000))
    for _ in range(2):
        asked = change(customer, need_min_nano=20_000, need_nano=20_000)
        [answer] = await store.change([asked])
        assert isinstance(answer, LeaseAnswer)
        await store.flush([row(customer, asked, answer.fence)])
    async with acquired(pool) as connection:
        await connection.execute(
            "UPDATE leases SET expires_at = now() - interval '1 s' WHERE lease_id = $1", asked.lease_id
        )
    assert await store.sweep(10, 900) == 1


async def recover_one(pool: Pool, ledger: PostgresLedger, customer: uuid.UUID) -> None:
    lost, signer = hold_request(customer, 200), Signer()
    await ledger.hold(lost)
    async with acquired(pool) as connection:
        await connection.execute("UPDATE open_holds SET expires_at = now() - interval '1 s' WHERE id = $1", lost.job_id)
    await ledger.expire_due(10)
    receipt = signer.delivered(signer.ticket(job=lost.job_id), customer)
    claim = verify(receipt, [signer.raw], signer.worker_id, SECRET, global_id=GLOBAL_ID)
    assert await Recoveries(pool, PostgresLeases(pool, "")).reconcile([claim]) == [Verdict.RECOVERED]


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


async def test_a_check_may_take_longer_than_a_requests_statement(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "SELECT 'slow' AS subject, 0 AS expected, 0 AS actual WHERE pg_sleep(0.4) IS NULL"
    monkeypatch.setitem(CHECKS, "slow", slow)
    await connection.execute("SET statement_timeout = '200ms'")
    assert await broken_invariants(connection) == []
