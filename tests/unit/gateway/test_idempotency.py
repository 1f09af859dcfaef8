"""One key, one charge: who comes first runs, who comes later gets the same bytes, a wait or a refusal."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from billing.ports import LedgerUnavailableError, Outcome, Posted, RecordRefusedError
from cocoon.clock import SystemClock
from cocoon.endpoints import CHAT
from cocoon.ids import new_job_id
from cocoon.money import Amount
from cocoon.tracing import Trace, Tracer
from cocoon.usage import TokenUsage
from gateway import idempotency as module
from gateway.admission import parse_request
from gateway.client import ClientGoneError
from gateway.errors import InvalidRequestError, OverloadedError
from gateway.exchange import Event, Exchange, Money, State
from gateway.idempotency import (
    AlreadyCompletedError,
    ChargedError,
    Idempotency,
    IdempotencyConflictError,
    InFlightError,
    Standing,
)
from gateway.outcomes import OUTCOME_BYTES_MAX, OutcomeRoom
from gateway.walk import Call, Walk
from tests.ledger_values import settlement
from tests.memory_claims import MemoryClaims
from tests.scripted_engine import until
from tests.unit.gateway.walk_parts import KEY, PRINCIPAL, SteppedClient, Steps, body_of

POSTED = Posted(charge=Amount(5), worker_share=Amount(0), fee=Amount(5))


class Front:
    """Sends requests to one `Idempotency`."""

    def __init__(self) -> None:
        self.claims = MemoryClaims(SystemClock())
        self.idempotency = Idempotency(self.claims, SystemClock(), OutcomeRoom(3 * OUTCOME_BYTES_MAX))
        self.client = SteppedClient(Steps({}), b"")
        self._tracer = Tracer(None, None, random.Random(1))

    def request(self, *, stream: bool = False, body: bytes | None = None) -> Walk:
        trace: Trace = self._tracer.begin(None)
        walk = Walk(new_job_id(SystemClock(), random.SystemRandom()), Exchange(SystemClock()), trace, CHAT)
        walk.principal, walk.body = PRINCIPAL, body or body_of(stream=stream)
        walk.request = parse_request(CHAT, walk.body)
        walk.exchange.note(Event.AUTHENTICATE)
        return walk

    async def send(self, walk: Walk, key: bytes | None = b"k", **call: Any) -> bool:
        """Whether it was answered from an earlier one; `client` has what was sent."""
        self.client = SteppedClient(Steps({}), walk.body)
        fields: dict[str, Any] = {"endpoint": CHAT, "authorization": b"Bearer " + KEY, "path": "/p", **call}
        return await self.idempotency.replayed(walk, Call(idempotency_key=key, **fields), self.client)

    async def first(self, answer: bytes | None = None, **request: Any) -> Walk:
        """A request that runs; with `answer`, up to its last byte."""
        walk = self.request(**request)
        assert not await self.send(walk)
        if answer is not None:
            await self.client.answer([(b"x-cocoon-worker", b"w"), (b"server-timing", b"x")], answer)
        return walk

    async def end(self, walk: Walk, outcome: Outcome, posted: Posted | None = POSTED, **changes: Any) -> None:
        assert walk.turn is not None
        charged = settlement(walk.job_id, PRINCIPAL.customer_id, outcome=outcome, **changes)
        self.idempotency.settled(walk.turn, charged, posted)
        await until(lambda: not self.idempotency.running)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    made = Front()
    async with made.idempotency:
        yield made
    assert made.idempotency.room.left == 3 * OUTCOME_BYTES_MAX, "what was recorded or replayed is given back"


async def test_a_completed_answer_is_sent_again_to_the_byte_and_costs_nothing(front: Front) -> None:
    first = await front.first(b'{"an":"answer"}')
    await front.end(first, Outcome.COMPLETED)
    again = front.request()
    assert await front.send(again)
    assert front.client.answered == b'{"an":"answer"}'
    assert front.client.headers == [(b"x-cocoon-replayed", first.name.encode())]
    assert again.exchange.state is State.REPLAYED
    assert again.exchange.money is Money.NOTHING
    assert again.turn is None


async def test_a_stream_is_sent_again_with_every_comment_and_event(front: Front) -> None:
    first = await front.first(stream=True)
    client = front.client
    await client.begin_stream([])
    await client.write(b": keep-alive\n\n")
    await client.write(b"data: {}\n\n")
    await client.finish(b"data: [DONE]\n\n")
    await front.end(first, Outcome.COMPLETED)
    assert await front.send(front.request(stream=True))
    assert b"".join(front.client.events) == b": keep-alive\n\ndata: {}\n\ndata: [DONE]\n\n"
    assert front.client.finished


async def test_another_body_path_or_customer(front: Front) -> None:
    await front.first()
    for changed in (front.request(stream=True), front.request(body=body_of(stream=False) + b" ")):
        with pytest.raises(IdempotencyConflictError):
            await front.send(changed)
        assert changed.turn is None
    with pytest.raises(IdempotencyConflictError):
        await front.send(front.request(), path="/v1/embeddings")
    other = front.request()
    assert not await front.send(other, authorization=b"Bearer sk-cocoon-" + b"o" * 43)
    assert other.turn is not None


@pytest.mark.parametrize(
    "key", [b"", b" ", b"x" * 256, b"\xc3\xa9t", b"\xe9t\xe9", b"a\x00b", b"a\tb", b"a\nb", b" a", b"a "]
)
async def test_a_key_that_is_none(front: Front, key: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await front.send(front.request(), key)
    assert caught.value.reason == "invalid_idempotency_key"
    assert front.claims.asked == 0


@pytest.mark.parametrize("key", [b"x", b"x" * 255, b"a b, c", bytes(range(0x21, 0x7F))])
async def test_a_key_that_is_one(front: Front, key: bytes) -> None:
    assert not await front.send(front.request(), key)


async def test_what_is_too_long_to_keep_is_charged_and_refused_with_its_receipt(front: Front) -> None:
    first = await front.first(b"x" * (OUTCOME_BYTES_MAX + 1))
    await front.end(first, Outcome.COMPLETED)
    with pytest.raises(AlreadyCompletedError, match=first.name):
        await front.send(front.request())


async def test_a_client_that_left_and_was_charged_hears_so_instead_of_paying_again(front: Front) -> None:
    first = await front.first()
    await front.end(first, Outcome.CLIENT_GONE)
    with pytest.raises(ChargedError, match=first.name):
        await front.send(front.request())


@pytest.mark.parametrize(
    ("outcome", "changes"),
    [(Outcome.CLIENT_GONE, {"usage": TokenUsage()}), (Outcome.BROKEN, {})],
)
async def test_what_cost_nothing_is_forgotten(front: Front, outcome: Outcome, changes: dict[str, Any]) -> None:
    await front.end(await front.first(), outcome, **changes)
    assert front.claims.rows == {}
    await front.first()


async def test_what_nobody_knows_is_left_to_expire_and_then_decided_by_the_books(front: Front) -> None:
    first = await front.first(b"{}")
    await front.end(first, Outcome.COMPLETED, posted=None)
    [row] = front.claims.rows.values()
    assert row.standing is Standing.RUNNING
    row.expires_at = 0
    front.claims.charged[first.job_id] = Outcome.COMPLETED
    with pytest.raises(AlreadyCompletedError):
        await front.send(front.request())


async def test_a_dead_request_is_run_again_once_it_cannot_be_charged_any_more(front: Front) -> None:
    first = await front.first()
    next(iter(front.claims.rows.values())).expires_at = 0
    heir = front.request()
    assert not await front.send(heir)
    assert front.claims.written_off == {first.job_id}
    # The first was only slow: what it does now changes nothing for its heir.
    assert first.turn is not None
    front.idempotency.forget(first.turn)
    await until(lambda: front.idempotency.running == 1)
    assert [row.job_id for row in front.claims.rows.values()] == [heir.job_id]


async def test_a_duplicate_waits_for_the_first_and_then_has_its_answer(front: Front) -> None:
    first = await front.first(b'{"an":"answer"}')
    asked = front.claims.asked
    again = asyncio.create_task(front.send(front.request()))
    await until(lambda: front.claims.asked >= asked + 2)
    await front.end(first, Outcome.COMPLETED)
    assert await again
    assert front.client.answered == b'{"an":"answer"}'


async def test_a_duplicate_waits_for_the_first_and_runs_when_that_cost_nothing(front: Front) -> None:
    first = await front.first()
    asked = front.claims.asked
    again = front.request()
    waiting = asyncio.create_task(front.send(again))
    await until(lambda: front.claims.asked >= asked + 2)
    assert first.turn is not None
    front.idempotency.forget(first.turn)
    assert not await waiting
    assert again.turn is not None


async def test_of_many_duplicates_whose_first_failed_one_runs(front: Front) -> None:
    first = await front.first()
    duplicates = [front.request() for _ in range(5)]
    waiting = [asyncio.create_task(front.send(walk)) for walk in duplicates]
    await until(lambda: front.claims.asked >= 12)
    assert first.turn is not None
    front.idempotency.forget(first.turn)
    await until(lambda: any(walk.turn for walk in duplicates))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(walk.turn is not None for walk in duplicates) == 1


async def test_a_wait_has_an_end(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S_MAX", 0.06)
    await front.first()
    with pytest.raises(InFlightError) as caught:
        await front.send(front.request())
    assert caught.value.transient
    assert caught.value.retry_after_s > 0


async def test_only_so_many_wait_and_the_rest_is_told_at_once(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITERS_MAX", 1)
    await front.first()
    waiting = asyncio.create_task(front.send(front.request()))
    await until(lambda: front.claims.asked >= 3)
    with pytest.raises(InFlightError):
        await front.send(front.request())
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    monkeypatch.setattr(module, "WAIT_S_MAX", 0.03)
    asked = front.claims.asked
    with pytest.raises(InFlightError):
        await front.send(front.request())
    assert front.claims.asked > asked + 1, "the place was given back, so this one waited"


async def test_a_duplicate_whose_client_leaves_waits_no_longer(front: Front) -> None:
    await front.first()
    waiting = asyncio.create_task(front.send(front.request()))
    await until(lambda: front.claims.asked >= 3)
    front.client.leave()
    with pytest.raises(ClientGoneError):
        await waiting


async def test_the_store_away_is_said_and_nothing_runs(front: Front) -> None:
    front.claims.away = LedgerUnavailableError()
    walk = front.request()
    with pytest.raises(LedgerUnavailableError):
        await front.send(walk)
    assert walk.turn is None
    front.claims.away = None


async def test_a_claim_whose_answer_was_lost_blocks_nobody(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    granted = front.claims.claim

    async def lost(*arguments: Any) -> Any:
        await granted(*arguments)
        raise LedgerUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(front.claims, "claim", lost)
        with pytest.raises(LedgerUnavailableError):
            await front.send(front.request())
    await until(lambda: not front.claims.rows)
    await front.first()


async def test_an_end_is_sent_until_the_store_has_it(front: Front) -> None:
    first = await front.first(b"{}")
    front.claims.away = LedgerUnavailableError()
    assert first.turn is not None
    front.idempotency.settled(first.turn, settlement(first.job_id, PRINCIPAL.customer_id), POSTED)
    await asyncio.sleep(0)
    assert front.idempotency.running == 1, "it is renewed meanwhile"
    front.claims.away = None
    await until(lambda: not front.idempotency.running)
    assert await front.send(front.request())


async def test_an_end_that_the_store_refuses_for_good_frees_its_memory(front: Front) -> None:
    first = await front.first(b"x" * 1000)
    front.claims.away = RecordRefusedError()
    await front.end(first, Outcome.COMPLETED)
    front.claims.away = None
    assert front.idempotency.room.left == 3 * OUTCOME_BYTES_MAX


async def test_running_claims_are_renewed_and_what_is_over_is_swept(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    monkeypatch.setattr(module, "SWEEP_MAX", 1)
    other = Front()
    async with other.idempotency:
        for number in range(3):
            old = other.request()
            await other.send(old, bytes([0x61 + number]))
            await other.end(old, Outcome.CLIENT_GONE)
        await other.first()
        *ended, running = other.claims.rows.values()
        for row in ended:
            row.expires_at = 0
        running.expires_at = 0
        await until(lambda: len(other.claims.rows) == 1 and running.expires_at > 0)
        # The store is away for a moment: the next round comes all the same.
        monkeypatch.setattr(module, "RENEW_AGAIN_S", 0.01)
        other.claims.away = LedgerUnavailableError()
        running.expires_at = 0
        await asyncio.sleep(0.03)
        other.claims.away = None
        await until(lambda: running.expires_at > 0)


async def test_an_outcome_that_does_not_open_is_neither_shown_nor_run_again(front: Front) -> None:
    first = await front.first(b"{}")
    await front.end(first, Outcome.COMPLETED)
    [row] = front.claims.rows.values()
    assert row.outcome is not None
    row.outcome = row.outcome[:-1] + bytes([row.outcome[-1] ^ 1])
    with pytest.raises(AlreadyCompletedError, match=first.name):
        await front.send(front.request())
    assert front.client.answered is None


async def test_replays_are_bounded_by_the_room_too(front: Front) -> None:
    await front.end(await front.first(b"x" * 1000), Outcome.COMPLETED)
    taken = front.idempotency.room.left - 500
    assert front.idempotency.room.take(taken)
    with pytest.raises(OverloadedError):
        await front.send(front.request())
    front.idempotency.room.give_back(taken)
    assert await front.send(front.request())


async def test_a_client_that_does_not_read_its_replay_is_not_waited_for_long(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPLAY_S_MAX", 0.02)
    await front.end(await front.first(b"{}"), Outcome.COMPLETED)

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(SteppedClient, "answer", never)
    with pytest.raises(ClientGoneError):
        await front.send(front.request())


async def test_too_many_ends_at_once_are_left_to_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDS_MAX", 1)
    made = Front()
    walks = [made.request(), made.request()]
    for number, walk in enumerate(walks):
        await made.send(walk, b"k%d" % number)
    for walk in walks:  # nobody serves the lane yet
        assert walk.turn is not None
        made.idempotency.forget(walk.turn)
    assert made.idempotency.running == 1
    async with made.idempotency:
        await until(lambda: not made.idempotency.running)
    assert [row.job_id for row in made.claims.rows.values()] == [walks[1].job_id]
