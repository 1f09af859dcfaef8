"""`cocoon dev` as a newcomer meets it: one command, a real model's answer, Ctrl-C, and the same again."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.chain_control import ChainControl
from cli.dev.address import is_free
from cocoon.receipt import ReceiptHead
from tests.e2e.dev_network import MODEL, STOP_S, Dev, Network, clean_environment, until

PAID_S = 150.0
"""Longer than an epoch of five seconds, its vouchers, and the ten in which its root is public take anywhere."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


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


def without_escrow(shown: dict[str, Any]) -> dict[str, Any]:
    """What the biller does not move meanwhile. The credit is the escrow's deposit, on the chain."""
    assert shown["escrow"]["deposited_nano"] == 100 * 10**9
    return {name: value for name, value in shown.items() if name != "escrow"}


def require_paid(dev: Dev) -> None:
    """What the screen says shows a payment on the chain, and that everything which was charged ties with it."""
    said = ""

    def shows(name: str, pattern: str) -> bool:
        nonlocal said
        done = run_line(dev, name)
        said = f"\n{done.stdout}{done.stderr}"
        return done.returncode == 0 and re.search(pattern, done.stdout, re.MULTILINE) is not None

    until(lambda: shows("payouts", r"^Paid to \S+: 0\.\d+ TON"), PAID_S, lambda: dev.diagnose() + said)
    until(lambda: shows("money", r"^1 +\d+ +\d+ +active"), PAID_S, lambda: dev.diagnose() + said)


def run_line(dev: Dev, name: str) -> subprocess.CompletedProcess[str]:
    """The command of a line on the screen, as a newcomer runs it."""
    [line] = {line for line in dev.output.read_text().splitlines() if line.strip().startswith(f"{name} ")}
    environment = clean_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        ["/bin/sh", "-c", line.partition(": ")[2]],
        env=environment, timeout=300, check=False, capture_output=True, text=True,
    )  # fmt: skip


def require_staked_workers(network: Network, dev: Dev) -> None:
    """Both workers have a bond on the chain, and what they signed names one of them."""
    bonded = [(10 * 10**9, "live")] * 2
    until(
        lambda: [tuple(row) for row in network.rows("SELECT bond_nano::bigint, state FROM stakes")] == bonded,
        60, dev.diagnose,
    )  # fmt: skip
    stakes = {row["address"] for row in network.rows("SELECT address FROM stakes")}
    heads = [row["receipt_head"] for row in network.rows("SELECT receipt_head FROM usage WHERE outcome = 'completed'")]
    assert heads
    assert {f"0:{ReceiptHead.decode(head).stake.hex()}" for head in heads} <= stakes


def test_first_light(dev: Dev) -> None:
    facts = dev.start()
    assert facts["base_url"] == f"http://127.0.0.1:{dev.port}/v1"
    assert facts["models"] == [MODEL]
    assert facts["console_url"] is None
    assert set(facts["pids"]) == {
        "supervisor",
        "postgres",
        "redis",
        "chain",
        "biller",
        "gateway",
        "worker-1",
        "worker-2",
    }
    chain = ChainControl(facts["chain_control_url"])
    reached = chain.faucet(f"0:{'5a' * 32}", 10**9)
    (server,) = json.loads(Path(facts["liteserver_config"]).read_text())["liteservers"]
    assert (server["port"], server["id"]["key"]) == (chain.info().liteserver.port, chain.info().liteserver.public_key)
    shown = dev.output.read_text()
    assert facts["api_key"] in shown
    assert f"curl -N {facts['base_url']}/chat/completions" in shown

    events = ask(facts)
    assert text_of(events)
    assert events[-1]["usage"]["completion_tokens"] > 0

    second = dev.spawn()
    assert second.wait(60) == 1
    assert f"already runs here: {facts['base_url']} (pid {facts['pids']['supervisor']}" in dev.output.read_text()

    # A process counts what it has leased itself and does not use as available, others count it as held.
    before: list[dict[str, Any]] = []
    until(lambda: before.append(balance(facts)) or before[-1]["held_nano"] == 0, 60, dev.diagnose)
    require_paid(dev)
    require_staked_workers(Network(dev, facts), dev)
    before_stop = chain.info()
    assert dev.interrupt() == 0, dev.diagnose()
    assert dev.left() == []
    assert is_free(dev.port)
    assert not (dev.state.root / "dev.json").exists()

    again = dev.start()
    assert again["api_key"] == facts["api_key"]
    assert again["postgres_dsn"] == facts["postgres_dsn"]
    assert again["chain_control_url"] == facts["chain_control_url"]
    assert chain.info().seqno >= reached.seqno
    assert chain.info().accounts >= before_stop.accounts
    assert without_escrow(balance(again)) == without_escrow(before[-1]) | {"leased": "0", "leased_nano": 0}
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
    for name in ("worker-1", "gateway", "redis", "chain", "biller", "postgres"):
        before = dev.facts()["pids"]
        os.kill(before[name], signal.SIGKILL)
        until(lambda b=before, n=name: dev.facts()["pids"].get(n, b[n]) != b[n], 90, dev.diagnose)
        assert text_of(ask_until_served(facts, dev)), name
    # A worker whose port somebody takes meanwhile comes back on another; the supervisor looks away until it is taken.
    before, port = dev.facts()["pids"], dev.state.ports().workers["worker-2"]
    assert dev.process is not None
    dev.process.send_signal(signal.SIGSTOP)
    os.kill(before["worker-2"], signal.SIGKILL)
    with listening(port, dev):
        dev.process.send_signal(signal.SIGCONT)
        until(lambda: dev.facts()["pids"].get("worker-2", before["worker-2"]) != before["worker-2"], 90, dev.diagnose)
        assert dev.state.ports().workers["worker-2"] != port
    assert dev.interrupt() == 0
    assert dev.left() == []


@contextlib.contextmanager
def listening(port: int, dev: Dev) -> Iterator[None]:
    """Listen on a port as soon as its killed owner is gone."""
    until(lambda: is_free(port), 30, dev.diagnose)
    with socket.create_server(("127.0.0.1", port)):
        yield


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
