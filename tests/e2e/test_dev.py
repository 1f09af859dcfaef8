"""`cocoon dev` as a newcomer meets it: one command, a real model's answer, Ctrl-C, and the same again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.dev.address import free_port, is_free
from cli.dev.placement import remove_placement
from cli.dev.state import StateDirectory
from cli.dev.supervisor import MARKER
from cli.process import processes_in, processes_marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

READY_S = 150.0
STOP_S = 60.0
MODEL = "smollm2-135m-instruct"


class Dev:
    """One `cocoon dev` at a time in one state directory."""

    def __init__(self, place: Path) -> None:
        self.state = StateDirectory(place / ".cocoon")
        self.port = free_port()
        self.output = place / "output"
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "cli.main", "dev"],
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("COCOON_")},
                    "COCOON_STATE_DIR": str(self.state.root),
                    "COCOON_PORT": str(self.port),
                    "COCOON_DRAIN_S": "5",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self) -> dict[str, Any]:
        """Start and return `dev.json` once it is there."""
        process = self.process = self.spawn()
        until(lambda: (self.state.root / "dev.json").exists() or process.poll() is not None, READY_S, self.diagnose)
        assert process.poll() is None, self.diagnose()
        return self.facts()

    def facts(self) -> dict[str, Any]:
        return json.loads((self.state.root / "dev.json").read_text())

    def interrupt(self) -> int:
        """What Ctrl-C in a terminal does; the exit status."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOP_S)

    def left(self) -> list[int]:
        """Processes of this network that still live; PostgreSQL hides its environment but not its directory."""
        marked = processes_marked(MARKER, self.state.mark)
        return marked + processes_in(self.state.root / "postgres" / "data")

    def diagnose(self) -> str:
        logs = "".join(
            f"\n--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in self.state.logs.glob("*.log")
        )
        return self.output.read_text()[-3000:] + logs

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        until(lambda: not self.left(), STOP_S, lambda: f"left: {self.left()}")


def until(condition: Callable[[], object], seconds: float, diagnose: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, diagnose()
        time.sleep(0.05)


def ask(facts: dict[str, Any], content: str = "Say hello.") -> list[dict[str, Any]]:
    """The events of one streamed answer, which must end with [DONE]."""
    body = {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 12,
        "messages": [{"role": "user", "content": content}],
    }
    headers = {"authorization": f"Bearer {facts['api_key']}"}
    with httpx.Client(timeout=60, trust_env=False) as client:
        answer = client.post(f"{facts['base_url']}/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]", answer.text
    return [json.loads(event) for event in data[:-1]]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def balance(facts: dict[str, Any]) -> dict[str, Any]:
    with httpx.Client(timeout=30, trust_env=False) as client:
        answer = client.get(
            f"{facts['base_url']}/account/balance", headers={"authorization": f"Bearer {facts['api_key']}"}
        )
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def dev() -> Iterator[Dev]:
    # As root, PostgreSQL runs under another account, which cannot pass pytest's own private directory.
    place = Path(tempfile.mkdtemp(prefix="cocoon-dev-"))
    place.chmod(0o711)
    dev = Dev(place)
    try:
        yield dev
    finally:
        dev.close()
        remove_placement(dev.state.root / "postgres")
        shutil.rmtree(place)


def test_first_light(dev: Dev) -> None:
    facts = dev.start()
    assert facts["base_url"] == f"http://127.0.0.1:{dev.port}/v1"
    assert facts["models"] == [MODEL]
    assert [name for name in ("console_url", "liteserver_config", "chain_control_url") if facts[name] is not None] == []
    assert set(facts["pids"]) == {"supervisor", "postgres", "redis", "gateway", "worker-1", "worker-2"}
    shown = dev.output.read_text()
    assert facts["api_key"] in shown
    assert f"curl -N {facts['base_url']}/chat/completions" in shown

    events = ask(facts)
    assert text_of(events)
    assert events[-1]["usage"]["completion_tokens"] > 0

    second = dev.spawn()
    assert second.wait(30) == 1
    assert f"already runs here: {facts['base_url']} (pid {facts['pids']['supervisor']}" in dev.output.read_text()

    until(lambda: balance(facts)["held_nano"] == 0, 10, dev.diagnose)
    before = balance(facts)
    assert dev.interrupt() == 0, dev.diagnose()
    assert dev.left() == []
    assert is_free(dev.port)
    assert not (dev.state.root / "dev.json").exists()

    again = dev.start()
    assert again["api_key"] == facts["api_key"]
    assert again["postgres_dsn"] == facts["postgres_dsn"]
    assert balance(again) == before
    assert text_of(ask(again))
    assert dev.interrupt() == 0


def test_the_documented_curl_line_works_verbatim(dev: Dev) -> None:
    dev.start()
    [line] = {line for line in dev.output.read_text().splitlines() if line.strip().startswith("try ")}
    done = subprocess.run(
        ["/bin/sh", "-c", line.partition("try ")[2].strip()], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.rstrip().endswith("data: [DONE]"), done
    assert dev.interrupt() == 0


def test_every_killed_part_comes_back_and_the_network_serves_again(dev: Dev) -> None:
    facts = dev.start()
    for name in ("worker-1", "gateway", "redis", "postgres"):
        before = dev.facts()["pids"]
        os.kill(before[name], signal.SIGKILL)
        until(lambda b=before, n=name: dev.facts()["pids"].get(n, b[n]) != b[n], 90, dev.diagnose)
        assert text_of(ask_until_served(facts, dev)), name
    assert dev.interrupt() == 0
    assert dev.left() == []


def ask_until_served(facts: dict[str, Any], dev: Dev) -> list[dict[str, Any]]:
    """An answer, after clear refusals at most: a part that is just back may not have met the others yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask(facts)
        except (AssertionError, httpx.TransportError):
            assert time.monotonic() < deadline, dev.diagnose()
            time.sleep(0.2)


def test_kill_9_of_the_supervisor_leaves_no_process_and_the_next_start_just_works(dev: Dev) -> None:
    facts = dev.start()
    assert dev.process is not None
    os.kill(dev.process.pid, signal.SIGKILL)
    dev.process.wait()
    # At once, while the old processes may still be ending; the stale dev.json must not be taken for the new one.
    (dev.state.root / "dev.json").unlink()
    again = dev.start()
    assert again["api_key"] == facts["api_key"]
    assert set(facts["pids"].values()).isdisjoint(again["pids"].values())
    assert text_of(ask(again))
    os.kill(dev.process.pid, signal.SIGKILL)
    dev.process.wait()
    until(lambda: not dev.left(), STOP_S, lambda: f"left: {dev.left()}")
