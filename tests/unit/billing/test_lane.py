"""Lanes: batches of whatever waits, and callers that vanish."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from billing.lane import Lane
from billing.ports import HoldClosedError, LedgerUnavailableError


class Store:
    """Answers a member with ten times its value, when it is let; 13 is refused."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.vanished: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def run(self, members: Sequence[int]) -> list[int | HoldClosedError]:
        self.batches.append(list(members))
        self.entered.set()
        await self.gate.wait()
        if 666 in members:
            raise RuntimeError("a bug")
        if 503 in members:
            raise LedgerUnavailableError
        return [HoldClosedError() if member == 13 else 10 * member for member in members]


@asynccontextmanager
async def running(lane: Lane[int, int]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(lane.serve())
        yield
        lane.close()


@pytest.fixture
def store() -> Store:
    return Store()


def lane_on(store: Store, *, batch_max: int = 10, queue_max: int = 10, undo: bool = True) -> Lane[int, int]:
    vanished: Callable[[int], None] | None = store.vanished.append if undo else None
    return Lane("test", store.run, batch_max=batch_max, queue_max=queue_max, vanished=vanished)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_lone_caller_does_not_wait_for_company(store: Store) -> None:
    lane = lane_on(store)
    async with running(lane):
        assert await lane.ask(1) == 10
    assert store.batches == [[1]]


async def test_what_waits_meanwhile_is_the_next_batch_up_to_the_maximum(store: Store) -> None:
    lane = lane_on(store, batch_max=3)
    store.gate.clear()
    async with running(lane), asyncio.TaskGroup() as group:
        tasks = [group.create_task(lane.ask(0))]
        await store.entered.wait()
        tasks += [group.create_task(lane.ask(n)) for n in range(1, 6)]
        await turns()
        store.gate.set()
    assert store.batches == [[0], [1, 2, 3], [4, 5]]
    assert [task.result() for task in tasks] == [0, 10, 20, 30, 40, 50]


async def test_a_refused_member_is_refused_alone(store: Store) -> None:
    lane = lane_on(store)
    async with running(lane):
        answers = await asyncio.gather(lane.ask(1), lane.ask(13), lane.ask(2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [int, HoldClosedError, int]


async def test_a_full_queue_refuses_at_once(store: Store) -> None:
    lane = lane_on(store, queue_max=2)
    store.gate.clear()
    async with running(lane), asyncio.TaskGroup() as group:
        group.create_task(lane.ask(0))
        await store.entered.wait()
        for n in (1, 2):
            group.create_task(lane.ask(n))
        await turns()
        with pytest.raises(LedgerUnavailableError):
            await lane.ask(3)
        assert not lane.leave(4)
        store.gate.set()
    assert store.batches == [[0], [1, 2]]


async def cancelled(task: "asyncio.Task[int]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_caller_that_vanishes_in_the_queue_is_not_started(store: Store) -> None:
    lane = lane_on(store)
    store.gate.clear()
    async with running(lane), asyncio.TaskGroup() as group:
        group.create_task(lane.ask(0))
        await store.entered.wait()
        late = group.create_task(lane.ask(1))
        await turns()
        await cancelled(late)
        store.gate.set()
    assert (store.batches, store.vanished) == ([[0]], [])


async def test_a_caller_that_vanishes_in_the_batch_is_undone(store: Store) -> None:
    lane = lane_on(store)
    store.gate.clear()
    async with running(lane), asyncio.TaskGroup() as group:
        for n in (1, 13):
            task = group.create_task(lane.ask(n))
            await store.entered.wait()
            await cancelled(task)
        store.gate.set()
    assert store.vanished == [1]  # 13 was refused: there is nothing to undo


async def test_a_caller_cancelled_in_the_turn_of_its_answer_is_undone(store: Store) -> None:
    lane = lane_on(store)
    store.gate.clear()
    async with running(lane), asyncio.TaskGroup() as group:
        task = group.create_task(lane.ask(1))
        await store.entered.wait()
        store.gate.set()
        answered = asyncio.get_running_loop().create_future()

        def watch() -> None:
            # Runs in every turn, so that the cancellation comes when the answer is set and not yet received.
            if lane_answer_is_set(task):
                task.cancel()
                answered.set_result(None)
            else:
                asyncio.get_running_loop().call_soon(watch)

        watch()
        await answered
        with pytest.raises(asyncio.CancelledError):
            await task
    assert store.vanished == [1]


def lane_answer_is_set(task: "asyncio.Task[int]") -> bool:
    waiter = getattr(task, "_fut_waiter")  # noqa: B009  private, and unknown to type checkers
    return waiter is not None and waiter.done()


async def test_members_that_must_run_do_so_without_their_callers(store: Store) -> None:
    lane = lane_on(store, undo=False)
    store.gate.clear()
    async with running(lane), asyncio.TaskGroup() as group:
        group.create_task(lane.ask(0))
        await store.entered.wait()
        late = group.create_task(lane.ask(1))
        await turns()
        await cancelled(late)
        store.gate.set()
    assert store.batches == [[0], [1]]


async def test_a_bug_with_one_member_ends_neither_the_lane_nor_its_neighbours(store: Store) -> None:
    lane = lane_on(store)
    async with running(lane):
        answers = await asyncio.gather(*(lane.ask(n) for n in (1, 2, 666, 3, 4)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [int, int, RuntimeError, int, int]
        assert await lane.ask(2) == 20


async def test_a_store_that_is_away_is_asked_once_for_the_whole_batch(store: Store) -> None:
    lane = lane_on(store)
    async with running(lane):
        answers = await asyncio.gather(*(lane.ask(n) for n in (1, 503, 2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [LedgerUnavailableError] * 3
    assert store.batches == [[1, 503, 2]]


async def test_closing_answers_what_waits_and_takes_no_more(store: Store) -> None:
    lane = lane_on(store, batch_max=1)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(lane.ask(n)) for n in (1, 2)]
        await turns()
        lane.close()
        with pytest.raises(LedgerUnavailableError):
            await lane.ask(3)
        await lane.serve()
    assert [task.result() for task in asked] == [10, 20]


async def test_a_lane_that_is_cut_answers_everybody(store: Store) -> None:
    lane = lane_on(store)
    store.gate.clear()
    serving = asyncio.ensure_future(lane.serve())
    first = asyncio.ensure_future(lane.ask(1))
    await store.entered.wait()
    second = asyncio.ensure_future(lane.ask(2))
    await turns()
    serving.cancel()
    answers = await asyncio.gather(first, second, serving, return_exceptions=True)
    assert [type(answer) for answer in answers] == [
        LedgerUnavailableError,
        LedgerUnavailableError,
        asyncio.CancelledError,
    ]
