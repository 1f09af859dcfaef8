"""How long an exchange may take, in a loop whose time is simulated."""

import asyncio
import contextlib
from typing import Any

from gateway.alarms import Alarms
from gateway.client import Limits
from gateway.deadline import Deadline

TICK = 0.04


def limits(**times: float) -> Limits:
    chosen = {"first_byte_s": TICK, "idle_s": TICK, "request_s_max": 100 * TICK, "keep_alive_s": 1.0, **times}
    return Limits(**chosen, exchanges_max=1)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while it has nothing to do, and then at once, up to the next timer."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__()

    def time(self) -> float:
        return self._virtual_s

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled:
            self._virtual_s = max(self._virtual_s, loop._scheduled[0].when())
        base: Any = super()
        base._run_once()


def lasted(limits: Limits, *moves: str) -> float:
    """Seconds until the deadline strikes, with the moves on the way, each half a tick apart."""

    async def until_it_strikes() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with contextlib.suppress(TimeoutError), Deadline(limits, Alarms()) as deadline:
            deadline.expect_first_byte()
            for move in moves:
                await asyncio.sleep(TICK / 2)
                getattr(deadline, move)()
            await asyncio.Event().wait()
        return loop.time() - began

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(until_it_strikes())


def test_the_first_byte_has_its_time_and_the_whole_has_the_last_word() -> None:
    assert TICK <= lasted(limits()) < 50 * TICK
    assert lasted(limits(first_byte_s=1000 * TICK, request_s_max=TICK)) < 50 * TICK
    assert lasted(limits(request_s_max=3 * TICK), *["progressed"] * 20) < 5 * TICK


def test_progress_moves_it_on_and_its_absence_ends_the_wait() -> None:
    assert lasted(limits(idle_s=2 * TICK), *["progressed"] * 8) >= 5 * TICK
    # After a first byte that might have taken long, the next may not.
    assert lasted(limits(first_byte_s=1000 * TICK), "progressed") < 50 * TICK


def test_a_sign_of_life_never_takes_time_away() -> None:
    assert lasted(limits(first_byte_s=6 * TICK), "alive") >= 6 * TICK
    assert lasted(limits(idle_s=2 * TICK), *["alive"] * 8) >= 5 * TICK


def test_attempts_share_the_time_of_a_first_byte() -> None:
    assert lasted(limits(first_byte_s=2 * TICK), *["expect_first_byte"] * 20) < 5 * TICK


def test_silence_can_be_expected_for_as_long_as_the_whole_may_take() -> None:
    assert lasted(limits(request_s_max=6 * TICK), "expect_silence") >= 6 * TICK


def test_whoever_leaves_has_the_last_word() -> None:
    assert lasted(limits(first_byte_s=1000 * TICK), "end_now") < 50 * TICK
    more = limits(first_byte_s=1000 * TICK, idle_s=1000 * TICK)
    assert lasted(more, "end_now", "progressed", "alive", "expect_silence", "end_now") < 50 * TICK


async def test_moves_after_its_end_do_nothing() -> None:
    with Deadline(limits(), Alarms()) as deadline:
        pass
    for move in (deadline.end_now, deadline.progressed, deadline.alive, deadline.expect_silence):
        move()
    for move in (deadline.expect_first_byte, deadline.end_now):
        move()
    await asyncio.sleep(0)


async def test_a_cancellation_is_not_taken_for_a_timeout() -> None:
    async def work() -> None:
        with Deadline(limits(), Alarms()) as deadline:
            deadline.end_now()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                # The process ends in the same moment.
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                raise

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    assert task.cancelled()
