"""`cocoon gateway`: granian's processes around `gateway.app:create_app`.

Checked against granian 2.8.7. Its main process forks the worker processes, which share nothing; each loads the
application and takes SIGTERM itself (see `gateway/app.py`), because granian would drain without a limit. The kill
timeout is SIGKILL, without cancellation or lifespan shutdown: it lies beyond the drain and is never meant to fire.
A worker process that dies comes back; one that dies again within 5.5 s of its return stops the whole server, which
is then its supervisor's business.
"""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import click
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops, TaskImpl
from granian.http import HTTP1Settings

from cli.process import die_with_parent
from gateway.settings import Settings, read_settings

KILL_MARGIN_S = 20
"""Beyond the drain, before granian kills: more than `gateway/stopping.py` takes to end exchanges and settle (13 s)."""
BACKLOG = 2048
"""Connections waiting in the kernel, per process; the system's own maximum may be lower."""
CONNECTION_SHARE = 2
"""Connections per process, as a multiple of the exchanges it may have: an idle keep-alive takes one too."""
HEADER_READ_MS = 10_000
"""A client that takes longer for its headers is cut off."""
PROCESSES_MAX = 256


def load_application() -> Callable[..., Any]:
    """Build the application inside a worker process, which from here on ends with granian's main process."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(signal.SIGTERM, parent.pid)
    from gateway.app import create_app

    return create_app()


def serve(settings: Settings, *, host: str, port: int, processes: int) -> None:
    """Serve until SIGTERM or SIGINT; blocks."""
    server = Granian(
        "gateway.app:create_app",
        factory=True,
        interface=Interfaces.ASGI,
        address=host,
        port=port,
        workers=processes,
        loop=Loops.uvloop,
        task_impl=TaskImpl.asyncio,
        runtime_threads=1,
        runtime_blocking_threads=1,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_READ_MS),
        websockets=False,
        backlog=BACKLOG,
        backpressure=settings.exchanges_max * CONNECTION_SHARE,
        log_access=False,
        respawn_failed_workers=True,
        workers_kill_timeout=math.ceil(settings.drain_s) + KILL_MARGIN_S,
    )
    # Until granian sets a worker process' own handlers, SIGTERM must end it: the one it inherits would only set a
    # flag that nobody reads there.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    # The loader is ours: granian's own puts the current directory first on the import path.
    server.serve(target_loader=load_application, wrap_loader=False)


@click.command("gateway")
@click.option("--host", envvar="COCOON_HOST", default="127.0.0.1", show_default=True, show_envvar=True)
@click.option(
    "--port", envvar="COCOON_PORT", type=click.IntRange(1, 65535), default=8080, show_default=True, show_envvar=True
)
@click.option(
    "--processes",
    envvar="COCOON_GATEWAY_PROCESSES",
    type=click.IntRange(1, PROCESSES_MAX),
    default=1,
    show_default=True,
    show_envvar=True,
)
def command(host: str, port: int, processes: int) -> None:
    """Serve the OpenAI-compatible API; everything else is configured by environment."""
    serve(read_settings(), host=host, port=port, processes=processes)
