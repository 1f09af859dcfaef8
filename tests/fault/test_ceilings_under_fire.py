"""Processes that compete for a customer's ceiling while its client signs: never more unsigned than the bound."""

import asyncio
import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from billing.escrows import StaleVoucherError
from billing.postgres.account import Accounts
from billing.postgres.check import broken_invariants
from billing.postgres.escrows import Escrows
from billing.postgres.pool import Pool, acquired, connect, open_pool
from tests.settlement_values import new_id, seen, terms, voucher

ROOT = Path(__file__).parents[2]
PROCESSES, REQUESTS, HELD = 4, 40, 1_000
UNSIGNED_MAX = 20 * HELD
DEPOSIT = 1_000 * HELD
_LIBC = ctypes.CDLL(None)
EXPOSURE = """
SELECT (
    SUM(CASE kind WHEN 'customer_available' THEN debits_pending
        WHEN 'customer_leased' THEN credits_posted ELSE credits_posted - debits_posted END)
    - (SELECT COALESCE(MAX(cumulative_nano), 0) FROM vouchers)
)::bigint
FROM accounts WHERE owner = $1 AND kind IN ('customer_available', 'customer_leased', 'lease_recovery')
"""
"""What was charged, leased or waits in recovery, and is not signed; in one statement."""
CHARGED = "SELECT debits_posted FROM accounts WHERE owner = $1 AND kind = 'customer_leased'"


async def open_escrow(pool: Pool) -> tuple[uuid.UUID, uuid.UUID]:
    customer = await Accounts(pool).open_customer(new_id(), "Ada")
    made = await Escrows(pool).register(new_id(), customer, terms(operator_key=None))
    await Escrows(pool).observe(customer, made.terms.address, seen(1, DEPOSIT))
    async with acquired(pool) as connection:
        await connection.execute("UPDATE escrow_customers SET unsigned_max_nano = $1", UNSIGNED_MAX)
    return customer, made.escrow_id


async def sign_along(pool: Pool, customer: uuid.UUID, escrow_id: uuid.UUID, stopped: asyncio.Event) -> None:
    """Sign what was charged again and again, for a while."""
    while not stopped.is_set():
        async with acquired(pool) as connection:
            exposure = await connection.fetchval(EXPOSURE, customer)
            assert exposure <= UNSIGNED_MAX
            charged = await connection.fetchval(CHARGED, customer)
        if charged and charged <= 2 * UNSIGNED_MAX:
            with contextlib.suppress(StaleVoucherError):
                await Escrows(pool).add_voucher(escrow_id, voucher(charged))
        await asyncio.sleep(0.005)


async def test_competing_processes_never_use_more_unsigned_than_the_bound(database_url: str) -> None:
    async with open_pool(database_url, application="test") as pool:
        customer, escrow_id = await open_escrow(pool)
        children = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.spending_process", database_url, str(customer), str(REQUESTS), str(HELD),
                str(HELD), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
                preexec_fn=lambda: _LIBC.prctl(1, signal.SIGKILL),
            )
            for _ in range(PROCESSES)
        ]  # fmt: skip
        stopped = asyncio.Event()
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            for child in children:
                assert child.stdout is not None
                assert await child.stdout.readline() == b"ready\n"
            signing = group.create_task(sign_along(pool, customer, escrow_id, stopped))
            outputs = await asyncio.gather(*(child.communicate(b"go\n") for child in children))
            stopped.set()
        counts = [json.loads(output) for output, _ in outputs]
        served = sum(count["served"] for count in counts)
        async with acquired(pool) as connection:
            charged = await connection.fetchval(CHARGED, customer)
            exposure = await connection.fetchval(EXPOSURE, customer)
        assert charged == served * HELD
        assert served >= UNSIGNED_MAX // HELD
        assert exposure <= UNSIGNED_MAX
        assert signing.done()
        async with connect(database_url, application="test") as connection:
            assert await broken_invariants(connection) == []
