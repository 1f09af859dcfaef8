"""Stopping in order: no new work, streams finish within the drain time, every finished one is settled.

granian drains without a limit and its kill timeout is SIGKILL, so the process takes SIGTERM itself: it starts the
deadline and raises SIGINT, on which granian stops listening. At the deadline the live exchanges are cancelled; they
settle as broken. Lifespan shutdown begins when the bodies are sent, not when the handlers have returned, so it waits
for the exchanges and then for the settlements.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator

import structlog

from gateway.services import Services

EXCHANGES_S_MAX = 1.0
"""How long exchanges whose bodies are sent may take to end, and how long again once they are cancelled."""
ABANDONED_S = 30.0
"""Beyond the drain, when the kernel ends a process that hangs. granian's main process would have done it before, but
may be dead itself, and what it leaves would keep the port."""
SETTLE_S_MAX = 4.0
"""How long settlements may take at the very end; what is left then expires as a hold."""
log = structlog.get_logger()


@contextlib.asynccontextmanager
async def graceful_stop(services: Services) -> AsyncGenerator[None]:
    """Serve inside; on the way out nothing that was answered stays unsettled."""
    loop = asyncio.get_running_loop()
    drain_s = services.settings.drain_s

    def begin() -> None:
        if services.stopping.is_set():
            return
        services.stopping.set()
        log.info("drain_began", live=len(services.pipeline.live), drain_s=drain_s)
        loop.call_later(drain_s, cancel_live)
        signal.setitimer(signal.ITIMER_REAL, drain_s + ABANDONED_S)
        os.kill(os.getpid(), signal.SIGINT)

    def cancel_live() -> None:
        if services.pipeline.live:
            log.warning("drain_time_over", live=len(services.pipeline.live))
        services.pipeline.live.cancel()

    loop.add_signal_handler(signal.SIGTERM, begin)
    try:
        yield
    finally:
        services.stopping.set()
        if not await _idle(services):
            cancel_live()
            await _idle(services)
        settled = await services.settler.drain(SETTLE_S_MAX)
        log.info("drain_ended", settled=settled)


async def _idle(services: Services) -> bool:
    try:
        async with asyncio.timeout(EXCHANGES_S_MAX):
            await services.pipeline.live.wait_idle()
    except TimeoutError:
        return False
    return True
