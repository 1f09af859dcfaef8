"""The supervisor with small fake children: they come back, stop in order, and never stay behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_services import fake_service, pid_of

from cli.dev import service as service_module
from cli.dev import supervisor as supervisor_module
from cli.dev.service import Keeper, ServiceFailedError, State, all_ready
from cli.dev.state import AlreadyRunningError, StateDirectory
from cli.dev.supervisor import MARKER, Supervisor, sweep
from cli.process import Launch, is_alive, processes_marked
from cocoon.clock import SystemClock

SCRIPT = Path(__file__).with_name("fake_services.py")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    state = StateDirectory(tmp_path / ".cocoon")
    state.open()
    yield state
    left = processes_marked(MARKER, state.mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  a process is polled, with a deadline
            await asyncio.sleep(0.02)


def until_now(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def order(state: StateDirectory) -> list[str]:
    return (state.root / "order").read_text().split()


async def test_services_stop_from_the_last_stage_to_the_first(state: StateDirectory) -> None:
    async def boot(supervisor: Supervisor) -> None:
        names = {"store": 0, "gateway": 1, "worker": 2}
        await all_ready(
            *(supervisor.start(fake_service(state.root, name, mark=state.mark, stage=s)) for name, s in names.items())
        )
        assert sorted(supervisor.pids()) == ["gateway", "store", "supervisor", "worker"]
        supervisor.ask_stop()

    await Supervisor(state, SystemClock(), lambda: None).run(boot)
    assert order(state) == ["worker", "gateway", "store"]


async def test_a_killed_service_comes_back_under_another_pid(state: StateDirectory) -> None:
    seen: list[State] = []

    async def boot(supervisor: Supervisor) -> None:
        keepers.append(supervisor.start(fake_service(state.root, "store", mark=state.mark)))
        await all_ready(*keepers)
        first = keepers[0].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: keepers[0].state is State.READY and keepers[0].pid != first)
        assert not is_alive(first)
        assert pid_of(state.root, "store") == keepers[0].pid
        supervisor.ask_stop()

    keepers: list[Keeper] = []
    await Supervisor(state, SystemClock(), lambda: seen.extend(k.state for k in keepers)).run(boot)
    assert State.RESTARTING in seen
    assert (keepers[0].restarts, keepers[0].reason, keepers[0].state) == (1, "it ended with -9", State.STOPPED)


async def test_a_service_that_cannot_start_ends_the_run_with_its_last_words(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "BACKOFF_SECONDS_MAX", 0.01)

    async def boot(supervisor: Supervisor) -> None:
        await all_ready(supervisor.start(fake_service(state.root, "store", mark=state.mark)))
        await all_ready(
            supervisor.start(fake_service(state.root, "gateway", mark=state.mark, stage=1, manner="broken"))
        )

    with pytest.raises(ServiceFailedError, match=r"gateway does not start: it ended with 3.*cannot find my config"):
        await Supervisor(state, SystemClock(), lambda: None).run(boot)
    assert order(state) == ["store"]


async def test_a_program_that_does_not_exist_is_told_too(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "BACKOFF_SECONDS_MAX", 0.01)
    missing = fake_service(state.root, "store", mark=state.mark)
    missing = type(missing)(
        name="store",
        address=missing.address,
        launch=lambda: Launch(argv=("/no/such/program",), env={}),
        is_ready=missing.is_ready,
        stage=0,
    )

    async def boot(supervisor: Supervisor) -> None:
        await all_ready(supervisor.start(missing))

    with pytest.raises(ServiceFailedError, match="No such file"):
        await Supervisor(state, SystemClock(), lambda: None).run(boot)


async def test_a_service_that_never_gets_ready_is_given_up(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "BACKOFF_SECONDS_MAX", 0.01)

    async def boot(supervisor: Supervisor) -> None:
        await all_ready(
            supervisor.start(fake_service(state.root, "store", mark=state.mark, manner="never", ready_s=0.3))
        )

    with pytest.raises(ServiceFailedError, match=r"store does not start: it was not ready after 0\.3 s"):
        await Supervisor(state, SystemClock(), lambda: None).run(boot)


async def test_a_deaf_service_and_its_children_are_killed_at_the_deadline(state: StateDirectory) -> None:
    async def boot(supervisor: Supervisor) -> None:
        await all_ready(
            supervisor.start(fake_service(state.root, "deaf", mark=state.mark, manner="deaf", stop_s=0.2)),
        )
        supervisor.ask_stop()

    await Supervisor(state, SystemClock(), lambda: None).run(boot)
    assert order(state) == ["deaf"]


async def test_a_second_signal_hurries(state: StateDirectory) -> None:
    async def boot(supervisor: Supervisor) -> None:
        await all_ready(
            supervisor.start(fake_service(state.root, "deaf", mark=state.mark, manner="deaf", stop_s=1000)),
        )
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(90):
        await Supervisor(state, SystemClock(), lambda: None).run(boot)


async def test_stopping_while_starting_leaves_nothing(state: StateDirectory) -> None:
    async def boot(supervisor: Supervisor) -> None:
        keeper = supervisor.start(fake_service(state.root, "store", mark=state.mark, manner="never", ready_s=1000))
        await until(lambda: keeper.pid is not None and processes_marked(MARKER, state.mark))
        supervisor.ask_stop()
        await all_ready(keeper)

    async with asyncio.timeout(90):
        await Supervisor(state, SystemClock(), lambda: None).run(boot)


async def test_stopping_during_a_command_ends_the_command(state: StateDirectory) -> None:
    launch = Launch(argv=(sys.executable, "-S", "-c", "import time; time.sleep(300)"), env={MARKER: state.mark})

    async def boot(supervisor: Supervisor) -> None:
        asyncio.get_running_loop().call_later(0.5, supervisor.ask_stop)
        await supervisor.complete("migrate", launch, 1000)

    async with asyncio.timeout(90):
        await Supervisor(state, SystemClock(), lambda: None).run(boot)


@pytest.mark.parametrize(
    ("code", "seconds", "message"),
    [
        ("import sys; print('no such table'); sys.exit(4)", 90, r"migrate failed with 4\. .*no such table"),
        ("import time; time.sleep(300)", 0.2, "migrate failed with -9"),
    ],
)
async def test_a_command_that_fails_or_hangs_ends_the_run(
    state: StateDirectory, code: str, seconds: float, message: str
) -> None:
    async def boot(supervisor: Supervisor) -> None:
        launch = Launch(argv=(sys.executable, "-S", "-c", code), env={MARKER: state.mark})
        await supervisor.complete("migrate", launch, seconds)

    with pytest.raises(ServiceFailedError, match=message):
        await Supervisor(state, SystemClock(), lambda: None).run(boot)


def supervise(state: StateDirectory, manner: str = "plain") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(state.root), manner],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def close(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_second_supervisor_is_refused_while_the_first_lives_and_welcome_after_its_crash(
    state: StateDirectory,
) -> None:
    process = supervise(state)
    try:
        second = StateDirectory(state.root)
        with pytest.raises(AlreadyRunningError, match=rf"http://127\.0\.0\.1:1/v1 \(pid {process.pid},"):
            second.lock("http://127.0.0.1:2/v1")
        process.kill()
        process.wait()
        second.lock("http://127.0.0.1:2/v1")
        second.unlock()
    finally:
        close(process)
        until_now(lambda: processes_marked(MARKER, state.mark) == [])


def test_kill_9_of_the_supervisor_leaves_no_process(state: StateDirectory) -> None:
    process = supervise(state)
    try:
        assert len(processes_marked(MARKER, state.mark)) == 2
    finally:
        close(process)
    until_now(lambda: processes_marked(MARKER, state.mark) == [])


def test_what_a_crashed_run_leaves_is_swept_at_the_next_start(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "SWEEP_TERM_SECONDS", 0.3)
    process = supervise(state, "deaf")
    close(process)
    assert len(sweep(state.mark, SystemClock())) == 2
    assert processes_marked(MARKER, state.mark) == []


def test_a_terminals_interrupt_reaches_the_supervisor_alone_and_children_stop_in_order(state: StateDirectory) -> None:
    process = supervise(state)
    try:
        # What a terminal does on Ctrl-C: the signal goes to the whole foreground process group.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(90) == 0
    finally:
        close(process)
    assert order(state) == ["server", "store"]
