"""Small children for the supervisor's tests, and a supervisor of them that runs as a process of its own."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from cli.dev.service import Service, all_ready
from cli.dev.state import StateDirectory
from cli.dev.supervisor import MARKER, Supervisor
from cli.process import Launch, StopStep
from cocoon.clock import SystemClock

# Says that it is ready by a file with its pid; on SIGTERM notes its name and ends, unless told to be deaf.
CHILD = """
import os, signal, subprocess, sys, time
name, folder, manner = sys.argv[1:]
def stop(*_):
    with open(f"{folder}/order", "a") as order:
        order.write(f"{name}\\n")
    if manner != "deaf":
        sys.exit(0)
signal.signal(signal.SIGTERM, stop)
if manner == "broken":
    print("cannot find my configuration", flush=True)
    sys.exit(3)
if manner == "parent":
    grandchild = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"])
if manner != "never":
    with open(f"{folder}/{name}.new", "w") as ready:
        ready.write(str(os.getpid()))
    os.rename(f"{folder}/{name}.new", f"{folder}/{name}.ready")
while True:
    time.sleep(300)
"""


def pid_of(folder: Path, name: str) -> int | None:
    """The pid that the child wrote when it became ready."""
    try:
        return int((folder / f"{name}.ready").read_text())
    except FileNotFoundError:
        return None


def fake_service(
    folder: Path,
    name: str,
    *,
    mark: str,
    stage: int = 0,
    manner: str = "plain",
    ready_s: float = 20,
    stop_s: float = 10,
) -> Service:
    """A service around `CHILD`."""

    async def is_ready(pid: int) -> bool:
        return pid_of(folder, name) == pid

    return Service(
        name=name,
        address=lambda: "nowhere",
        launch=lambda: Launch(
            argv=(sys.executable, "-S", "-c", CHILD, name, str(folder), manner),
            env={**os.environ, MARKER: mark},
            stop=(StopStep(signal.SIGTERM, stop_s),),
        ),
        is_ready=is_ready,
        stage=stage,
        ready_s=ready_s,
    )


async def main(root: Path, manner: str) -> None:
    """Supervise two children until a signal."""
    state = StateDirectory(root)
    state.open()
    state.lock("http://127.0.0.1:1/v1")

    async def boot(supervisor: Supervisor) -> None:
        keepers = [
            supervisor.start(fake_service(root, name, mark=state.mark, stage=stage, manner=manner))
            for stage, name in enumerate(("store", "server"))
        ]
        await all_ready(*keepers)
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    await Supervisor(state, SystemClock(), lambda: None).run(boot)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
