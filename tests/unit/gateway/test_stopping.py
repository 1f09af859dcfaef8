"""The end of a process: everybody is waited for, then broken off, and what they leave behind is settled."""

import asyncio
import os
import random
import signal
import uuid
from types import SimpleNamespace
from typing import Any, cast

import pytest

from billing.memory import InMemoryLedger
from billing.ports import HoldRequest
from billing.postgres import ledger as postgres_ledger
from billing.postgres import pool
from cli.gateway import KILL_MARGIN_S
from cocoon.clock import ManualClock
from cocoon.ids import new_job_id
from cocoon.money import Amount
from gateway import idempotency, limiter, stopping
from gateway.live import LiveExchanges
from gateway.services import Services
from gateway.settle import Settler
from gateway.stopping import graceful_stop

CUSTOMER = uuid.UUID(int=5)
TRACES_S = 2
"""What the exporter was measured to take when nobody answers it."""


def test_everything_that_a_process_waits_for_at_its_end_fits_before_it_is_killed() -> None:
    waits = [
        2 * stopping.EXCHANGES_S_MAX, stopping.SETTLE_S_MAX, postgres_ledger.DRAIN_S_MAX, pool.CLOSE_TIMEOUT_S,
        limiter.CLOSE_S_MAX, TRACES_S, idempotency.CLOSE_S_MAX,
    ]  # fmt: skip
    assert sum(waits) <= KILL_MARGIN_S


def services(settler: Settler, drain_s: float) -> Services:
    made = Services.__new__(Services)
    made.settings = cast("Any", SimpleNamespace(drain_s=drain_s))
    made.pipeline = cast("Any", SimpleNamespace(live=LiveExchanges()))
    made.settler = settler
    made.stopping = asyncio.Event()
    return made


async def test_an_exchange_that_must_be_broken_off_at_the_very_end_is_settled_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "EXCHANGES_S_MAX", 0.05)
    clock, rng = ManualClock(), random.Random(1)
    ledger = InMemoryLedger(clock)
    await ledger.deposit(new_job_id(clock, rng), CUSTOMER, Amount(10))
    job_id = new_job_id(clock, rng)
    await ledger.hold(
        HoldRequest(job_id=job_id, customer_id=CUSTOMER, amount_min=Amount(10), amount_max=Amount(10), ttl_s=900)
    )

    async def exchange() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            settler.submit_void(job_id, CUSTOMER)
            live.leave(task)

    async with Settler(ledger, clock) as settler:
        async with graceful_stop(made := services(settler, 30)):
            live = made.pipeline.live
            task = asyncio.create_task(exchange())
            await asyncio.sleep(0)
            live.enter(task)
        assert made.stopping.is_set()
    assert (await ledger.balance(CUSTOMER)).available.nano == 10
    assert task.cancelled()


async def test_the_drain_begins_once_and_its_end_reaches_those_who_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts: list[int] = []
    alarms: list[tuple[int, float]] = []
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: alarms.append((which, seconds)))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: interrupts.append(1))
    try:
        async with Settler(InMemoryLedger(), ManualClock()) as settler, graceful_stop(made := services(settler, 0.05)):
            live = made.pipeline.live
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(made.stopping.wait(), 60)
            tasks = [asyncio.create_task(asyncio.Event().wait()) for _ in range(2)]
            live.enter(cast("Any", tasks[0]))
            await asyncio.wait([tasks[0]])
            live.enter(cast("Any", tasks[1]))
            await asyncio.wait([tasks[1]])
            assert all(task.cancelled() for task in tasks)
            for task in tasks:
                live.leave(cast("Any", task))
        assert len(interrupts) == 1
        # What hangs in spite of all that, the kernel ends: nobody catches this signal.
        assert alarms == [(signal.ITIMER_REAL, 0.05 + stopping.ABANDONED_S)]
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
