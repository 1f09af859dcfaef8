"""What a new development network begins with: a customer, its keys, a model and a price.

Its credit comes from the chain (`cli.dev.settlement`).

Every step finds what an earlier run made, so a restart changes nothing: not the balance, not a price that was set by
hand, not a limit that was given to a key.
"""

import random

from billing.postgres.account import Accounts
from billing.postgres.pool import Pool, open_pool
from billing.postgres.prices import list_prices, set_model, set_price
from billing.pricing import ModelTerms
from cli.dev.state import Secrets
from cocoon.clock import Clock
from cocoon.ids import new_job_id
from cocoon.money import NANO_PER_UNIT, Amount
from gateway.auth import Role
from gateway.postgres.keys import KeySpec, KeyStore

MODEL = "smollm2-135m-instruct"
CONTEXT_TOKENS = 4096
CUSTOMER = "development"
CREDIT = Amount(100 * NANO_PER_UNIT)
"""What the customer deposits in its escrow."""
PROMPT_NANO_PER_MTOK = 20_000_000
CACHED_NANO_PER_MTOK = 5_000_000
COMPLETION_NANO_PER_MTOK = 60_000_000
SHARE_BPS = 9_500
APPLICATION = "cocoon-dev"


async def seed(dsn: str, secrets: Secrets, clock: Clock, rng: random.Random) -> None:
    """Plant what is missing in a migrated database.

    Raises:
        LedgerUnavailableError: the database cannot be reached.
        KeyNameTakenError: the keys are not those of this database; its state directory was mixed with another.
    """
    async with open_pool(dsn, application=APPLICATION) as pool:
        customer_id = await Accounts(pool).open_customer(new_job_id(clock, rng), CUSTOMER)
        keys = KeyStore(pool, rng)
        for secret, role in (
            (secrets.api_key, Role.CUSTOMER),
            (secrets.admin_key, Role.ADMIN),
            (secrets.worker_key, Role.WORKER),
        ):
            await keys.seed(secret, KeySpec(customer_id=customer_id, name=f"{CUSTOMER} {role.value}", role=role))
        await _seed_model(pool)


async def _seed_model(pool: Pool) -> None:
    terms, versions, _ = await list_prices(pool)
    if all(model.model != MODEL for model in terms):
        await set_model(pool, ModelTerms(model=MODEL, context_tokens=CONTEXT_TOKENS))
    if all(version.model != MODEL for version in versions):
        await set_price(
            pool,
            MODEL,
            prompt=PROMPT_NANO_PER_MTOK,
            cached=CACHED_NANO_PER_MTOK,
            completion=COMPLETION_NANO_PER_MTOK,
            share_bps=SHARE_BPS,
        )
