"""Being told to stop, kept through libraries that forget it.

Below Python 3.12 `asyncio.wait_for` forgets a cancellation that comes in the moment in which what it waits for is done
(bpo-42130). pytoniq waits for answers that way and redis-py for its writes: a task that is told to stop once
would go on for ever, and its process with it.
"""

import asyncio
import contextlib
from collections.abc import Generator


@contextlib.contextmanager
def cancellation_kept() -> Generator[None]:
    """Stop whoever was told to stop inside, whatever came of it.

    Raises:
        CancelledError: the task was cancelled since, and nobody has raised it.
    """
    task = asyncio.current_task()
    assert task is not None, "used in a task"
    told_before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > told_before:
            raise asyncio.CancelledError
