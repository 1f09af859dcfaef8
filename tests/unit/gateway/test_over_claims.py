"""A worker that claims more than its ticket: the customer pays the ticket at most, and the claim is noted."""

import asyncio
import random
from typing import Any

import pytest

from billing.ports import Settlement
from cocoon.clock import SystemClock
from cocoon.endpoints import CHAT
from cocoon.enrolment import Heartbeat, ServedModel
from cocoon.ids import new_job_id
from cocoon.money import Amount
from cocoon.usage import TokenUsage
from gateway.over_claims import WAITING_MAX, OverClaims
from gateway.settle import Settler
from gateway.walk import Call
from tests.ledger_values import job_id, settlement
from tests.unit.gateway import walk_parts
from tests.unit.gateway.walk_parts import CREDIT, KEY, MODEL, PRINCIPAL, SteppedClient, SteppedLedger, SteppedTransport
from tests.unit.workers.worker_values import a_worker
from workers.transport import Batch, End

DOCUMENT = b'{"choices":[{}],"usage":{"prompt_tokens":10,"completion_tokens":5}}'


class Noted(OverClaims):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.claims: list[tuple[Settlement, TokenUsage]] = []

    def note(self, settlement: Settlement, claimed: TokenUsage) -> None:
        self.claims.append((settlement, claimed))


async def answered(monkeypatch: pytest.MonkeyPatch, usage: TokenUsage, *, worker: bool) -> tuple[Noted, SteppedLedger]:
    """One request (at most 20 completion tokens) whose answer comes with these counts."""
    end = End(usage=usage, finish_reason="stop", receipt_head=b"h" * 124, receipt_signature=b"s" * 64)
    monkeypatch.setattr(walk_parts, "unary", lambda: [Batch(DOCUMENT, usage, end)])
    steps = walk_parts.Steps({})
    client = SteppedClient(steps, walk_parts.body_of(stream=False))
    clock, noted = SystemClock(), Noted()
    walk = walk_parts.Walked(steps, client, SteppedTransport(steps, broken=0, wait=None), SteppedLedger(steps))
    walk.over_claims = noted
    await walk.ledger.deposit(new_job_id(clock, random.Random(1)), PRINCIPAL.customer_id, Amount(CREDIT))
    async with Settler(walk.ledger, clock) as settler:
        pipeline = walk_parts.a_pipeline(walk, settler)
        if worker:
            walk.registry.set_upstreams([])
            enrolled = a_worker(clock, models=(ServedModel(id=MODEL, context_tokens=1000),))
            walk.registry.put_enrolment(enrolled)
            beat = Heartbeat(running=0, queued=0, capacity=4)
            walk.registry.note_heartbeat(enrolled.worker_id, beat, clock.monotonic())
        await pipeline.serve(Call(endpoint=CHAT, authorization=b"Bearer " + KEY), client)
        assert await settler.drain(2)
    assert client.answered is not None
    return noted, walk.ledger


async def test_it_is_cut_down_to_the_ticket_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = TokenUsage(prompt=10_000, completion=21)
    noted, ledger = await answered(monkeypatch, claimed, worker=True)
    [settled] = ledger.settlements
    assert settled.usage.completion == 20
    assert settled.usage.prompt < 1000
    assert noted.claims == [(settled, claimed)]
    assert settled.worker_id is not None


@pytest.mark.parametrize(
    ("usage", "worker"),
    [(TokenUsage(prompt=10, completion=20), True), (TokenUsage(prompt=10, completion=21), False)],
)
async def test_what_lies_within_the_ticket_or_comes_from_a_trusted_engine_is_not(
    monkeypatch: pytest.MonkeyPatch, usage: TokenUsage, *, worker: bool
) -> None:
    noted, ledger = await answered(monkeypatch, usage, worker=worker)
    assert noted.claims == []
    assert len(ledger.settlements) == 1


async def test_a_flood_of_claims_takes_bounded_memory_and_is_written_in_order() -> None:
    written: list[tuple[Settlement, TokenUsage]] = []

    async def record(claims: Any) -> None:
        written.extend(claims)

    over = OverClaims(record)
    made = [settlement(job_id(), PRINCIPAL.customer_id) for _ in range(WAITING_MAX + 5)]
    for one in made:
        over.note(one, TokenUsage(completion=9))
    running = asyncio.get_running_loop().create_task(over.run())
    async with asyncio.timeout(60):
        while len(written) < WAITING_MAX:  # noqa: ASYNC110  another task's doing
            await asyncio.sleep(0)
    running.cancel()
    assert [one.job_id for one, _ in written] == [one.job_id for one in made[:WAITING_MAX]]
