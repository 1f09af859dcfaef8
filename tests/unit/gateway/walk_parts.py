"""A pipeline in one process, without sockets: every await of a request is a step at which a test may strike."""

import asyncio
import contextlib
import enum
import hashlib
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from billing.memory import InMemoryLedger
from billing.ports import Hold, HoldRequest, LedgerUnavailableError, Settlement
from billing.pricing import ModelOffer, PriceBook
from cocoon.clock import SystemClock
from cocoon.endpoints import CHAT
from cocoon.errors import CocoonError
from cocoon.http1 import HopError
from cocoon.ids import new_job_id
from cocoon.money import Amount, Price
from cocoon.tracing import Tracer
from cocoon.usage import TokenUsage
from gateway.attempts import Attempts
from gateway.auth import KeyRecord, KeyTable, Principal
from gateway.client import ClientGoneError, Headers, Limits
from gateway.idempotency import Claim, Ended, Idempotency
from gateway.limits import LimitState
from gateway.outcomes import Recording, Turn
from gateway.over_claims import OverClaims
from gateway.pipeline import Pipeline
from gateway.prices import Prices
from gateway.sealed import SealedRequests
from gateway.settle import Settler
from gateway.walk import Call
from tests.memory_claims import MemoryClaims
from workers.covers import ENDLESS_NANO
from workers.enrolments import upstream
from workers.registry import Registry
from workers.routing import RetryBudget, Router
from workers.targets import Target
from workers.transport import Batch, End, Job

KEY = b"sk-cocoon-" + b"k" * 43
MODEL = "m"
PRINCIPAL = Principal(key_id=uuid.UUID(int=1), customer_id=uuid.UUID(int=2), name="test", spend_day_nano_max=10**15)
PRICE = Price(version=1, prompt=1_000_000, cached=0, completion=1_000_000)
CREDIT = 10**6
WHOLE = TokenUsage(prompt=10, completion=5)


class Blow(enum.Enum):
    """What can happen to a request while it waits."""

    CANCEL = "the process ends"
    LEAVE = "the client leaves"
    VANISH = "the client leaves in the very turn in which the wait is over"
    CRASH = "a mistake of ours"
    FAIL = "the other side fails"
    STALL = "nothing happens any more"


class Steps:
    """Numbers every await of one request and strikes at some of them."""

    def __init__(self, blows: dict[int, Blow]) -> None:
        self.names: list[str] = []
        self.task: asyncio.Task[None] | None = None
        self.leave: Callable[[], None] = lambda: None
        self._blows = blows

    async def step(self, name: str, failure: CocoonError | None = None) -> None:
        """One await. `failure` is what the other side's failing looks like here."""
        blow = self._blows.get(len(self.names))
        self.names.append(name)
        match blow:
            case None:
                await asyncio.sleep(0)
            case Blow.CANCEL:
                assert self.task is not None
                self.task.cancel()
                await asyncio.sleep(0)
            case Blow.LEAVE:
                self.leave()
                for _ in range(3):
                    await asyncio.sleep(0)
            case Blow.VANISH:
                self.leave()
            case Blow.CRASH:
                raise RuntimeError("a mistake")
            case Blow.FAIL:
                raise failure or RuntimeError("a mistake")
            case Blow.STALL:
                await asyncio.Event().wait()


class SteppedClient:
    """Notes what it got."""

    def __init__(self, steps: Steps, body: bytes) -> None:
        self.gone = self.blocked = self.began = False
        self.answered: bytes | None = None
        self.begun = asyncio.Event()
        self.events: list[bytes] = []
        self.finished = False
        self.errors: list[CocoonError] = []
        self.callback: Callable[[], None] | None = None
        self.headers: Headers = []
        self.recording: Recording | None = None
        self._steps = steps
        self._request_body = body
        self._writing = False
        steps.leave = self.leave

    def leave(self) -> None:
        self.gone = True
        self.begun.set()
        if self.callback is not None:
            self.callback()

    def always(self, headers: Headers) -> None:
        self.headers += headers

    def seal(self) -> None:
        raise AssertionError("nothing here is sealed")

    def record(self, recording: Recording) -> None:
        self.recording = recording

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        self.callback = callback
        if callback is not None and self.gone:
            callback()

    async def body(self) -> bytes:
        await self._steps.step("body")
        if self.gone:
            raise ClientGoneError
        return self._request_body

    async def answer(self, headers: Headers, body: bytes) -> None:
        if self.recording is not None:
            self.recording.begin(headers, stream=False)
            self.recording.add(body, last=True)
        await self._send("answer")
        self.answered = body

    async def begin_stream(self, headers: Headers) -> None:
        if self.recording is not None:
            self.recording.begin(headers, stream=True)
        assert not self.began, "a stream begins once"
        self.began = True
        self.begun.set()
        await self._send("begin")

    async def write(self, data: bytes) -> None:
        assert data, "nothing is not written"
        if self.recording is not None:
            self.recording.add(data, last=False)
        await self._send("write")
        self.events.append(data)

    async def finish(self, data: bytes) -> None:
        if self.recording is not None:
            self.recording.add(data, last=True)
        await self._send("finish")
        self.events.append(data)
        self.finished = True

    async def fail(self, error: CocoonError) -> None:
        assert not self.finished, "nothing follows a whole answer"
        assert self.answered is None, "nothing follows a whole answer"
        self.errors.append(error)
        await self._send("fail")

    async def _send(self, name: str) -> None:
        assert not self._writing, "two writers"
        self._writing = self.blocked = True
        try:
            await self._steps.step(name)
            self.blocked = False
        finally:
            self._writing = False


class SteppedAnswer:
    """Gives its batches one by one."""

    def __init__(self, steps: Steps, batches: list[Batch]) -> None:
        self.salt: str | None = None
        self.closed = 0
        self._steps = steps
        self._batches = batches

    async def next(self) -> Batch:
        await self._steps.step("next", HopError())
        return self._batches.pop(0)

    def close(self) -> None:
        self.closed += 1


class SteppedTransport:
    """Opens answers; the first `broken` of them fail before their first byte."""

    def __init__(self, steps: Steps, *, broken: int, wait: Callable[[], Any] | None) -> None:
        self.opened: list[SteppedAnswer] = []
        self._steps = steps
        self._left_to_break = broken
        self._wait = wait

    async def open(self, target: Target, job: Job) -> SteppedAnswer:
        del target
        await self._steps.step("open", HopError())
        if self._wait is not None:
            await self._wait()
        if self._left_to_break:
            self._left_to_break -= 1
            raise HopError
        answer = SteppedAnswer(self._steps, streamed() if job.stream else unary())
        self.opened.append(answer)
        return answer

    def close(self) -> None:
        return


class SteppedLedger(InMemoryLedger):
    """Holds take time before and after they are granted. As the port's users may expect, a caller that vanishes while
    it waits leaves no hold behind."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(SystemClock())
        self.steps = steps
        self.settlements: list[Settlement] = []

    async def hold(self, request: HoldRequest) -> Hold:
        await self.steps.step("hold", LedgerUnavailableError())
        hold = await super().hold(request)
        try:
            await self.steps.step("held", LedgerUnavailableError())
        except asyncio.CancelledError:
            await self.void(request.job_id, request.customer_id)
            raise
        return hold

    async def settle(self, settlement: Settlement) -> Any:
        self.settlements.append(settlement)
        return await super().settle(settlement)


class SteppedPermit:
    """Notes what it was told."""

    def __init__(self, limiter: "SteppedLimiter") -> None:
        self.state = LimitState()
        self._limiter = limiter

    def release(self, tokens_used: int, charge_nano: int = 0) -> None:
        self._limiter.released.append(tokens_used)
        self._limiter.charged.append(charge_nano)

    def settled(self) -> None:
        self._limiter.settled += 1


class SteppedLimiter:
    """Counts permits."""

    def __init__(self, steps: Steps) -> None:
        self.released: list[int] = []
        self.charged: list[int] = []
        self.given = 0
        self.settled = 0
        self._steps = steps

    async def acquire(self, principal: Principal, **_: Any) -> SteppedPermit:
        del principal
        await self._steps.step("limit")
        self.given += 1
        return SteppedPermit(self)


async def _nowhere(claims: object) -> None:
    del claims


class SteppedClaims(MemoryClaims):
    """Claims take time before and after they are granted."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(SystemClock())
        self._steps = steps

    async def claim(self, turn: Turn, claim_s: float) -> Claim:
        await self._steps.step("claim", LedgerUnavailableError())
        claim = await super().claim(turn, claim_s)
        await self._steps.step("claimed", LedgerUnavailableError())
        return claim

    async def end(self, ends: Sequence[Ended]) -> None:
        await asyncio.sleep(0)
        await super().end(ends)


class Walked:
    """One request after its end, and everything that it touched."""

    def __init__(self, steps: Steps, client: SteppedClient, transport: SteppedTransport, ledger: SteppedLedger) -> None:
        self.steps = steps
        self.client = client
        self.transport = transport
        self.ledger = ledger
        self.limiter = SteppedLimiter(steps)
        self.claims = SteppedClaims(steps)
        self.idempotency = Idempotency(self.claims, SystemClock())
        self.registry = Registry(SystemClock())
        self.over_claims = OverClaims(_nowhere)
        self.cancelled = False
        self.raised: BaseException | None = None
        self.settled = False
        self.spent = self.held = 0

    def grant(self, nano: int) -> None:
        """What may be dispatched against each stake."""
        for member in self.registry.members():
            assert member.cover is not None
            member.cover.granted_nano = nano

    async def claim_cover(self) -> None:
        await self.steps.step("cover")
        self.grant(ENDLESS_NANO)


async def walked(
    blows: dict[int, Blow], *, stream: bool, broken: int = 0, late: bool = False, key: bytes | None = None,
    uncovered: bool = False, **limits: float,
) -> Walked:  # fmt: skip
    """Walk one request through a pipeline of its own. `late`: the first token comes after a keep-alive comment.

    `uncovered`: at first this process may dispatch against nobody's stake.
    """
    steps = Steps(blows)
    client = SteppedClient(steps, body_of(stream=stream))

    transport = SteppedTransport(steps, broken=broken, wait=client.begun.wait if late else None)
    walk = Walked(steps, client, transport, SteppedLedger(steps))
    clock = SystemClock()
    await walk.ledger.deposit(new_job_id(clock, random.Random(1)), PRINCIPAL.customer_id, Amount(CREDIT))
    async with walk.idempotency, Settler(walk.ledger, clock) as settler:
        pipeline = a_pipeline(walk, settler, staked=True, keep_alive_s=0.0 if late else 10.0, **limits)
        if uncovered:
            walk.grant(0)
        steps.task = asyncio.get_running_loop().create_task(
            pipeline.serve(Call(endpoint=CHAT, authorization=b"Bearer " + KEY, idempotency_key=key), client)
        )
        await asyncio.wait([steps.task])
        walk.cancelled = steps.task.cancelled()
        if not walk.cancelled:
            walk.raised = steps.task.exception()
        walk.settled = await settler.drain(2)
    balance = await walk.ledger.balance(PRINCIPAL.customer_id)
    walk.spent, walk.held = balance.spent.nano, balance.held.nano
    return walk


def a_pipeline(walk: Walked, settler: Settler, *, staked: bool = False, **limits: float) -> Pipeline:
    clock, rng = SystemClock(), random.Random(3)
    keys, prices = KeyTable(clock), Prices()
    keys.replace([KeyRecord(sha256=hashlib.sha256(KEY).digest(), principal=PRINCIPAL)], confirmed_at=2.0**40)
    prices.book = PriceBook([
        ModelOffer(
            model=MODEL, context_tokens=1000, default_max_completion=100, template_tokens_per_message=0,
            base_tokens=0, price=PRICE,
        )
    ])  # fmt: skip
    walk.registry.set_upstreams(
        upstream(name=name, url=f"http://{name}.example/v1", models={MODEL: MODEL}, context_tokens=1000, capacity=1)
        for name in ("one", "two")
    )
    times: dict[str, Any] = {"first_byte_s": 5.0, "idle_s": 5.0, "request_s_max": 5.0, "keep_alive_s": 10.0, **limits}
    attempts = Attempts(
        Router(walk.registry, clock, rng, staked=staked), walk.transport, RetryBudget(clock), clock,  # type: ignore[arg-type]
        network_secret=bytes(32), global_id=-3, request_s_max=5, claim_cover=walk.claim_cover,
    )  # fmt: skip
    return Pipeline(
        keys=keys, limiter=walk.limiter, ledger=walk.ledger, prices=prices, attempts=attempts, settler=settler,
        idempotency=walk.idempotency, tracer=Tracer(None, None, rng), clock=clock, rng=rng,
        limits=Limits(**times, exchanges_max=10), over_claims=walk.over_claims,
        sealed=SealedRequests(None, clock),  # type: ignore[arg-type]
    )  # fmt: skip


def body_of(*, stream: bool) -> bytes:
    tail = b',"stream":true,"stream_options":{"include_usage":true}' if stream else b""
    return b'{"model":"m","max_tokens":20,"messages":[{"role":"user","content":"hello"}]%b}' % tail


def streamed() -> list[Batch]:
    """Three batches: a token, two more, and the rest with counts and the end mark."""
    last = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}\n\ndata: [DONE]\n\n'
    return [
        Batch(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', TokenUsage(prompt=10, completion=1), None),
        Batch(b"", TokenUsage(prompt=10, completion=2), None),
        Batch(b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n', TokenUsage(prompt=10, completion=3), None),
        Batch(last, WHOLE, End(usage=WHOLE, finish_reason="stop")),
    ]


def unary() -> list[Batch]:
    """Counts on the way, then the document."""
    document = b'{"choices":[{}],"usage":{"prompt_tokens":10,"completion_tokens":5}}'
    return [
        Batch(b"", TokenUsage(prompt=10, completion=2), None),
        Batch(document, WHOLE, End(usage=WHOLE, finish_reason="stop")),
    ]


@contextlib.asynccontextmanager
async def no_task_left() -> AsyncIterator[None]:
    """Every task that is begun inside has ended shortly after."""
    before = asyncio.all_tasks()
    yield
    for _ in range(10):
        if asyncio.all_tasks() <= before:
            break
        await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before
