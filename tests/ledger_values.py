"""Values that ledger tests share."""

import datetime as dt
import uuid

from billing.ports import HoldRequest, Outcome, Settlement
from cocoon.clock import SystemClock, system_random
from cocoon.ids import new_job_id
from cocoon.money import Amount, Price
from cocoon.usage import TokenUsage

PRICE = Price(version=1, prompt=400_000_000, cached=40_000_000, completion=1_600_000_001, share_bps=9_500)
CLOCK = SystemClock()
DICE = system_random()


def job_id() -> uuid.UUID:
    return new_job_id(CLOCK, DICE)


def hold_request(customer: uuid.UUID, least: int, most: int | None = None, *, ttl_s: int = 600) -> HoldRequest:
    return HoldRequest(
        job_id=job_id(),
        customer_id=customer,
        amount_min=Amount(least),
        amount_max=Amount(least if most is None else most),
        ttl_s=ttl_s,
    )


def settlement(
    job: uuid.UUID,
    customer: uuid.UUID,
    *,
    worker: uuid.UUID | None = None,
    usage: TokenUsage | None = None,
    outcome: Outcome = Outcome.COMPLETED,
    attempt: int = 0,
    price: Price = PRICE,
    finish_reason: str = "stop",
) -> Settlement:
    started = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
    return Settlement(
        job_id=job,
        attempt=attempt,
        customer_id=customer,
        key_id=uuid.UUID(int=7),
        worker_id=worker,
        model="smollm2",
        price=price,
        usage=usage or TokenUsage(prompt=10, cached=4, completion=7),
        outcome=outcome,
        finish_reason=finish_reason,
        started_at=started,
        first_token_at=started + dt.timedelta(milliseconds=20),
        ended_at=started + dt.timedelta(milliseconds=90),
        receipt_head=b"h" * 124,
        receipt_signature=b"s" * 64,
    )
