"""What single customers pay of the prices: versions, dates, and the limits that a discount has."""

import datetime as dt
import uuid

import pytest

from billing.ports import RecordRefusedError, UnknownCustomerError
from billing.postgres.account import Accounts
from billing.postgres.ledger import PostgresLedger
from billing.postgres.multipliers import list_multipliers, set_multiplier
from billing.postgres.pool import Connection, Pool
from billing.postgres.prices import load_price_book, set_model, set_price
from billing.pricing import ModelTerms
from cocoon.money import Amount, Price
from tests.ledger_values import hold_request, job_id, settlement

DAY = dt.timedelta(days=1)


@pytest.fixture
async def customer(pool: Pool) -> uuid.UUID:
    await set_model(pool, ModelTerms(model="m", context_tokens=2048))
    await set_price(pool, "m", prompt=1_000_001, cached=3, completion=20, share_bps=9_000)
    return await Accounts(pool).open_customer(uuid.uuid4(), "Ada")


async def bps_of(pool: Pool, customer: uuid.UUID) -> int:
    offer = (await load_price_book(pool)).offer("m", customer)
    assert offer is not None
    return offer.price.customer_bps


async def test_a_multiplier_is_in_force_for_its_customer_from_its_date(pool: Pool, customer: uuid.UUID) -> None:
    assert await bps_of(pool, customer) == 10_000
    first = await set_multiplier(pool, "Ada", 9_500)
    assert (first.version, await bps_of(pool, customer)) == (1, 9_500)
    await set_multiplier(pool, "Ada", 12_000, effective_from=first.effective_from + DAY)
    assert await bps_of(pool, customer) == 9_500
    book = await load_price_book(pool)
    nobody, ada = book.offer("m", uuid.uuid4()), book.offer("m", customer)
    assert nobody is not None
    assert ada is not None
    assert (nobody.price.prompt, nobody.price.as_charged()) == (1_000_001, nobody.price)
    # Rounded up to a whole nano per million tokens, once.
    charged = ada.price.as_charged()
    assert (charged.prompt, charged.cached, charged.completion) == (950_001, 3, 19)
    assert [offer.price.customer_bps for offer in book.offers(customer)] == [9_500]
    await set_multiplier(pool, "Ada", 10_000)
    assert await bps_of(pool, customer) == 10_000
    assert [(one.customer, one.version, one.customer_bps) for one in await list_multipliers(pool)] == [
        ("Ada", 1, 9_500), ("Ada", 2, 12_000), ("Ada", 3, 10_000),
    ]  # fmt: skip


async def test_a_discount_ends_at_the_workers_part(pool: Pool, customer: uuid.UUID) -> None:
    for bps in (8_999, 100_001):
        with pytest.raises(RecordRefusedError):
            await set_multiplier(pool, "Ada", bps)
    await set_multiplier(pool, "Ada", 9_000)
    # A larger part for the workers comes later: the discount shrinks by itself.
    await set_price(pool, "m", prompt=100, cached=100, completion=100, share_bps=9_400)
    assert await bps_of(pool, customer) == 9_400


async def test_multipliers_are_not_dated_back_not_changed_and_not_for_strangers(
    pool: Pool, connection: Connection, customer: uuid.UUID
) -> None:
    with pytest.raises(RecordRefusedError):
        await set_multiplier(pool, "Ada", 9_500, effective_from=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    with pytest.raises(UnknownCustomerError):
        await set_multiplier(pool, "Bob", 9_500)
    await set_multiplier(pool, "Ada", 9_500)
    for statement in ("UPDATE customer_multipliers SET customer_bps = 1", "DELETE FROM customer_multipliers"):
        with pytest.raises(Exception, match="insert-only"):
            await connection.execute(statement)
    [row] = await connection.fetch("SELECT * FROM audit_log WHERE action = 'customer.multiplied'")
    assert row["customer_id"] == customer


async def test_the_network_pays_for_a_discount_and_the_worker_does_not(
    ledger: PostgresLedger, connection: Connection
) -> None:
    customer, worker = uuid.uuid4(), uuid.uuid4()
    await ledger.deposit(job_id(), customer, Amount(10**6))
    cheap = Price(version=1, prompt=10**9, cached=10**9, completion=10**9, share_bps=9_000, customer_bps=9_100)
    request = hold_request(customer, 10**5)
    await ledger.hold(request)
    posted = await ledger.settle(settlement(request.job_id, customer, worker=worker, price=cheap))
    # 17 tokens of 1000 nano: the customer pays 91 %, the worker has 90 %.
    assert (posted.charge.nano, posted.worker_share.nano, posted.fee.nano) == (15_470, 15_300, 170)
    [row] = await connection.fetch("SELECT * FROM usage")
    assert (row["customer_bps"], row["numerator"], row["worker_numerator"]) == (9_100, 15_470 * 10**6, 17_000 * 10**6)
    with pytest.raises(Exception, match="usage_discount_is_the_networks"):
        await connection.execute(
            "INSERT INTO usage SELECT day, gen_random_uuid(), attempt, customer_id, key_id, worker_id, model, asset,"
            " price_version, 9101, prompt_tokens, cached_tokens, completion_tokens, numerator, charge_nano, share_nano,"
            " fee_nano, outcome, finish_reason, started_at, first_token_at, ended_at, receipt_head, receipt_signature,"
            " body_digest, created_at, lease_id, customer_bps, worker_numerator FROM usage"
        )
