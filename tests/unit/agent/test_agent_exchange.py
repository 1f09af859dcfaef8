"""The agent's application without a socket: what it keeps, and what it gives back, when a job ends badly."""

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cocoon import hop
from cocoon.clock import ManualClock
from cocoon.endpoints import CHAT
from cocoon.receipt import ReceiptHead
from cocoon.receipt_batch import DeliveredReceipt
from cocoon.signed_batch import Countersignature, SignedBatch
from cocoon.ticket import plain_request_digest, seal_ticket
from cocoon.tracing import start_tracer
from cocoon.usage import TokenUsage
from tests.unit.agent.agent_values import CHAT_BODY, choice, chunk, ticket
from workers.agent.admission import Admission
from workers.agent.app import AgentApp
from workers.agent.credit import OperatorCredit
from workers.agent.engines.ports import Dialect, EngineCall, Load
from workers.agent.keys import KeyRing
from workers.agent.receipt_store import KeptReceipt, KeptSignature, ReceiptStore, SignatureKind
from workers.agent.signatures import Unsigned

KEY = b"k" * 32
RAW = msgspec.json.encode({**CHAT_BODY, "stream": True})
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

    def __init__(
        self, engine: StubEngine, *, credit_max_nano: int | None = None, paid_file: Path | None = None
    ) -> None:
        clock = ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))
        keys = KeyRing(clock, b"b" * 16)
        keys.current.ticket_key, keys.current.global_id = KEY, -217
        self.admission = Admission(clock, keys, 1)
        self.store = ReceiptStore(None, "w", clock, grace_s=0)
        self.sent: list[dict[str, Any]] = []
        rng = random.Random(1)
        self.app = AgentApp(
            admission=self.admission, engine=engine, clock=clock, rng=rng, store=self.store,
            unsigned=Unsigned(clock, count_max=8, age_s_max=60),
            tracer=start_tracer("agent", None, rng), served_model="m", context_tokens=4096, tee_type="none",
            endpoints=("chat", "completions", "embeddings"), job_s_max=5.0,
            credit=OperatorCredit(self.store, max_nano=credit_max_nano, path=paid_file, global_id=None),
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
            "type": "http", "method": "POST", "path": CHAT.job_path,
            "headers": [
                (hop.TICKET_HEADER.encode(), header.encode()), (hop.STUB_HEADER.encode(), b"the gateway's own"),
            ],
        }  # fmt: skip
        async with asyncio.timeout(60):
            await self.app(scope, receive, send)

    async def kept(self) -> list[DeliveredReceipt]:
        """What the store would send; closes it."""
        due = await self.store.due(100)
        await self.store.aclose()
        return list(due.batch.receipts) if due is not None else []

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
    (kept,) = await bench.kept()
    assert ReceiptHead.decode(kept.head).usage == TokenUsage(completion=3)
    assert msgspec.json.decode(kept.body)["finish_reason"] == "abort"
    made = ticket(1, request_digest=plain_request_digest(RAW))
    assert (kept.ticket, kept.stub) == (seal_ticket(KEY, made), "the gateway's own")
    assert (engine.generation.aborted, bench.admission.running) == (1, 0)


async def test_nothing_generated_leaves_no_receipt() -> None:
    engine = StubEngine()
    bench = Bench(engine)

    async def leave_at_once() -> None:
        return

    await bench.run(leave_at_once)
    assert (await bench.kept(), bench.sent) == ([], [])
    assert (engine.generation.aborted, bench.admission.running) == (1, 0)


async def test_every_receipt_of_a_broken_answer_claims_nothing() -> None:
    bench = Bench(StubEngine(TOKEN, b""))
    await bench.run(_never)
    (kept,) = await bench.kept()
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
    assert await bench.kept() == []


async def test_a_completion_and_a_departure_at_once_count_as_complete() -> None:
    end = b"data: " + chunk(choice(0, finish="stop")) + b"\n\ndata: [DONE]\n\n"
    bench = Bench(StubEngine(TOKEN, end))

    async def leave_with_the_end() -> None:
        await _until(lambda: any(message.get("more_body") is False for message in bench.sent))

    await bench.run(leave_with_the_end)
    (kept,) = await bench.kept()
    assert ReceiptHead.decode(kept.head).usage == TokenUsage(completion=1)
    assert msgspec.json.decode(kept.body)["finish_reason"] == "stop"


END = b"data: " + chunk(choice(0, finish="stop")) + b"\n\ndata: [DONE]\n\n"


def _ended(bench: Bench) -> bool:
    return any(message.get("more_body") is False for message in bench.sent)


async def test_the_receipt_is_committed_before_the_gateway_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(StubEngine(TOKEN, END))
    keep, told_before = bench.store.keep, [True]

    def keep_and_look(receipt: KeptReceipt) -> "asyncio.Future[None]":
        committed = keep(receipt)
        committed.add_done_callback(lambda _: told_before.append(_ended(bench)))
        return committed

    monkeypatch.setattr(bench.store, "keep", keep_and_look)
    await bench.run(_never)
    assert _ended(bench)
    assert told_before == [True, False]
    assert len(await bench.kept()) == 1


async def test_a_slow_disk_holds_up_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(StubEngine(TOKEN, END))
    monkeypatch.setattr(bench.store, "keep", lambda _: asyncio.get_running_loop().create_future())
    await bench.run(_never)
    assert _ended(bench)
    await bench.store.aclose()


async def test_a_gateway_that_leaves_while_the_receipt_is_written_gets_one_receipt_not_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(StubEngine(TOKEN, END))
    keep, left = bench.store.keep, asyncio.Event()

    def keep_and_leave(receipt: KeptReceipt) -> "asyncio.Future[None]":
        keep(receipt)
        left.set()
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(bench.store, "keep", keep_and_leave)

    async def leave() -> None:
        await left.wait()

    await bench.run(leave)
    (kept,) = await bench.kept()
    assert ReceiptHead.decode(kept.head).usage == TokenUsage(completion=1)
    assert msgspec.json.decode(kept.body)["finish_reason"] == "stop"
    assert _ended(bench)


async def test_a_job_whose_receipt_might_find_no_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(StubEngine(TOKEN, END))
    monkeypatch.setattr(ReceiptStore, "accepting", False)
    await bench.run(_never)
    assert bench.statuses == [503]
    assert b'"receipts_full"' in bench.sent[1]["body"]
    assert await bench.kept() == []


def _prefill(processed: int, total: int) -> bytes:
    made = chunk(prompt_progress={"processed": processed, "cache": 0, "total": total})
    return b"data: " + made + b"\n\n"


async def test_a_prompt_longer_than_its_ticket_is_stopped_at_the_first_slice_of_its_prefill() -> None:
    engine = StubEngine(_prefill(64, 101), TOKEN, END)
    bench = Bench(engine)
    await bench.run(_never)
    assert bench.statuses == [400]
    error = msgspec.json.decode(bench.sent[-1]["body"])["error"]
    assert error["code"] == "context_length_exceeded"
    assert engine.generation.aborted == 1
    # Nothing was given, so nothing is claimed.
    assert await bench.kept() == []


async def test_a_prompt_as_long_as_its_ticket_is_answered() -> None:
    bench = Bench(StubEngine(_prefill(64, 100), TOKEN, END))
    await bench.run(_never)
    assert bench.statuses == [200]
    await bench.store.aclose()


async def test_a_worker_whose_operator_owes_too_much_refuses_before_the_engine_hears_of_it(tmp_path: Path) -> None:
    engine = StubEngine()
    bench = Bench(engine, credit_max_nano=0, paid_file=tmp_path / "none")
    leaf = Countersignature(global_id=-217, head_sha256=bytes(32), charge_numerator=10**6).encode()
    batch = SignedBatch(head=b"h", signature=b"s", delegation=b"d")
    signature = KeptSignature(
        ticket_sha256=bytes(32), kind=SignatureKind.COUNTERSIGNATURE, leaf=leaf, index=0, path=b"", batch=batch
    )
    await bench.store.keep_signatures([signature])
    await bench.run(_never)
    assert bench.statuses == [503]
    assert b"operator_owes" in bench.sent[-1]["body"]
    assert (engine.generation.aborted, bench.admission.running) == (0, 0)
    await bench.store.aclose()
