"""What a development network begins with, planted once however often it starts."""

import random

import pytest

from billing.postgres.account import Accounts
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import open_pool
from billing.postgres.prices import list_prices, load_price_book, set_price
from cli.dev.seed import CUSTOMER, MODEL, seed
from cli.dev.state import new_secrets
from cocoon.clock import SystemClock, system_random
from cocoon.money import Amount
from gateway.auth import Role
from gateway.postgres.keys import KeyNameTakenError, KeyStore


async def test_a_network_begins_with_keys_and_a_priced_model_and_credit_comes_from_the_chain(database_url: str) -> None:
    secrets = new_secrets(random.Random(1))
    await seed(database_url, secrets, SystemClock(), system_random())
    async with open_pool(database_url, application="test") as pool:
        keys = await KeyStore(pool, system_random()).list_keys()
        shown = {(key.role, key.prefix) for key in keys}
        assert shown == {
            (Role.CUSTOMER, secrets.api_key[:16]),
            (Role.ADMIN, secrets.admin_key[:16]),
            (Role.WORKER, secrets.worker_key[:16]),
        }
        customer = await Accounts(pool).find_customer(CUSTOMER)
        assert customer is not None
        assert (await PostgresLedger(pool).balance(customer)).available == Amount(0)
        offer = (await load_price_book(pool)).offer(MODEL)
        assert offer is not None
        assert offer.price.completion > 0


async def test_a_restart_plants_nothing_twice_and_keeps_a_price_set_by_hand(database_url: str) -> None:
    secrets = new_secrets(random.Random(1))
    await seed(database_url, secrets, SystemClock(), system_random())
    async with open_pool(database_url, application="test") as pool:
        await set_price(pool, MODEL, prompt=7, cached=7, completion=7, share_bps=10_000)
        before = await list_prices(pool)
        await seed(database_url, secrets, SystemClock(), system_random())
        assert (await list_prices(pool))[:2] == before[:2]
        customer = await Accounts(pool).find_customer(CUSTOMER)
        assert customer is not None
        assert (await PostgresLedger(pool).balance(customer)).available == Amount(0)
        assert len(await KeyStore(pool, system_random()).list_keys()) == 3


async def test_secrets_of_another_network_are_refused_not_added(database_url: str) -> None:
    await seed(database_url, new_secrets(random.Random(1)), SystemClock(), system_random())
    with pytest.raises(KeyNameTakenError):
        await seed(database_url, new_secrets(random.Random(2)), SystemClock(), system_random())
