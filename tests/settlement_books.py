"""Books with customers who spend and workers who earn, for tests of settlement."""

import uuid

from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection
from cocoon.addresses import Address
from cocoon.money import Price
from cocoon.usage import TokenUsage
from tests.ledger_values import hold_request, settlement
from tests.settlement_chain import FEE_BPS

NANO = Price(version=1, prompt=1_000_000, cached=0, completion=0, share_bps=10_000 - FEE_BPS)
"""One nano for each token; the operator's fee is the payout contract's."""


async def enrol_worker(connection: Connection, wallet: Address) -> uuid.UUID:
    worker, key_id, owner = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    await connection.execute("INSERT INTO customers (id, name) VALUES ($1, $2)", owner, str(owner))
    await connection.execute(
        "INSERT INTO api_keys (id, customer_id, name, sha256, prefix, role, wallet) "
        "VALUES ($1, $2, 'w', $3, 'wk', 'worker', $4)",
        key_id, owner, key_id.bytes * 2, str(wallet),
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO workers (worker_id, key_id, name, url, models, capacity, engine, tee_type, keyset, keyset_digest) "
        "VALUES ($1, $2, 'w', 'http://w', '[]', 1, 'e', 'none', '', $3)",
        worker, key_id, bytes(32),
    )  # fmt: skip
    return worker


async def spend(ledger: PostgresLedger, customer: uuid.UUID, worker: uuid.UUID, nano: int) -> None:
    request = hold_request(customer, nano)
    await ledger.hold(request)
    job = settlement(request.job_id, customer, worker=worker, usage=TokenUsage(prompt=nano), price=NANO)
    assert (await ledger.settle(job)).charge.nano == nano
