"""The agent's application without a socket: what it keeps, and what it gives back, when a job ends badly."""

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from cocoon import hop
from cocoon.clock import ManualClock
from cocoon.receipt import ReceiptHead
from cocoon.ticket import plain_request_digest, seal_ticket
from cocoon.tracing import start_tracer
from cocoon.usage import TokenUsage
from tests.unit.agent.agent_values import CHAT, choice, chunk, ticket
from workers.agent.admission import Admission
from workers.agent.app import AgentApp
from workers.agent.engines.ports import Dialect, EngineCall, Load
from workers.agent.keys import KeyRing
from workers.agent.receipts import ReceiptShelf

KEY = b"k" * 32
RAW = msgspec.json.encode({**CHAT, "stream": True})
TOKEN = b"data: " + chunk(choice(0, content="x")) + b"\n\n"


class StubGeneration:
    def __init__(self, reads: list[bytes | Exception]) -> None:
        self._reads = list(reads)
        self.aborted = 0

    async def read(self) -> bytes:
        if not self._reads:
            await asyncio.Event().wait()
        step = self._reads.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def abort(self) -> None:
        self.aborted += 1


class StubEngine:
    label = "stub"
    dialect = Dialect()
    ready = True

    def __init__(self, *reads: bytes | Exception) -> None:
        self.generation = StubGeneration(list(reads))

    async def run(self) -> None:
        return

    async def generate(self, call: EngineCall) -> StubGeneration:
        return self.generation

    async def load(self) -> Load | None:
        return None


class Bench:
    """One application around one stub."""

    def __init__(self, engine: StubEngine) -> None:
        clock = ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))
        keys = KeyRing(clock, b"b" * 16)
        keys.current.ticket_key, keys.current.global_id = KEY, -217
        self.admission = Admission(clock, keys, 1)
        self.shelf = ReceiptShelf()
        self.sent: list[dict[str, Any]] = []
        rng = random.Random(1)
        self.app = AgentApp(
            admission=self.admission, engine=engine, clock=clock, rng=rng, shelf=self.shelf,
            tracer=start_tracer("agent", None, rng), served_model="m", tee_type="none", job_s_max=5.0,
        )  # fmt: skip

    async def run(self, leave: Callable[[], Awaitable[None]]) -> None:
        uploads = [{"type": "http.request", "body": RAW, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if uploads:
                return uploads.pop(0)
            await leave()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        header = seal_ticket(KEY, ticket(1, request_digest=plain_request_digest(RAW)))
        scope = {
            "type": "http", "method": "POST", "path": hop.JOB_PATH,
            "headers": [(hop.TICKET_HEADER.encode(), header.encode())],
        }  # fmt: skip
        async with asyncio.timeout(10):
            await self.app(scope, receive, send)

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.sent if message["type"] == "http.response.start"]


async def _never() -> None:
    await asyncio.Event().wait()


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happened")


async def test_a_receipt_for_what_was_generated_is_kept_when_the_gateway_leaves() -> None:
    engine = StubEngine(TOKEN + TOKEN, TOKEN)
    bench = Bench(engine)

    async def leave_after_three() -> None:
        await _until(lambda: sum(message["type"] == "http.response.body" for message in bench.sent) == 2)

    await bench.run(leave_after_three)
    (kept,) = bench.shelf.kept()
    assert ReceiptHead.decode(kept.head).usage == TokenUsage(completion=3)
    assert msgspec.json.decode(kept.body)["finish_reason"] == "abort"
    assert kept.ticket == ticket(1, request_digest=plain_request_digest(RAW)).encode()
    assert (engine.generation.aborted, bench.admission.running) == (1, 0)


async def test_nothing_generated_leaves_no_receipt() -> None:
    engine = StubEngine()
    bench = Bench(engine)

    async def leave_at_once() -> None:
        return

    await bench.run(leave_at_once)
    assert (bench.shelf.kept(), bench.sent) == ((), [])
    assert (engine.generation.aborted, bench.admission.running) == (1, 0)


async def test_every_receipt_of_a_broken_answer_claims_nothing() -> None:
    bench = Bench(StubEngine(TOKEN, b""))
    await bench.run(_never)
    (kept,) = bench.shelf.kept()
    assert ReceiptHead.decode(kept.head).usage == TokenUsage()
    assert msgspec.json.decode(kept.body)["finish_reason"] == "engine_failed"


@pytest.mark.parametrize("reads", [[ZeroDivisionError()], [TOKEN, ZeroDivisionError()]])
async def test_a_defect_costs_its_own_job_only(
    reads: list[bytes | Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = StubEngine(*reads)
    bench = Bench(engine)
    await bench.run(_never)
    assert bench.statuses == ([500] if len(reads) == 1 else [200])
    assert not any(message.get("more_body") is False for message in bench.sent[1:] if bench.statuses == [200])
    assert (engine.generation.aborted, bench.admission.running) == (1, 0)
    assert "job_crashed" in capsys.readouterr().out


async def test_a_completion_and_a_departure_at_once_count_as_complete() -> None:
    end = b"data: " + chunk(choice(0, finish="stop")) + b"\n\ndata: [DONE]\n\n"
    bench = Bench(StubEngine(TOKEN, end))

    async def leave_with_the_end() -> None:
        await _until(lambda: any(message.get("more_body") is False for message in bench.sent))

    await bench.run(leave_with_the_end)
    (kept,) = bench.shelf.kept()
    assert ReceiptHead.decode(kept.head).usage == TokenUsage(completion=1)
    assert msgspec.json.decode(kept.body)["finish_reason"] == "stop"
