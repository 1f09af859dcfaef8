"""One process of the overspend test: many requests at once for one customer, through a leased ledger of its own.

Arguments: database URL, customer, requests, nano a request holds, nano it costs. Prints how many were served and how
many were refused, once every lease has gone back.
"""

import asyncio
import json
import os
import sys
import uuid

from billing.leases import LeasedLedger
from billing.ports import HoldRequest, InsufficientCreditError
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import open_pool
from cocoon.money import Amount, Price
from cocoon.usage import TokenUsage
from tests.ledger_values import CLOCK, DICE, job_id, settlement

NANO_A_TOKEN = Price(version=1, prompt=10**6, cached=0, completion=10**6)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def spend(database_url: str, customer: uuid.UUID, requests: int, held: int, cost: int) -> dict[str, int]:
    counts = {"served": 0, "refused": 0}
    async with (
        open_pool(database_url, application="test", connections_max=4) as pool,
        LeasedLedger(
            PostgresLedger(pool), PostgresLeases(pool, database_url), CLOCK, DICE, holder=f"test/{os.getpid()}/0"
        ) as ledger,
    ):

        async def one() -> None:
            request = HoldRequest(
                job_id=job_id(), customer_id=customer, amount_min=Amount(held), amount_max=Amount(held), ttl_s=60
            )
            try:
                await ledger.hold(request)
            except InsufficientCreditError:
                counts["refused"] += 1
                return
            counts["served"] += 1
            await ledger.settle(settlement(request.job_id, customer, price=NANO_A_TOKEN, usage=TokenUsage(prompt=cost)))

        say("ready")
        sys.stdin.readline()
        await asyncio.gather(*(one() for _ in range(requests)))
    return counts


if __name__ == "__main__":
    url, owner, *numbers = sys.argv[1:]
    say(json.dumps(asyncio.run(spend(url, uuid.UUID(owner), *(int(number) for number in numbers)))))
