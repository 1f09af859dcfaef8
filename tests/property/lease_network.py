"""What the lease machine drives: processes with leased ledgers on one real database, and ways to hurt them."""

import asyncio
import collections
import collections.abc
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec
from hypothesis import strategies as st

from billing.lease_book import LeaseTerms
from billing.lease_store import JournalRow, LeaseAnswer, LeaseChange
from billing.leases import LeasedLedger
from billing.ports import BillingError, Hold, HoldRequest, LedgerUnavailableError, Outcome, Posted, Settlement
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool, connect, open_pool
from cocoon.clock import SystemClock
from cocoon.money import Price
from tests.ledger_values import DICE

PROCESSES = 3
CUSTOMERS = [uuid.UUID(int=0xC0 + n) for n in range(2)]
STRANGER = uuid.UUID(int=0xFF)
WORKERS = [uuid.UUID(int=0xA0 + n) for n in range(2)]
TERMS = LeaseTerms(
    headroom_min_nano=4, headroom_max_nano=40, recall_s_max=0.5, contended_s=0.05, ttl_s=60, margin_s=5, idle_s=10
)
PRICES = [
    Price(version=1, prompt=333_333, cached=33_333, completion=777_777, share_bps=9_500),
    Price(version=2, prompt=1_000_001, cached=0, completion=2_500_000, share_bps=3_333),
    Price(version=4, prompt=333_333, cached=33_333, completion=777_777, share_bps=9_500, customer_bps=9_501),
    Price(version=5, prompt=1_000_001, cached=7, completion=2_500_000, share_bps=3_333, customer_bps=12_345),
]
SEEN: "collections.Counter[str]" = collections.Counter()
"""How often each call was answered in which way: a machine that never gets anywhere proves nothing."""

processes = st.integers(0, PROCESSES - 1)
picks = st.integers(0, 10**6)
wants = st.lists(
    st.tuples(processes, st.sampled_from([*CUSTOMERS, *CUSTOMERS, STRANGER]), st.integers(0, 50), st.integers(0, 30)),
    min_size=1,
    max_size=6,
)
ends = st.lists(
    st.tuples(
        picks,
        st.integers(0, 12),
        st.integers(0, 8),
        st.sampled_from([*WORKERS, None]),
        st.sampled_from(Outcome),
        st.sampled_from(PRICES),
    ),
    min_size=1,
    max_size=6,
)


class SkippingClock(SystemClock):
    """The system's clock, and leaps."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._skipped_s

    def skip(self, seconds: float) -> None:
        self._skipped_s += seconds


class DoubtfulLeases(PostgresLeases):
    """Commits, and then loses the answer, as a connection that is cut at COMMIT does: the next `doubts` times."""

    def __init__(self, pool: Pool, database_url: str) -> None:
        super().__init__(pool, database_url)
        self.doubts = 0
        self._resends: dict[str, object] = {}

    async def change(self, changes: Sequence[LeaseChange]) -> list[LeaseAnswer | BillingError]:
        answers = await super().change(changes)
        self._answer("change", list(changes))
        return answers

    async def flush(self, rows: Sequence[JournalRow]) -> list[Posted | BillingError]:
        if self.doubts:
            # The batch that is sent again may meet its first copy, which the server is still about to commit.
            answers, again = await asyncio.gather(super().flush(rows), super().flush(rows))
            assert _compared(answers) == _compared(again)
        else:
            answers = await super().flush(rows)
        self._answer("flush", list(rows))
        return answers

    def _answer(self, call: str, batch: object) -> None:
        sent = self._resends.pop(call, None)
        assert sent is None or sent == batch, "after a COMMIT in doubt the identical batch is sent again"
        if self.doubts:
            self.doubts -= 1
            SEEN.update([f"doubt: {call}"])
            self._resends[call] = batch
            raise LedgerUnavailableError("COMMIT in doubt")


def _compared(answers: Sequence[Posted | BillingError]) -> list[Posted | type[BillingError]]:
    """Errors are equal when they are of one kind."""
    return [type(answer) if isinstance(answer, BillingError) else answer for answer in answers]


class Process:
    """One gateway process: its ledger, its clock, and a way to die without a word."""

    def __init__(self, pool: Pool, database_url: str) -> None:
        self.holder = f"process/{uuid.uuid4()}"
        self.clock = SkippingClock()
        self.store = DoubtfulLeases(pool, database_url)
        self.ledger = LeasedLedger(
            PostgresLedger(pool), self.store, self.clock, DICE, holder=self.holder, terms=TERMS, linger_s=0
        )
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def ready(self) -> "Process":
        await self._ready.wait()
        return self

    async def leave(self) -> None:
        self._stop.set()
        await self._task

    async def crash(self) -> None:
        for task in self.ledger._tasks.values():
            task.cancel()
        await asyncio.wait(self.ledger._tasks.values())
        self._stop.set()
        await self._task

    async def _live(self) -> None:
        async with self.ledger:
            self._ready.set()
            await self._stop.wait()


class Promise(msgspec.Struct):
    """A hold as the model sees it; `process` None when its process is dead.

    `contested`: charged from a receipt, while its own process may think otherwise.
    """

    request: HoldRequest
    hold: Hold
    process: Process | None
    ended: Settlement | None = None
    posted: Posted | None = None
    open: bool = True
    contested: bool = False


class Network:
    """The database and its processes. Entered and left in one task."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self.opened = asyncio.Event()
        self.leaving = asyncio.Event()
        self.processes: list[Process] = []
        self.pool: Pool
        self.connection: Connection
        self.dead: list[str] = []

    async def serve(self) -> None:
        async with AsyncExitStack() as stack:
            self.pool = await stack.enter_async_context(
                open_pool(self._database_url, application="test", connections_max=16)
            )
            self.connection = await stack.enter_async_context(connect(self._database_url, application="test"))
            self.processes = [await self.start() for _ in range(PROCESSES)]
            self.opened.set()
            await self.leaving.wait()
            for process in self.processes:
                await process.leave()

    async def start(self) -> Process:
        return await Process(self.pool, self._database_url).ready()

    async def crash(self, number: int) -> Process:
        victim = self.processes[number]
        await victim.crash()
        self.dead.append(victim.holder)
        self.processes[number] = await self.start()
        return victim


async def answered(call: "asyncio.Future[object] | collections.abc.Coroutine[None, None, object]") -> object:
    try:
        answer = await call
    except BillingError as error:
        answer = error
    return answer
