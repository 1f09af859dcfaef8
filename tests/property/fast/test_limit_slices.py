"""Processes that share limits, against what the limits allow, in simulated time.

Each round, simulated processes try requests, exchange or not, die, lose the store or make it forget. Whatever they do:
within any window no more passes than the limit, what drips in, and one slice for each process; what is out at once and
what is spent never exceeds its limit; and in the end nothing is held by anybody.
"""

import asyncio
import datetime as dt
import random
from collections import defaultdict
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.clock import ManualClock
from gateway.auth import Principal
from gateway.limiter import LimitTerms, SlicedLimiter
from gateway.limits import PERIOD_S, LimitsUnknownError, RateLimitedError
from gateway.memory_slices import InMemorySlices, SharedLimits
from gateway.permits import SlicedPermit
from gateway.slices import Ask, Exchanged, SlicesUnavailableError, SpendAsk
from tests.limit_values import Caller, a_limiter, a_principal

PROCESSES = 3
SILENT_S_MAX = 1.0
"""Between exchanges of a process that only waits: well below the life of a permit without one."""
NEVER = LimitTerms(wait_s=3600.0)
"""Waiting ends with an exchange, never by the real clock."""


class CutStore:
    """Shared limits behind a line that may be cut."""

    def __init__(self, network: "Network", process: str) -> None:
        self._store = InMemorySlices(network.shared, process)
        self._network = network

    async def exchange(self, generation: str, asks: Sequence[Ask]) -> Exchanged:
        if self._network.down:
            raise SlicesUnavailableError
        return await self._store.exchange(generation, asks)

    async def close(self) -> None:
        await self._store.close()


class Books:
    """What was charged, as the database would say."""

    def __init__(self) -> None:
        self.charged: defaultdict[dt.date, int] = defaultdict(int)

    async def spent(self, asks: Sequence[SpendAsk]) -> list[int]:
        return [sum(nano for day, nano in self.charged.items() if ask.first_day <= day <= ask.last_day) for ask in asks]


class Network:
    """Processes around one store, one key and a clock."""

    def __init__(self, principal: Principal, *, grace_s: float = 0.0) -> None:
        self.clock = ManualClock()
        self.shared = SharedLimits(self.clock, grace_s=grace_s)
        self.books = Books()
        self.down = False
        self.principal = principal
        self.admitted: list[tuple[float, int]] = []
        self.running: list[tuple[int, SlicedPermit, int, int]] = []
        self.waiting: list[tuple[int, asyncio.Task[SlicedPermit], int, int]] = []
        self.names: list[str] = []
        self.dead: set[str] = set()
        self.limiters = [self.start() for _ in range(PROCESSES)]
        self.current = list(self.names)

    def start(self) -> SlicedLimiter:
        self.names.append(f"p{len(self.names)}")
        store = CutStore(self, self.names[-1])
        return a_limiter(store, self.clock, self.books, terms=NEVER, processes=PROCESSES)

    async def kill(self, process: int) -> None:
        for number, task, _, _ in self.waiting:
            if number == process:
                task.cancel()
        await settle()
        self.waiting = [one for one in self.waiting if one[0] != process]
        self.running = [one for one in self.running if one[0] != process]
        self.dead.add(self.current[process])
        self.limiters[process] = self.start()
        self.current[process] = self.names[-1]

    async def ask(self, process: int, tokens: int, nano: int) -> None:
        caller = Caller(self.limiters[process], self.principal, self.clock)
        task = asyncio.ensure_future(caller.acquire(tokens, nano))
        self.waiting.append((process, task, tokens, nano))
        await self.collect()

    async def exchange(self, process: int) -> None:
        await self.limiters[process].read_books()
        await self.limiters[process].exchange()
        await self.collect()

    async def collect(self) -> None:
        """Note who was admitted by now."""
        await settle()
        left: list[tuple[int, asyncio.Task[SlicedPermit], int, int]] = []
        for process, task, tokens, nano in self.waiting:
            if not task.done():
                left.append((process, task, tokens, nano))
            elif not task.cancelled() and task.exception() is None:
                self.admitted.append((self.clock.monotonic(), tokens))
                self.running.append((process, task.result(), tokens, nano))
            elif not task.cancelled():
                assert isinstance(task.exception(), RateLimitedError | LimitsUnknownError)
        self.waiting = left

    def end(self, index: int, tokens_used: int, charge: int, *, booked: bool = True) -> None:
        """One request is over; its charge is booked at once or never."""
        _, permit, _, nano = self.running.pop(index % len(self.running))
        charge = min(charge, nano)
        permit.release(tokens_used, charge)
        if booked:
            self.books.charged[self.clock.now().date()] += charge
        permit.settled()

    async def finish(self) -> None:
        """Everybody goes home; then nothing may be out."""
        self.down = False
        for _, task, _, _ in self.waiting:
            task.cancel()
        await self.collect()
        while self.running:
            self.end(0, 0, 0)
        for _ in range(3):
            self.clock.advance(1.0)
            for process in range(PROCESSES):
                await self.exchange(process)
        for limiter in self.limiters:
            await limiter.close()
            for budget in limiter._gates.budgets():
                assert budget.resting, (budget.name, budget.spare)
        for stock in self.shared._stocks.values():
            assert set(stock.of) <= self.dead


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def most_above_the_line(admitted: list[tuple[float, int]], limit: int, costs: bool) -> float:
    """The most by which any window exceeds a full bucket and what drips in."""
    worst = 0.0
    for first, (start, _) in enumerate(admitted):
        total = 0
        for end, tokens in admitted[first:]:
            total += min(tokens, limit) if costs else 1
            worst = max(worst, total - limit - (end - start) * limit / PERIOD_S)
    return worst


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "burst", "exchange", "exchange", "end", "wait", "kill", "down", "up"]),
        st.integers(0, PROCESSES - 1),
        st.integers(1, 60),
    ),
    max_size=60,
)


async def walk(network: Network, moves: list[tuple[str, int, int]], dice: random.Random) -> None:
    everybody = range(PROCESSES)
    for move, process, size in moves:
        network.clock.advance(dice.choice([0.0, 0.001, 0.03]))
        if move in {"ask", "burst"}:
            for _ in range(size if move == "burst" else 1):
                await network.ask(process, size, size * 10)
        elif move == "end" and network.running:
            network.end(size, size, size * 5)
        elif move == "kill":
            await network.kill(process)
        elif move in {"exchange", "wait", "down", "up"}:
            network.down = move == "down" or (network.down and move != "up")
            left_s = {"exchange": 0.1, "wait": size / 4}.get(move, 0.0)
            while True:
                # Nobody who lives is silent for long: what a process holds would be taken for a dead one's.
                network.clock.advance(min(left_s, SILENT_S_MAX))
                left_s -= SILENT_S_MAX
                for number in [process] if move == "exchange" else everybody:
                    await network.exchange(number)
                if left_s <= 0:
                    break


@settings(max_examples=40)
@given(limit=st.sampled_from([1, 7, 19, 20, 60, 200, 1000]), moves=steps, seed=st.integers(0, 99))
def test_no_window_brings_more_requests_than_the_limit_and_a_slice_for_each_process(
    limit: int, moves: list[tuple[str, int, int]], seed: int
) -> None:
    async def run() -> None:
        network = Network(a_principal(requests_per_min=limit))
        await walk(network, moves, random.Random(seed))
        deaths = sum(move == "kill" for move, _, _ in moves)
        outages = sum(move == "down" for move, _, _ in moves)
        slices = PROCESSES * (1 + outages) + deaths
        assert most_above_the_line(network.admitted, limit, costs=False) <= slices * max(1, limit // 20) + 1e-3
        await network.finish()

    asyncio.run(run())


@settings(max_examples=40)
@given(limit=st.sampled_from([1, 3, 19, 40, 200]), moves=steps, seed=st.integers(0, 99))
def test_no_more_requests_run_at_once_than_allowed_unless_the_store_is_away(
    limit: int, moves: list[tuple[str, int, int]], seed: int
) -> None:
    async def run() -> None:
        network = Network(a_principal(concurrency_max=limit))
        outages = 0
        for move in moves:
            outages += move[0] == "down"
            await walk(network, [move], random.Random(seed))
            assert len(network.running) <= limit + PROCESSES * outages * max(1, limit // 20)
        await network.finish()

    asyncio.run(run())


@settings(max_examples=40)
@given(limit=st.sampled_from([50, 600, 5000, 10**9]), moves=steps, seed=st.integers(0, 99))
def test_charges_and_the_worst_case_of_what_runs_stay_within_the_limit_unless_the_store_is_away(
    limit: int, moves: list[tuple[str, int, int]], seed: int
) -> None:
    async def run() -> None:
        network = Network(a_principal(spend_day_nano_max=limit, project={"spend_month_nano_max": 2 * limit}))
        outages = 0
        for move in moves:
            outages += move[0] == "down"
            await walk(network, [move], random.Random(seed))
            charged = network.books.charged[network.clock.now().date()]
            in_flight = sum(nano for _, _, _, nano in network.running)
            assert charged + in_flight <= limit + PROCESSES * outages * max(1, limit // 20)
        await network.finish()

    asyncio.run(run())


@settings(max_examples=40)
@given(limit=st.sampled_from([20, 100, 4000, 10**6]), moves=steps, seed=st.integers(0, 99))
def test_tokens_are_counted_by_their_estimate_and_corrected_in_the_end(
    limit: int, moves: list[tuple[str, int, int]], seed: int
) -> None:
    """What comes back is what was not used: the bucket in the end holds exactly what the requests used."""

    async def run() -> None:
        network = Network(a_principal(tokens_per_min=limit))
        used = 0
        for number, (_, process, size) in enumerate(moves):
            await network.ask(process, size, 0)
            await network.exchange(process)
            if network.running and number % 2:
                used += size // 3
                network.end(size, size // 3, 0)
        while network.running:
            network.end(0, 1, 0)
            used += 1
        for _ in range(8):
            for process in range(PROCESSES):
                network.limiters[process]._ticked_at = -1.0
                for budget in network.limiters[process]._gates.budgets():
                    budget.asked_at, budget.demand = -1.0, 0
                await network.exchange(process)
        [bucket] = network.shared._buckets.values()
        left = (bucket.full_at - network.clock.monotonic()) * limit / PERIOD_S
        assert abs(max(left, 0.0) - used) <= 1e-3 * PROCESSES + 1e-6 * limit
        await network.finish()

    if moves:
        asyncio.run(run())


@settings(max_examples=40)
@given(limit=st.sampled_from([20, 100, 1000]), before=steps, after=steps, seed=st.integers(0, 99))
def test_a_store_that_forgets_lets_no_more_through_than_a_slice_and_one_for_each_process(
    limit: int, before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], seed: int
) -> None:
    async def run() -> None:
        network = Network(a_principal(requests_per_min=limit, concurrency_max=limit), grace_s=2.0)
        dice = random.Random(seed)
        harmless = {"ask", "burst", "exchange"}
        await walk(network, [move for move in before if move[0] in harmless], dice)
        network.shared.forget()
        for process in range(PROCESSES):
            # Whoever it is that comes first; within the grace everybody comes.
            if dice.random() < 0.7:
                await network.ask(process, 1, 1)
            await network.exchange(process)
        await walk(network, [move for move in after if move[0] in harmless], dice)
        slices = 2 * PROCESSES + 1
        assert most_above_the_line(network.admitted, limit, costs=False) <= slices * max(1, limit // 20) + 1e-3
        # One slice in all goes out before the processes have said what they hold, which they keep.
        assert len(network.running) <= limit + max(1, limit // 20)
        await network.finish()

    asyncio.run(run())
