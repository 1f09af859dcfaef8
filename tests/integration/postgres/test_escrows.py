"""Escrows in the books: each thing that the chain did moves money once, and nothing else does."""

import asyncio
import uuid

import pytest

from billing.escrows import (
    ChainContradictionError,
    EscrowConflictError,
    EscrowState,
    MovementKind,
    StaleVoucherError,
    UnknownEscrowError,
    VoucherSigner,
)
from billing.ports import UnknownCustomerError
from billing.postgres.account import Accounts
from billing.postgres.check import broken_invariants
from billing.postgres.escrows import Escrows
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from cocoon.money import Amount, Price
from cocoon.usage import TokenUsage
from tests.ledger_values import hold_request, job_id, settlement
from tests.settlement_values import new_id, seen, terms, voucher

NANO = Price(version=1, prompt=1_000_000, cached=0, completion=0)
"""One nano for each token."""


@pytest.fixture
async def customer(pool: Pool) -> uuid.UUID:
    return await Accounts(pool).open_customer(new_id(), "Ada")


@pytest.fixture
def escrows(pool: Pool, ledger: PostgresLedger) -> Escrows:
    """With the ledger, so that the books must balance when the test is over."""
    del ledger
    return Escrows(pool)


async def spend(ledger: PostgresLedger, customer: uuid.UUID, nano: int) -> None:
    request = hold_request(customer, nano)
    await ledger.hold(request)
    posted = await ledger.settle(settlement(request.job_id, customer, usage=TokenUsage(prompt=nano), price=NANO))
    assert posted.charge.nano == nano


async def balance(connection: Connection, kind: str, owner: uuid.UUID | None = None) -> int:
    found = await connection.fetchval(
        "SELECT credits_posted - debits_posted FROM accounts WHERE kind = $1 AND owner IS NOT DISTINCT FROM $2",
        kind,
        owner,
    )
    return int(found or 0)


async def test_a_deposit_is_credited_once_whatever_is_seen_again(
    escrows: Escrows, ledger: PostgresLedger, customer: uuid.UUID
) -> None:
    escrow = await escrows.register(new_id(), customer, terms())
    assert escrow.state is EscrowState.REGISTERED
    address = escrow.terms.address
    first = await escrows.observe(customer, address, seen(1, 1000))
    assert [one.amount_nano for one in first.moved] == [1000]
    for again in (seen(1, 1000), seen(2, 1000)):
        assert (await escrows.observe(customer, address, again)).moved == ()
    more = await escrows.observe(customer, address, seen(3, 1500))
    assert [(one.kind, one.cumulative_nano, one.amount_nano) for one in more.moved] == [
        (MovementKind.DEPOSIT, 1500, 500)
    ]
    assert (await escrows.observe(customer, address, seen(2, 1000))).moved == ()
    assert (await ledger.balance(customer)).available == Amount(1500)


async def test_observers_beside_each_other_credit_once(
    escrows: Escrows, ledger: PostgresLedger, customer: uuid.UUID
) -> None:
    escrow = await escrows.register(new_id(), customer, terms())
    answers = await asyncio.gather(
        *(escrows.observe(customer, escrow.terms.address, seen(1 + n % 2, 700)) for n in range(6))
    )
    assert sum(one.amount_nano for answer in answers for one in answer.moved) == 700
    assert (await ledger.balance(customer)).available == Amount(700)


async def test_a_chain_that_says_less_than_before_books_nothing(escrows: Escrows, customer: uuid.UUID) -> None:
    escrow = await escrows.register(new_id(), customer, terms())
    before = (await escrows.observe(customer, escrow.terms.address, seen(5, 1000, 100))).escrow
    for lie in (seen(6, 999, 100), seen(6, 1000, 99), seen(6, 1000, 1001), seen(6, 1000, 100, owed_nano=101)):
        with pytest.raises(ChainContradictionError):
            await escrows.observe(customer, escrow.terms.address, lie)
    assert await escrows.find(escrow.terms.address) == before


async def test_an_escrow_belongs_to_whom_registered_it_first(escrows: Escrows, customer: uuid.UUID, pool: Pool) -> None:
    other = await Accounts(pool).open_customer(new_id(), "Bert")
    made = await escrows.register(new_id(), customer, terms())
    assert await escrows.register(new_id(), customer, terms()) == made
    with pytest.raises(EscrowConflictError):
        await escrows.register(new_id(), other, terms())
    with pytest.raises(UnknownCustomerError):
        await escrows.register(new_id(), new_id(), terms("another"))
    with pytest.raises(UnknownEscrowError):
        await escrows.observe(other, made.terms.address, seen(1, 1))


async def test_charges_go_to_escrows_in_order_and_the_rest_to_other_credit(
    escrows: Escrows, ledger: PostgresLedger, customer: uuid.UUID
) -> None:
    await ledger.deposit(job_id(), customer, Amount(1000))
    await spend(ledger, customer, 100)
    first = await escrows.register(new_id(), customer, terms("first"))
    second = await escrows.register(new_id(), customer, terms("second"))
    await escrows.observe(customer, first.terms.address, seen(1, 50))
    await escrows.observe(customer, second.terms.address, seen(1, 70))
    await spend(ledger, customer, 80)
    await escrows.attribute(customer)
    charged = {one.terms.address: one.charged_nano for one in await escrows.of_customer(customer)}
    assert charged == {first.terms.address: 50, second.terms.address: 30}
    await spend(ledger, customer, 45)
    await escrows.attribute(customer)
    topped = await escrows.observe(customer, first.terms.address, seen(2, 90))
    assert topped.escrow.charged_nano == 50, "what other credit has paid stays paid"
    assert [one.charged_nano for one in await escrows.of_customer(customer)] == [50, 70]


async def test_closed_escrows_stand_in_nobodys_way_however_many(
    escrows: Escrows, ledger: PostgresLedger, connection: Connection, customer: uuid.UUID
) -> None:
    await escrows.register(new_id(), customer, terms("first"))
    await connection.execute(
        "INSERT INTO escrows (id, customer_id, address, code_hash, config, client, epoch, operator_key, challenge_s, "
        "allow_max_nano, allow_rate_nano, allow_at_nano, state) SELECT gen_random_uuid(), customer_id, "
        "'0:' || lpad(to_hex(number), 64, '0'), code_hash, config, client, epoch, operator_key, challenge_s, 0, 0, 0, "
        "'closed' FROM escrows CROSS JOIN generate_series(1, 1200) AS number"
    )
    last = await escrows.register(new_id(), customer, terms("last"))
    await escrows.observe(customer, last.terms.address, seen(1, 100))
    await spend(ledger, customer, 30)
    await escrows.attribute(customer)
    found = await escrows.of_customer(customer)
    assert [one.charged_nano for one in found[:2]] == [0, 30]
    assert found[1].escrow_id == last.escrow_id
    assert len(await escrows.all()) == 1202


async def test_a_closed_escrow_is_refunded_from_the_customers_credit(
    escrows: Escrows, ledger: PostgresLedger, connection: Connection, customer: uuid.UUID
) -> None:
    escrow = await escrows.register(new_id(), customer, terms())
    await escrows.observe(customer, escrow.terms.address, seen(1, 1000))
    await spend(ledger, customer, 300)
    closed = await escrows.observe(customer, escrow.terms.address, seen(2, 1000, 300, state=EscrowState.CLOSED))
    assert [(one.kind, one.amount_nano) for one in closed.moved] == [
        (MovementKind.SETTLE, 300), (MovementKind.REFUND, 700),
    ]  # fmt: skip
    assert (await ledger.balance(customer)).available == Amount(0)
    assert await balance(connection, "payout_asset") == -300
    assert await balance(connection, "escrow_asset", escrow.escrow_id) == 0
    assert await balance(connection, "operator_loss") == 0
    assert await escrows.watched() == ()
    again = await escrows.observe(customer, escrow.terms.address, seen(3, 1000, 300, state=EscrowState.CLOSED))
    assert again.moved == ()
    with pytest.raises(ChainContradictionError):
        await escrows.observe(customer, escrow.terms.address, seen(4, 1000, 300))


async def test_what_was_spent_and_not_settled_in_time_is_the_operators_loss(
    escrows: Escrows, ledger: PostgresLedger, connection: Connection, customer: uuid.UUID
) -> None:
    escrow = await escrows.register(new_id(), customer, terms())
    await escrows.observe(customer, escrow.terms.address, seen(1, 1000))
    await spend(ledger, customer, 300)
    closed = await escrows.observe(customer, escrow.terms.address, seen(2, 1000, 100, state=EscrowState.CLOSED))
    assert [(one.kind, one.amount_nano) for one in closed.moved[1:]] == [
        (MovementKind.REFUND, 700), (MovementKind.FORGONE, 200),
    ]  # fmt: skip
    assert await balance(connection, "operator_loss") == -200


async def test_a_refund_waits_for_requests_that_may_still_spend(
    escrows: Escrows, ledger: PostgresLedger, customer: uuid.UUID
) -> None:
    escrow = await escrows.register(new_id(), customer, terms())
    await escrows.observe(customer, escrow.terms.address, seen(1, 1000))
    held = hold_request(customer, 400)
    await ledger.hold(held)
    shut = seen(2, 1000, state=EscrowState.CLOSED)
    waiting = await escrows.observe(customer, escrow.terms.address, shut)
    assert waiting.refund_deferred
    assert waiting.moved == ()
    assert [one.escrow_id for one in await escrows.watched()] == [escrow.escrow_id]
    await ledger.void(held.job_id, customer)
    done = await escrows.observe(customer, escrow.terms.address, shut)
    assert [(one.kind, one.amount_nano) for one in done.moved] == [(MovementKind.REFUND, 1000)]
    assert not done.refund_deferred


async def test_vouchers_of_a_signer_only_grow(escrows: Escrows, customer: uuid.UUID) -> None:
    escrow = await escrows.register(new_id(), customer, terms())
    assert await escrows.last_voucher(escrow.escrow_id, VoucherSigner.SESSION) is None
    assert await escrows.add_voucher(escrow.escrow_id, voucher(10))
    assert not await escrows.add_voucher(escrow.escrow_id, voucher(10))
    assert await escrows.add_voucher(escrow.escrow_id, voucher(5, VoucherSigner.OPERATOR))
    assert await escrows.add_voucher(escrow.escrow_id, voucher(12))
    with pytest.raises(StaleVoucherError, match="12 nano"):
        await escrows.add_voucher(escrow.escrow_id, voucher(11))
    with pytest.raises(UnknownEscrowError):
        await escrows.add_voucher(new_id(), voucher(1))
    assert await escrows.last_voucher(escrow.escrow_id, VoucherSigner.SESSION) == voucher(12)


@pytest.mark.usefixtures("one_day")
async def test_a_statement_says_what_was_refunded(
    escrows: Escrows, ledger: PostgresLedger, connection: Connection, pool: Pool, customer: uuid.UUID
) -> None:
    escrow = await escrows.register(new_id(), customer, terms())
    await escrows.observe(customer, escrow.terms.address, seen(1, 1000))
    await spend(ledger, customer, 300)
    await escrows.observe(customer, escrow.terms.address, seen(2, 1000, 300, state=EscrowState.CLOSED))
    month = (await connection.fetchval("SELECT (now() AT TIME ZONE 'utc')::date")).replace(day=1)
    statement = await Accounts(pool).statement(customer, month)
    assert (statement.deposits, statement.reversals, statement.closing) == (Amount(1000), Amount(700), Amount(0))
    assert await broken_invariants(connection) == []
