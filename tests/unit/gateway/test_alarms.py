"""Alarms ring once, when they are due, and time limits behave as asyncio's own."""

import asyncio
import math

import pytest

from gateway.alarms import Alarms, Within
from tests.scripted_engine import until


class Bell:
    def __init__(self, due_at: float = math.inf) -> None:
        self.due_at = due_at
        self.rung = 0

    def ring(self) -> None:
        self.rung += 1


async def test_an_alarm_rings_once_when_its_time_has_come_even_if_it_was_moved() -> None:
    alarms, early, late = Alarms(), Bell(0.0), Bell()
    alarms.add(early)
    alarms.add(late)
    await until(lambda: early.rung == 1)
    assert len(alarms) == 1

    late.due_at = 0.0
    await until(lambda: late.rung == 1)
    assert (early.rung, late.rung, len(alarms)) == (1, 1, 0)


async def test_an_alarm_that_another_silences_does_not_ring() -> None:
    alarms = Alarms()

    class Silencer(Bell):
        other: Bell

        def ring(self) -> None:
            super().ring()
            alarms.discard(self.other)

    one, two = Silencer(0.0), Silencer(0.0)
    one.other, two.other = two, one
    alarms.add(one)
    alarms.add(two)
    await until(lambda: len(alarms) == 0)

    assert one.rung + two.rung == 1


async def test_after_a_pause_the_alarms_go_on() -> None:
    alarms, first, second = Alarms(), Bell(0.0), Bell(0.0)
    alarms.add(first)
    await until(lambda: first.rung == 1 and alarms._timer is None)  # pyright: ignore[reportPrivateUsage]  the pause
    alarms.add(second)

    await until(lambda: second.rung == 1)


async def overdue() -> None:
    """What never ends by itself, under a limit that has passed."""
    with Within(Alarms(), 0.001):
        await asyncio.Event().wait()


async def test_time_that_is_up_is_a_timeout_and_the_task_goes_on_uncancelled() -> None:
    with pytest.raises(TimeoutError):
        await overdue()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_is_done_in_time_is_left_alone() -> None:
    alarms = Alarms()
    with Within(alarms, 0.0) as within:
        pass
    within.ring()

    await asyncio.sleep(0)
    assert len(alarms) == 0


async def failing() -> None:
    with Within(Alarms(), 0.001):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError from None


async def test_an_error_inside_stays_what_it_is_even_when_time_is_up() -> None:
    with pytest.raises(KeyError):
        await failing()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_somebody_elses_cancellation_is_not_a_timeout() -> None:
    async def work() -> None:
        with Within(Alarms(), 60.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
