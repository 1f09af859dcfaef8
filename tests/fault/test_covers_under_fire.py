"""Stakes shared by processes that claim at once, lose answers, die and come back: what is exposed is always covered.

Processes are real `Cover`s on the real statements; time passes by making rows older and moving the processes' clocks.
Seeded programs, so that a failure can be run again.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator

import pytest

from billing.postgres.covers import Covers
from billing.postgres.pool import Connection, Pool, connect, open_pool
from billing.stakes import CoverRequest, CoverTerms
from tests.cover_values import ACCOUNT, ADDRESS, BOND_NANO, WORKER, age, bond, earn
from workers.covers import Cover, CoverClaim

TERMS = CoverTerms(ttl_s=30.0, linger_s=60.0, window_s=64.0)
STEPS = 300
CHANCES = {"fill": 4, "settle": 4, "ask": 4, "hear": 4, "all": 2, "lose": 1, "die": 1, "wait": 3}


class Process:
    """One gateway process: a cover, its requests, and a claim whose answer may be on its way."""

    def __init__(self, pool: Pool, number: int) -> None:
        self.cover = Cover(ACCOUNT, WORKER)
        self.store = Covers(pool, uuid.UUID(int=number), TERMS)
        self.flying: list[int] = []
        self.pending: tuple[CoverClaim, float, int] | None = None

    async def ask(self, now: float) -> None:
        """Send a claim; what comes back is kept until `hear`, or lost."""
        claim = self.cover.claim(now)
        granted = await self.store.claim([CoverRequest(ADDRESS, claim.used_nano, claim.kept_nano, claim.wanted_nano)])
        self.pending = claim, now, granted[ADDRESS]

    def hear(self) -> None:
        if self.pending is not None:
            claim, sent, granted = self.pending
            self.cover.answered(claim, granted, renews_at=sent + 10.0, ends_at=sent + TERMS.ttl_s * 0.9)
        self.pending = None


class Network:
    """The truth about one stake, beside what processes and database believe."""

    def __init__(self, pool: Pool, connection: Connection, seed: int) -> None:
        self.pool = pool
        self.connection = connection
        self.rng = random.Random(seed)
        self.now = 0.0
        self.count = 0
        self.processes = [self.start() for _ in range(2)]
        self.dead: list[tuple[float, int]] = []
        self.earned: list[tuple[float, int]] = []
        self.dispatched = 0

    def start(self) -> Process:
        self.count += 1
        return Process(self.pool, self.count)

    @property
    def exposed_nano(self) -> int:
        """In flight at living processes and at dead ones while their tickets hold, and what was earned of late."""
        flying = sum(sum(process.flying) for process in self.processes)
        lost = sum(nano for died, nano in self.dead if self.now < died + TERMS.linger_s)
        return flying + lost + sum(nano for at, nano in self.earned if self.now <= at + TERMS.window_s)

    async def step(self) -> None:
        process = self.rng.choice(self.processes)
        [chance] = self.rng.choices(list(CHANCES), list(CHANCES.values()))
        match chance:
            case "fill":
                self.fill(process)
            case "settle":
                await self.settle_some(process, self.rng.randrange(len(process.flying) + 1))
            case "ask" if process.pending is None:
                await process.ask(self.now)
            case "all":
                await self.ask_all()
            case "hear":
                process.hear()
            case "lose":
                process.pending = None
            case "die":
                self.dead.append((self.now, sum(process.flying)))
                self.processes[self.processes.index(process)] = self.start()
            case "wait":
                await self.wait(self.rng.choice([1.0, 10.0, 40.0, 70.0, 100.0]))
            case _:
                pass

    def fill(self, process: Process) -> None:
        """Dispatch as much as it has room for, and ask for more."""
        while room_nano := process.cover.room_nano(self.now):
            nano = self.rng.randrange(room_nano // 2, room_nano) + 1
            process.cover.take(nano)
            process.flying.append(nano)
            self.dispatched += 1
        assert self.exposed_nano <= BOND_NANO
        process.cover.miss(self.rng.choice([1, BOND_NANO // 4, BOND_NANO]))

    async def ask_all(self) -> None:
        """Everybody claims in the same moment, and hears."""
        await asyncio.gather(*(process.ask(self.now) for process in self.processes if process.pending is None))
        for process in self.processes:
            process.hear()

    async def settle_some(self, process: Process, count: int) -> None:
        for _ in range(count):
            await self.settle(process)

    async def settle(self, process: Process) -> None:
        nano = process.flying.pop(self.rng.randrange(len(process.flying)))
        earned = self.rng.choice([0, 0, nano // 4, nano])
        if earned:
            await earn(self.connection, earned)
            self.earned.append((self.now, earned))
        process.cover.put_back(nano, earned)

    async def wait(self, seconds: float) -> None:
        # Nobody's request takes longer than a dead process's claim counts.
        for process in self.processes:
            if seconds > 20.0:
                await self.settle_some(process, len(process.flying))
        self.now += seconds
        await age(self.connection, seconds)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url, application="test") as opened:
        yield opened


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with connect(database_url, application="test") as opened:
        await bond(opened)
        yield opened


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_exposed_is_covered_whatever_happens_to_processes(
    pool: Pool, connection: Connection, seed: int
) -> None:
    network = Network(pool, connection, seed)
    for _ in range(STEPS):
        await network.step()
    assert network.dispatched > 0

    # And when all is over, the whole stake is there again.
    for process in network.processes:
        await network.settle_some(process, len(process.flying))
    await network.wait(TERMS.ttl_s + TERMS.linger_s)
    last = network.start()
    await last.ask(network.now)
    await network.wait(2 * TERMS.window_s)
    last.pending = None
    last.cover.miss(BOND_NANO)
    await last.ask(network.now)
    last.hear()
    assert last.cover.room_nano(network.now) == BOND_NANO
