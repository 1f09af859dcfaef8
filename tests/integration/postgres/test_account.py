"""Customers, their usage, and prices as the gateway loads them."""

import asyncio
import datetime as dt
import uuid

import pytest

from billing.ports import Outcome, RecordRefusedError
from billing.postgres.account import Accounts, UsageLine
from billing.postgres.check import broken_invariants
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Pool, acquired, open_pool
from billing.postgres.prices import list_prices, load_price_book, set_model, set_price
from billing.pricing import ModelTerms
from cocoon.ids import job_day
from cocoon.money import Amount
from tests.ledger_values import hold_request, job_id, settlement

pytestmark = pytest.mark.usefixtures("one_day")

WORKER = uuid.UUID(int=11)


async def test_a_customer_is_opened_once_with_empty_accounts(pool: Pool, ledger: PostgresLedger) -> None:
    accounts = Accounts(pool)
    wanted = [uuid.uuid4() for _ in range(4)]
    opened = await asyncio.gather(*(accounts.open_customer(customer, "Ada") for customer in wanted))
    assert len(set(opened)) == 1
    assert opened[0] in wanted
    assert await accounts.find_customer("Ada") == opened[0]
    assert await accounts.find_customer("Bob") is None
    assert (await ledger.balance(opened[0])).available == Amount(0)


async def test_usage_adds_up_charged_jobs_by_day_model_and_key(pool: Pool, ledger: PostgresLedger) -> None:
    customer, other = uuid.uuid4(), uuid.uuid4()
    for payer in (customer, other):
        await ledger.deposit(job_id(), payer, Amount(1_000_000))
    outcomes = [Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.BROKEN]
    for payer, outcome in [(customer, outcome) for outcome in outcomes] + [(other, Outcome.COMPLETED)]:
        request = hold_request(payer, 20_000)
        await ledger.hold(request)
        await ledger.settle(settlement(request.job_id, payer, outcome=outcome))
    today = job_day(job_id())
    spent = (await ledger.balance(customer)).spent
    assert await Accounts(pool).usage(customer, today - dt.timedelta(days=1), today) == [
        UsageLine(
            day=today,
            model="smollm2",
            key_id=uuid.UUID(int=7),
            requests=2,
            prompt_tokens=20,
            cached_tokens=8,
            completion_tokens=14,
            numerator=27_520_000_014,
            charge=spent,
        )
    ]
    assert await Accounts(pool).usage(customer, today - dt.timedelta(days=2), today - dt.timedelta(days=1)) == []


async def test_the_price_in_force_is_the_last_to_take_effect(pool: Pool) -> None:
    assert (await load_price_book(pool)).offers() == ()
    await set_model(pool, ModelTerms(model="m", context_tokens=2048))
    assert (await load_price_book(pool)).offer("m") is None
    first = await set_price(pool, "m", prompt=10, cached=1, completion=20, share_bps=9_000)
    tomorrow = first.effective_from + dt.timedelta(days=1)
    await set_price(pool, "m", prompt=11, cached=1, completion=20, share_bps=9_000, effective_from=tomorrow)
    await set_model(pool, ModelTerms(model="m", context_tokens=4096, default_max_completion=100))
    offer = (await load_price_book(pool)).offer("m")
    assert offer is not None
    assert (offer.price, offer.context_tokens, offer.default_max_completion) == (first.price, 4096, 100)
    _terms, versions, _at = await list_prices(pool)
    assert [version.price.version for version in versions] == [1, 2]


async def test_what_media_count_for_is_kept_with_the_model(pool: Pool) -> None:
    await set_model(pool, ModelTerms(model="m", context_tokens=2048, media_max={"image_url": 700, "input_audio": 90}))
    await set_price(pool, "m", prompt=10, cached=1, completion=20, share_bps=9_000)
    offer = (await load_price_book(pool)).offer("m")
    assert offer is not None
    assert offer.media_max == {"image_url": 700, "input_audio": 90}
    await set_model(pool, ModelTerms(model="m", context_tokens=2048))
    assert (await list_prices(pool))[0][0].media_max == {}


async def test_prices_set_at_once_get_versions_of_their_own(pool: Pool) -> None:
    await set_model(pool, ModelTerms(model="m", context_tokens=2048))
    added = await asyncio.gather(
        *(set_price(pool, "m", prompt=n, cached=0, completion=n, share_bps=0) for n in range(4))
    )
    assert sorted(version.price.version for version in added) == [1, 2, 3, 4]


async def test_no_price_without_a_model_and_no_cached_price_above_the_prompts(pool: Pool) -> None:
    with pytest.raises(RecordRefusedError, match="no model 'x'"):
        await set_price(pool, "x", prompt=1, cached=1, completion=1, share_bps=1)
    await set_model(pool, ModelTerms(model="m", context_tokens=2048))
    with pytest.raises(RecordRefusedError):
        await set_price(pool, "m", prompt=1, cached=2, completion=1, share_bps=1)
    assert (await load_price_book(pool)).offers() == ()


async def test_replicas_that_write_at_once_roll_up_every_row(pool: Pool, database_url: str) -> None:
    customers = [uuid.uuid4() for _ in range(3)]
    async with open_pool(database_url, application="other") as other:
        ledgers = [PostgresLedger(pool), PostgresLedger(other)]
        for customer in customers:
            await ledgers[0].deposit(job_id(), customer, Amount(10_000_000))

        async def serve(ledger: PostgresLedger, customer: uuid.UUID) -> None:
            request = hold_request(customer, 20_000)
            await ledger.hold(request)
            await ledger.settle(settlement(request.job_id, customer, worker=WORKER))

        async with ledgers[0], ledgers[1]:
            await asyncio.gather(*(serve(ledgers[number % 2], customers[number // 2 % 3]) for number in range(60)))
    today = job_day(job_id())
    lines = [line for customer in customers for line in await Accounts(pool).usage(customer, today, today)]
    assert [line.requests for line in lines] == [20, 20, 20]
    async with acquired(pool) as connection:
        assert await broken_invariants(connection) == []


async def test_a_broken_answer_shows_in_the_rollup_and_not_in_the_customers_usage(
    pool: Pool, ledger: PostgresLedger
) -> None:
    customer = uuid.uuid4()
    await ledger.deposit(job_id(), customer, Amount(1_000_000))
    request = hold_request(customer, 20_000)
    await ledger.hold(request)
    await ledger.settle(settlement(request.job_id, customer, outcome=Outcome.BROKEN))
    today = job_day(request.job_id)
    assert await Accounts(pool).usage(customer, today, today) == []
    async with acquired(pool) as connection:
        [row] = await connection.fetch("SELECT requests, broken, prompt_tokens, charge_nano FROM usage_daily")
    assert tuple(row) == (0, 1, 0, 0)
