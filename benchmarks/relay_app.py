"""The gateway's own pipeline with its books in memory: what the relay costs without its database.

Authentication, admission from credit leases, limits, routing, relay, metering, settlement and the usage journal all
run; only what Postgres would hold lives in this process. Started by `benchmarks.relay`, never by a user.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import uuid
from collections.abc import AsyncGenerator
from typing import cast

from litestar import Litestar

from billing.lease_book import LeaseTerms
from billing.leases import LeasedLedger
from billing.memory_leases import InMemoryLeases
from billing.pricing import ModelOffer, PriceBook
from cocoon.clock import SystemClock
from cocoon.ids import new_job_id
from cocoon.money import Amount, Price
from cocoon.tracing import start_tracer
from gateway.app import create_app
from gateway.attempts import Attempts
from gateway.auth import KeyRecord, KeyTable, Principal
from gateway.client import Limits
from gateway.idempotency import ClaimStore, Idempotency
from gateway.limiter import SlicedLimiter
from gateway.memory_slices import InMemorySlices, InMemorySpend, SharedLimits
from gateway.over_claims import OverClaims
from gateway.pipeline import Pipeline
from gateway.prices import Prices
from gateway.sealed import JobBook, SealedRequests
from gateway.services import Services
from gateway.settings import Settings, read_settings
from gateway.settle import Settler
from workers.enrolments import upstream
from workers.registry import Registry
from workers.routing import RetryBudget, Router
from workers.transport import Transport

KEY = "sk-cocoon-" + "b" * 43


def create() -> Litestar:
    """The application that granian loads."""
    return create_app(read_settings(), opener=_open)


@contextlib.asynccontextmanager
async def _open(settings: Settings) -> AsyncGenerator[Services]:
    clock, rng = SystemClock(), random.Random(os.urandom(8))
    keys, prices, registry = KeyTable(clock), Prices(), Registry(clock)
    principal = Principal(key_id=uuid.uuid4(), customer_id=uuid.uuid4(), name="bench")
    keys.replace([KeyRecord(sha256=hashlib.sha256(KEY.encode()).digest(), principal=principal)], confirmed_at=2**40)
    price = Price(version=1, prompt=1_000_000, cached=500_000, completion=2_000_000)
    prices.book = PriceBook(
        [ModelOffer(model="mock", context_tokens=8192, default_max_completion=1024, template_tokens_per_message=16,
                    base_tokens=64, price=price)]
    )  # fmt: skip
    registry.set_upstreams(
        upstream(name=u.name, url=u.url, models=u.models, context_tokens=u.context_tokens, capacity=u.capacity)
        for u in settings.upstreams
    )
    store = InMemoryLeases(clock)
    await store.deposit(new_job_id(clock, rng), principal.customer_id, Amount(10**17))
    limits = Limits(first_byte_s=120, idle_s=60, request_s_max=600, keep_alive_s=10, exchanges_max=4096)
    async with (
        LeasedLedger(store, store, clock, rng, holder="benchmark", terms=LeaseTerms()) as ledger,
        Settler(ledger, clock, ledger) as settler,
    ):
        attempts = Attempts(
            Router(registry, clock, rng), Transport(clock, allow_private=False), RetryBudget(clock), clock,
            network_secret=bytes(32), global_id=-3, request_s_max=600,
        )  # fmt: skip
        limiter = SlicedLimiter(InMemorySlices(SharedLimits(clock)), InMemorySpend(), clock, rng)
        # No request of the benchmark has an idempotency key or is sealed, so nobody asks those stores.
        pipeline = Pipeline(
            keys=keys, limiter=limiter, ledger=ledger, prices=prices, attempts=attempts, settler=settler,
            idempotency=Idempotency(cast("ClaimStore", None), clock),
            tracer=start_tracer("bench", None, rng), clock=clock, rng=rng, limits=limits,
            over_claims=OverClaims(_forgotten), sealed=SealedRequests(cast("JobBook", None), clock),
        )  # fmt: skip
        services = Services.__new__(Services)
        services.settings, services.clock, services.keys, services.prices = settings, clock, keys, prices
        services.registry, services.settler, services.pipeline = registry, settler, pipeline
        services.stopping = asyncio.Event()
        yield services


async def _forgotten(claims: object) -> None:
    del claims
