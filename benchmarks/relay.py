"""The relay against its peers: ours, SMG and nginx before the same upstream, one pinned core each.

    python -m benchmarks.relay [--rounds 5] [--seconds 4] [--connections 32]

The upstream is an nginx that answers with a constant; it and the load generator (wrk) share the other core. Rounds are
interleaved, so that a machine that slows down slows everybody. Reported are medians: requests per second, the
process's own CPU per request, and the ratio to SMG. A peer that is not installed is left out and named.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks.books import own_books
from benchmarks.relay_app import KEY

SUT_CORE, LOAD_CORE = 0, 1
READY_S = 30.0
ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "mock",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 400}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 60, "total_tokens": 80},
}  # fmt: skip
REQUEST = {"model": "mock", "max_tokens": 64, "messages": [{"role": "user", "content": "Tell me something. " * 10}]}


class Sample(NamedTuple):
    """One round of one system."""

    rps: float
    cpu_us: float
    p99_ms: float
    errors: int


def main() -> None:
    """Run everything and print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    for tool in ("wrk", "nginx", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"the benchmark needs {tool} (Debian: apt-get install wrk nginx-light util-linux)")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cocoon-bench-")))
        upstream = stack.enter_context(nginx(folder, "upstream", LOAD_CORE, _constant()))
        systems = _start_all(stack, folder, upstream)
        samples: dict[str, list[Sample]] = {name: [] for name in systems}
        for round_ in range(options.rounds + 1):
            for name, (port, pid) in systems.items():
                sample = _measure(folder, port, pid, options.seconds if round_ else 2, options.connections)
                if round_:  # the first round only warms up
                    samples[name].append(sample)
        _report(samples, options)


def _start_all(stack: contextlib.ExitStack, folder: Path, upstream: int) -> dict[str, tuple[int, int]]:
    systems: dict[str, tuple[int, int]] = {}
    proxy = "location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ''; }"
    extra = f"upstream u {{ server 127.0.0.1:{upstream}; keepalive 64; }}"
    port = stack.enter_context(nginx(folder, "nginx", SUT_CORE, proxy, extra))
    systems["nginx"] = (port, int((folder / "nginx.pid").read_text()))
    smg = Path(".venv-bench/bin/smg")
    if smg.exists():
        port = _free_port()
        command = [
            str(smg.absolute()), "launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls",
            f"http://127.0.0.1:{upstream}", "--policy", "cache_aware", "--log-level", "warn", "--disable-retries",
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(_free_port()),
        ]  # fmt: skip
        systems["smg 1.13"] = (port, stack.enter_context(_process(folder, "smg", command, {}, port)))
    else:
        print("smg is not installed in .venv-bench: left out")
    environment = _gateway_environment(upstream)
    for name, target in (("cocoon, books in memory", "benchmarks.relay_app:create"),):
        port = _free_port()
        command = [
            sys.executable, "-m", "granian", "--interface", "asgi", "--factory", "--workers", "1", "--loop", "uvloop",
            "--host", "127.0.0.1", "--port", str(port), "--no-ws", "--http", "1", "--runtime-threads", "1",
            "--backlog", "1024", target,
        ]  # fmt: skip
        systems[name] = (port, stack.enter_context(_process(folder, "memory", command, environment, port)))
    books = stack.enter_context(own_books(folder, KEY, "mock"))
    port = _free_port()
    command = [sys.executable, "-m", "cli.main", "gateway", "--port", str(port), "--processes", "1"]
    environment |= {"COCOON_DATABASE_URL": books.database_url, "COCOON_REDIS_URL": books.redis_url}
    systems["cocoon, books in Postgres"] = (
        port,
        stack.enter_context(_process(folder, "postgres", command, environment, port)),
    )
    for pid in books.pids:
        _pin(pid, LOAD_CORE)
    return systems


def _gateway_environment(upstream: int) -> dict[str, str]:
    upstreams = [{"name": "mock", "url": f"http://127.0.0.1:{upstream}/v1", "models": {"mock": "mock"},
                  "context_tokens": 8192, "capacity": 1024}]  # fmt: skip
    return {
        "COCOON_ENV": "development", "COCOON_NETWORK_SECRET": "00" * 32, "COCOON_UPSTREAMS": json.dumps(upstreams),
        "COCOON_DATABASE_URL": "postgresql://unused", "COCOON_REDIS_URL": "redis://unused",
        "PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()),
    }  # fmt: skip


def _measure(folder: Path, port: int, pid: int, seconds: int, connections: int) -> Sample:
    script = folder / "post.lua"
    script.write_text(
        f"wrk.method='POST' wrk.body='{json.dumps(REQUEST)}'\n"
        f"wrk.headers['content-type']='application/json' wrk.headers['authorization']='Bearer {KEY}'\n"
    )
    before = _cpu_s(pid)
    run = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script,
         f"http://127.0.0.1:{port}/v1/chat/completions"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cpu = _cpu_s(pid) - before
    requests = int(_found(r"(\d+) requests in", run.stdout))
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", run.stdout)
    return Sample(
        rps=float(_found(r"Requests/sec:\s+([\d.]+)", run.stdout)),
        cpu_us=cpu / requests * 1e6,
        p99_ms=_ms(_found(r"99%\s+([\d.]+\w+)", run.stdout)),
        errors=int(errors[1]) if errors else 0,
    )


def _report(samples: dict[str, list[Sample]], options: argparse.Namespace) -> None:
    def median(name: str, field: str) -> float:
        return statistics.median(getattr(sample, field) for sample in samples[name])

    base = median("smg 1.13", "rps") if "smg 1.13" in samples else None
    print(f"unary, {options.connections} connections, one pinned core, medians of {options.rounds} interleaved rounds")
    print(f"{'':28}{'req/s':>9}{'x SMG':>8}{'CPU us/req':>12}{'p99 ms':>9}{'errors':>8}")
    for name, rounds in samples.items():
        ratio = f"{median(name, 'rps') / base:.2f}" if base else "-"
        errors = sum(sample.errors for sample in rounds)
        print(
            f"{name:28}{median(name, 'rps'):9.0f}{ratio:>8}{median(name, 'cpu_us'):12.0f}"
            f"{median(name, 'p99_ms'):9.1f}{errors:8d}"
        )


@contextlib.contextmanager
def nginx(folder: Path, name: str, core: int, location: str, extra: str = "") -> Iterator[int]:
    """An nginx with one worker; yields its port."""
    port = _free_port()
    config = folder / f"{name}.conf"
    config.write_text(
        f"worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log stderr error;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 10000000; client_body_temp_path {folder}/{name}-b;\n"
        f"proxy_temp_path {folder}/{name}-p; fastcgi_temp_path {folder}/{name}-f; uwsgi_temp_path {folder}/{name}-u;\n"
        f"scgi_temp_path {folder}/{name}-s; default_type application/json; {extra}\n"
        f"server {{ listen 127.0.0.1:{port}; {location} }} }}\n"
    )
    with _process(folder, name, ["nginx", "-c", str(config), "-p", str(folder)], {}, port, core):
        yield port


def _constant() -> str:
    body = json.dumps(ANSWER).replace("'", "")
    return (
        f"location = /v1/chat/completions {{ return 200 '{body}'; }}\n"
        """location / { return 200 '{"object":"list","data":[{"id":"mock","object":"model"}]}'; }"""
    )


@contextlib.contextmanager
def _process(
    folder: Path, name: str, command: list[str], environment: dict[str, str], port: int, core: int = SUT_CORE
) -> Iterator[int]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command], stdout=log, stderr=log, env=environment or None
        )
    try:
        _wait(port, process, folder / f"{name}.log")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", json=REQUEST, headers={"authorization": f"Bearer {KEY}"}
            )
            if answer.status_code == 200:
                return
        time.sleep(0.1)
    sys.exit(f"not ready on {port}:\n{log.read_text()[-3000:]}")


def _tree(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += _tree(int(child))
    return found


def _cpu_s(pid: int) -> float:
    ticks = 0
    for each in _tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _pin(pid: int, core: int) -> None:
    for each in _tree(pid):
        os.sched_setaffinity(each, {core})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        sys.exit(f"wrk said something unexpected:\n{text}")
    return match[1]


def _ms(text: str) -> float:
    for unit, factor in (("us", 0.001), ("ms", 1.0), ("s", 1000.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


if __name__ == "__main__":
    main()
