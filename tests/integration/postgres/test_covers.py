"""Covers in Postgres: shared by processes, never more than a stake has, and counted for as long as they can be used."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Sequence

import pytest

from billing.ports import LedgerUnavailableError
from billing.postgres.covers import MARKS_PER_WINDOW, Covers, list_exposures
from billing.postgres.pool import Connection, Pool
from billing.stakes import CoverRequest, CoverTerms, Headroom, StakeState
from cocoon.clock import ManualClock
from gateway.stakes import Stakes
from tests.cover_values import ACCOUNT, ADDRESS, BOND_NANO, WORKER, age, bond, earn
from tests.unit.workers.worker_values import MODEL, a_worker, beat_all
from workers.covers import Cover
from workers.errors import CoverMissedError, NoWorkerError, WorkersBusyError
from workers.registry import Registry
from workers.routing import Dispatch, DispatchOutcome, Router

TERMS = CoverTerms(ttl_s=30.0, linger_s=60.0, window_s=640.0)
OTHER = uuid.UUID(int=10)


def holder(pool: Pool, number: int = 1) -> Covers:
    return Covers(pool, uuid.UUID(int=number), TERMS)


async def granted(store: Covers, *, used: int = 0, kept: int = 0, wanted: int = 0) -> int:
    return (await store.claim([CoverRequest(ADDRESS, used, max(kept, used), wanted)]))[ADDRESS]


async def test_processes_that_claim_at_once_share_one_stake_and_no_more(pool: Pool, connection: Connection) -> None:
    await bond(connection)
    for _ in range(10):
        claims = [granted(holder(pool, number), wanted=BOND_NANO // 3) for number in range(1, 9)]
        amounts = await asyncio.gather(*claims)
        assert sum(amounts) <= BOND_NANO
        assert sorted(amounts)[-3:] == [BOND_NANO // 3] * 3
        await connection.execute("DELETE FROM stake_covers")


async def test_who_wants_nothing_holds_an_eighth_of_what_is_free(pool: Pool, connection: Connection) -> None:
    await bond(connection)
    one, two = holder(pool, 1), holder(pool, 2)

    assert await granted(one) == BOND_NANO // 8
    assert await granted(two) == (BOND_NANO - BOND_NANO // 8) // 8
    assert await granted(one, used=100, wanted=5_000) == 5_100


async def test_what_is_used_is_always_on_record_whatever_is_left_of_the_stake(
    pool: Pool, connection: Connection
) -> None:
    await bond(connection)
    one = holder(pool)
    await granted(one, wanted=8_000)
    await bond(connection, 3_000)

    assert await granted(one, used=8_000, wanted=1) == 8_000
    assert await granted(holder(pool, 2), wanted=1) == 0


async def test_what_is_kept_until_the_answer_comes_counts_against_others(pool: Pool, connection: Connection) -> None:
    await bond(connection)
    one, two = holder(pool, 1), holder(pool, 2)
    assert await granted(one, wanted=8_000) == 8_000

    # The answer is less than what it may still use before it hears so.
    assert await granted(one, kept=8_000) == BOND_NANO // 8
    assert await granted(two, wanted=BOND_NANO) == 2_000
    await granted(one, kept=BOND_NANO // 8)
    assert await granted(two, wanted=BOND_NANO) == BOND_NANO - BOND_NANO // 8


async def test_a_claim_that_arrives_after_a_later_one_changes_nothing(pool: Pool, connection: Connection) -> None:
    await bond(connection)
    late, on_time = holder(pool), holder(pool)
    await granted(on_time, wanted=1)
    assert await granted(on_time, used=5_000, wanted=1) > 5_000

    assert await late.claim([CoverRequest(ADDRESS, 0, 0, 0)]) == {}
    assert await granted(holder(pool, 2), wanted=BOND_NANO) < 5_000


async def test_a_dead_process_counts_until_its_tickets_are_over(pool: Pool, connection: Connection) -> None:
    await bond(connection)
    await granted(holder(pool, 1), wanted=BOND_NANO)
    two = holder(pool, 2)
    assert await granted(two, wanted=1) == 0
    # Real time passes as well, more of it on a busy machine: half of the time is left for that.
    await age(connection, (TERMS.ttl_s + TERMS.linger_s) / 2)
    assert await granted(two, wanted=1) == 0
    await age(connection, (TERMS.ttl_s + TERMS.linger_s) / 2)

    assert await granted(two, wanted=BOND_NANO) == BOND_NANO


async def test_earnings_are_exposed_for_the_window_and_marks_do_not_pile_up(pool: Pool, connection: Connection) -> None:
    await bond(connection)
    await earn(connection, 123_456)
    one = holder(pool)
    # What was earned before anything was dispatched against the stake is not held against it.
    assert await granted(one, wanted=BOND_NANO) == BOND_NANO
    await earn(connection, 4_000)
    assert await granted(one, wanted=BOND_NANO) == 6_000

    step = TERMS.window_s / MARKS_PER_WINDOW
    for passed in range(1, 3 * MARKS_PER_WINDOW):
        await age(connection, step)
        amount = await granted(one, wanted=BOND_NANO)
        # As above: real time may take its earnings out of the window a little earlier than this count of it.
        if passed * step < TERMS.window_s / 2:
            assert amount == 6_000
        if passed * step > TERMS.window_s + 2 * step:
            assert amount == BOND_NANO
    [row] = await connection.fetch("SELECT count(*) AS marks FROM stake_earnings")
    assert row["marks"] <= MARKS_PER_WINDOW + 2


async def test_where_nobody_marked_for_long_more_is_exposed_and_never_less(pool: Pool, connection: Connection) -> None:
    await bond(connection)
    one = holder(pool)
    await granted(one, wanted=1)
    await earn(connection, 4_000)
    await age(connection, 10 * TERMS.window_s)

    assert await granted(one, wanted=BOND_NANO) == 6_000


async def test_a_stake_that_another_worker_takes_over_keeps_what_was_earned_under_it(
    pool: Pool, connection: Connection
) -> None:
    await bond(connection)
    one = holder(pool)
    await granted(one)
    await earn(connection, 4_000)
    await granted(one)
    await age(connection, TERMS.window_s / MARKS_PER_WINDOW)
    await granted(one)
    await earn(connection, 500_000, OTHER)
    await bond(connection, worker=OTHER)

    assert await granted(one, wanted=BOND_NANO) == 6_000
    await earn(connection, 1_000, OTHER)
    assert await granted(one, wanted=BOND_NANO) == 5_000


@pytest.mark.parametrize("state", ["registered", "slashed", "refused"])
async def test_a_stake_that_does_not_live_covers_nothing(pool: Pool, connection: Connection, state: str) -> None:
    await bond(connection, state=state)

    assert await granted(holder(pool), wanted=BOND_NANO) == 0


async def test_a_stake_covers_nothing_from_the_moment_that_evidence_against_it_is_kept(
    pool: Pool, connection: Connection
) -> None:
    await bond(connection)
    one = holder(pool)
    await connection.execute(
        "INSERT INTO slash_evidence (stake, worker_id, kind, slot, job_id, attempt, evidence)"
        " VALUES ($1, $2, 'equivocation', $3, $2, 0, '')",
        ADDRESS, WORKER, bytes(40),
    )  # fmt: skip
    assert await granted(one, wanted=BOND_NANO) == 0
    for state, covered in (("too_late", 0), ("refused", BOND_NANO)):
        await connection.execute("UPDATE slash_evidence SET state = $1, closed_at = now()", state)
        assert await granted(one, wanted=BOND_NANO) == covered


async def test_a_stake_that_nobody_has_looked_at_for_as_long_as_unbonding_takes_covers_nothing(
    pool: Pool, connection: Connection
) -> None:
    await bond(connection, unbond_s=600)
    await connection.execute("UPDATE stakes SET seen_at = seen_at - interval '601 seconds'")

    assert await granted(holder(pool), wanted=BOND_NANO) == 0


class Process:
    """A gateway process: a registry with one staked worker, a router, and covers."""

    def __init__(self, pool: Pool, clock: ManualClock, number: int) -> None:
        self.registry = Registry(clock)
        self.registry.replace_enrolments([a_worker(clock, WORKER.int, capacity=1_000, stake=ACCOUNT)])
        beat_all(self.registry, clock, 1_000)
        self.store = Flaky(pool, uuid.UUID(int=number), TERMS)
        self.stakes = Stakes(self.store, self.registry, clock, TERMS, unit_nano=1_000)
        self.router = Router(self.registry, clock, random.Random(number), staked=True)
        self.held: list[Dispatch] = []

    @property
    def cover(self) -> Cover:
        [member] = self.registry.members()
        assert member.cover is not None
        return member.cover

    def fill(self, nano: int = 100) -> int:
        """Dispatch until there is no room; how many."""
        before = len(self.held)
        with contextlib.suppress(NoWorkerError, WorkersBusyError):
            while True:
                self.held.append(self.router.choose(MODEL, exposed_nano=nano))
        return len(self.held) - before

    def end(self, earned_nano: int) -> None:
        dispatch = self.held.pop()
        dispatch.finish(DispatchOutcome.OK)
        dispatch.uncover(earned_nano)


class Flaky(Covers):
    """A store whose database can be away."""

    away = False

    async def headrooms(self, addresses: Sequence[str]) -> list[Headroom]:
        if self.away:
            raise LedgerUnavailableError
        return await super().headrooms(addresses)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def use_up(processes: list[Process]) -> None:
    """Let every process dispatch what it can and claim more at once, until none gets any more."""
    quiet = 0
    while quiet < 3:
        await asyncio.gather(*(process.stakes.refresh() for process in processes))
        quiet = 0 if sum(process.fill() for process in processes) else quiet + 1


async def test_two_processes_use_a_stake_up_together_and_never_pass_it(
    pool: Pool, connection: Connection, clock: ManualClock
) -> None:
    await bond(connection)
    one, two = Process(pool, clock, 1), Process(pool, clock, 2)
    await use_up([one, two])

    assert len(one.held) + len(two.held) == BOND_NANO // 100
    assert one.cover.units == 10.0
    # What one of them gives back unearned, either can use; what is earned, none.
    for _ in range(10):
        await earn(connection, 40)
        one.end(40)
    await use_up([one, two])
    assert 100 * (len(one.held) + len(two.held)) + 400 <= BOND_NANO
    assert len(one.held) + len(two.held) == BOND_NANO // 100 - 4


async def test_an_unbonding_worker_gets_no_more_than_is_still_bonded_as_of_the_last_block(
    pool: Pool, connection: Connection, clock: ManualClock
) -> None:
    await bond(connection)
    one = Process(pool, clock, 1)
    await use_up([one])
    for _ in range(len(one.held)):
        one.end(0)
    await bond(connection, 250)
    await one.stakes.refresh()
    await use_up([one])
    assert len(one.held) == 2
    assert one.cover.units == 0.25
    for _ in range(2):
        one.end(0)
    await bond(connection, 0)
    await one.stakes.refresh()

    with pytest.raises(NoWorkerError):
        Router(one.registry, clock, random.Random(1), staked=True).choose(MODEL)


async def test_a_slashed_worker_gets_nothing(pool: Pool, connection: Connection, clock: ManualClock) -> None:
    await bond(connection)
    one = Process(pool, clock, 1)
    await use_up([one])
    await bond(connection, 0, state="slashed")
    await one.stakes.refresh()

    with pytest.raises(NoWorkerError):
        one.router.choose(MODEL, exposed_nano=0)
    assert one.registry.models() == {MODEL: 0}
    # What was under way comes back as ever.
    while one.held:
        one.end(0)


async def test_without_the_database_a_grant_holds_for_its_time_and_then_nothing_is_dispatched(
    pool: Pool, connection: Connection, clock: ManualClock
) -> None:
    await bond(connection)
    one = Process(pool, clock, 1)
    await one.stakes.refresh()
    one.store.away = True
    clock.advance(20)
    beat_all(one.registry, clock, 1_000)
    with pytest.raises(LedgerUnavailableError):
        await one.stakes.refresh()
    assert one.fill() == BOND_NANO // 8 // 100
    one.end(0)
    clock.advance(10)
    beat_all(one.registry, clock, 1_000)
    with pytest.raises(WorkersBusyError):
        one.router.choose(MODEL, exposed_nano=1)
    one.store.away = False
    await one.stakes.refresh()

    assert one.fill() > 0


async def test_who_misses_a_cover_has_more_of_it_claimed_at_once(
    pool: Pool, connection: Connection, clock: ManualClock
) -> None:
    await bond(connection)
    one = Process(pool, clock, 1)
    running = asyncio.ensure_future(one.stakes.run())
    await one.stakes.loaded.wait()
    for asked in (BOND_NANO // 2, BOND_NANO // 2):
        with pytest.raises(CoverMissedError):
            one.router.choose(MODEL, exposed_nano=asked)
        await one.stakes.claim_now()
        one.held.append(one.router.choose(MODEL, exposed_nano=asked))
    # Nobody waits for a database that is away, nor for more than a stake has.
    one.store.away = True
    await one.stakes.claim_now()
    one.store.away = False
    with pytest.raises(CoverMissedError):
        one.router.choose(MODEL, exposed_nano=1)
    running.cancel()
    await asyncio.wait({running})


async def test_a_process_that_stops_gives_back_what_it_does_not_use(
    pool: Pool, connection: Connection, clock: ManualClock
) -> None:
    await bond(connection)
    one = Process(pool, clock, 1)
    await use_up([one])
    # A settlement that never became durable keeps its cover: its ticket may come back as a receipt.
    await one.stakes.close()
    two = holder(pool, 2)
    assert await granted(two, wanted=BOND_NANO) == 0
    while one.held:
        one.end(0)
    await one.stakes.close()

    assert await granted(two, wanted=BOND_NANO) == BOND_NANO


async def test_exposures_can_be_read(pool: Pool, connection: Connection, clock: ManualClock) -> None:
    await bond(connection)
    one = Process(pool, clock, 1)
    await one.stakes.refresh()
    await earn(connection, 700)
    [seen] = await list_exposures(pool, TERMS.window_s)

    assert (seen.address, seen.worker_id, seen.state) == (ADDRESS, WORKER, StakeState.LIVE)
    assert (seen.bond_nano, seen.headroom_nano) == (BOND_NANO, BOND_NANO)
    assert (seen.earned_nano, seen.covered_nano) == (700, BOND_NANO // 8)
