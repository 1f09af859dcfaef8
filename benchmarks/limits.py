"""What limits cost a request: admission and release in memory, and an exchange with Redis.

    python -m benchmarks.limits [--count 50000]

Admission is measured on slices in memory with the exchange running, so that nothing but our own code counts. Limits are
large enough that slices stay warm. Redis is the one of `make dev`, on loopback.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from cli.dev.redis import EmbeddedRedis
from cocoon.clock import SystemClock
from cocoon.ids import new_job_id
from gateway.auth import Principal, Project
from gateway.limiter import SlicedLimiter
from gateway.memory_slices import InMemorySlices, InMemorySpend, SharedLimits
from gateway.redis.slices import RedisSlices
from gateway.slices import FlowAsk

CLOCK = SystemClock()
DICE = random.Random(7)
ROUNDS = 5
LARGE = 10**9
KEY = {"requests_per_min": LARGE, "tokens_per_min": 10**12, "concurrency_max": 10**5}
SPEND = {"spend_day_nano_max": 10**15, "spend_month_nano_max": 10**15}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "no limits": ({}, None),
    "requests and tokens of the key": ({k: KEY[k] for k in ("requests_per_min", "tokens_per_min")}, None),
    "requests, tokens, concurrency of the key": (KEY, None),
    "all five limits of the key": (KEY | SPEND, None),
    "all five limits of key and project": (KEY | SPEND, KEY | SPEND),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=50_000)
    options = parser.parse_args()
    asyncio.run(measure_admission(options.count))
    with (
        tempfile.TemporaryDirectory(prefix="cocoon-bench-") as folder,
        EmbeddedRedis(Path(folder) / "redis", password="benchmark") as redis,
    ):
        asyncio.run(measure_exchanges(redis.url))


async def measure_admission(count: int) -> None:
    for name, (key, project) in CASES.items():
        principal = Principal(
            key_id=uuid.UUID(int=DICE.getrandbits(128)), customer_id=uuid.UUID(int=1), name="bench",
            project=Project(project_id=uuid.UUID(int=DICE.getrandbits(128)), **project) if project else None, **key,
        )  # fmt: skip
        limiter = SlicedLimiter(InMemorySlices(SharedLimits(CLOCK)), InMemorySpend(), CLOCK, DICE)
        running = asyncio.ensure_future(limiter.run())
        admitted: list[float] = []
        released: list[float] = []
        for _ in range(ROUNDS):
            jobs = [new_job_id(CLOCK, DICE) for _ in range(count // ROUNDS)]
            admitting = releasing = 0.0
            for first in range(0, len(jobs), 20):
                began = time.perf_counter()
                permits = [
                    await limiter.acquire(principal, job_id=job_id, tokens=900, nano=1000)
                    for job_id in jobs[first : first + 20]
                ]
                admitting += time.perf_counter() - began
                began = time.perf_counter()
                for permit in permits:
                    permit.release(100, 10)
                    permit.settled()
                releasing += time.perf_counter() - began
                await asyncio.sleep(0)
            admitted.append(admitting / len(jobs))
            released.append(releasing / len(jobs))
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        # The machine is shared: the best round is what our own code costs.
        say(name, f"{1e6 * min(admitted):.2f} us", f"and {1e6 * min(released):.2f} us at the end; target <= 5 us")


async def measure_exchanges(url: str) -> None:
    store = RedisSlices(url, "bench")
    generation = (await store.exchange("", [])).generation
    for budgets in (1, 20, 200, 1000):
        asks = [FlowAsk(f"{number}", LARGE, LARGE // 20, 0, 0, 1, 1, 100) for number in range(budgets)]
        took: list[float] = []
        for _ in range(50):
            began = time.perf_counter()
            await store.exchange(generation, asks)
            took.append(1e3 * (time.perf_counter() - began))
        say(f"exchange of {budgets} budgets", f"{statistics.median(took):.2f} ms", f"at most {max(took):.2f} ms")
    await store.close()


def say(what: str, figure: str, note: str = "") -> None:
    print(f"{what:<45} {figure:>12}  {note}")


if __name__ == "__main__":
    main()
