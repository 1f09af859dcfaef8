"""Being told to stop in the very moment in which the wait ends."""

import asyncio

import pytest

from cocoon.cancellation import cancellation_kept


async def forgetful(waited: asyncio.Future[None]) -> None:
    """Waits as `asyncio.wait_for` does below Python 3.12."""
    try:
        await waited
    except asyncio.CancelledError:
        if waited.cancelled():
            raise


@pytest.mark.parametrize("outcome", [None, OSError("broken")], ids=["done", "failed"])
async def test_a_cancellation_that_is_forgotten_inside_is_raised_at_the_end(outcome: OSError | None) -> None:
    waited = asyncio.get_running_loop().create_future()
    passed = False

    async def work() -> None:
        nonlocal passed
        with cancellation_kept():
            await forgetful(waited)
            if outcome is not None:
                raise outcome
        passed = True

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    waited.set_result(None)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert not passed


async def test_a_deadline_inside_and_a_cancellation_before_are_not_its_affair() -> None:
    tidied, past = False, asyncio.Event()

    async def work() -> None:
        nonlocal tidied
        with pytest.raises(TimeoutError), cancellation_kept():
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        past.set()
        try:
            await asyncio.Event().wait()
        finally:
            # Tidying up after having been told to stop goes on as ever.
            with cancellation_kept():
                await asyncio.sleep(0)
            tidied = True

    task = asyncio.ensure_future(work())
    await past.wait()
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert tidied
