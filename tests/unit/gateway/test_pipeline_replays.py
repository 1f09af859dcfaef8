"""Two requests under one Idempotency-Key through the whole walk: one runs and pays, the other gets its bytes."""

import random

import pytest

from cocoon.clock import SystemClock
from cocoon.endpoints import CHAT
from cocoon.errors import CocoonError
from cocoon.ids import new_job_id
from cocoon.money import Amount
from gateway.settle import Settler
from gateway.walk import Call
from tests.unit.gateway.walk_parts import (
    CREDIT,
    KEY,
    PRINCIPAL,
    SteppedClient,
    SteppedLedger,
    SteppedTransport,
    Steps,
    Walked,
    a_pipeline,
    body_of,
)


class Scene(Walked):
    """A pipeline whose requests are sent one after the other."""

    def __init__(self) -> None:
        steps = Steps({})
        super().__init__(
            steps, SteppedClient(steps, b""), SteppedTransport(steps, broken=0, wait=None), SteppedLedger(steps)
        )

    async def send(self, *requests: tuple[bytes | None, bytes]) -> list[SteppedClient]:
        """Each one's client, after all of them; (key, body)."""
        clock = SystemClock()
        await self.ledger.deposit(new_job_id(clock, random.Random(1)), PRINCIPAL.customer_id, Amount(CREDIT))
        clients: list[SteppedClient] = []
        async with self.idempotency, Settler(self.ledger, clock) as settler:
            pipeline = a_pipeline(self, settler)
            for key, body in requests:
                clients.append(SteppedClient(self.steps, body))
                await pipeline.serve(
                    Call(endpoint=CHAT, authorization=b"Bearer " + KEY, idempotency_key=key), clients[-1]
                )
            assert await settler.drain(5)
        self.spent = (await self.ledger.balance(PRINCIPAL.customer_id)).spent.nano
        return clients


def header(client: SteppedClient, name: bytes) -> list[bytes]:
    return [value for known, value in client.headers if known == name]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_second_gets_the_firsts_bytes_and_pays_nothing(stream: bool) -> None:
    scene = Scene()
    body = body_of(stream=stream)
    first, second = await scene.send((b"k", body), (b"k", body))
    assert (first.answered, b"".join(first.events)) == (second.answered, b"".join(second.events))
    assert (first.finished, second.finished) == (stream, stream)
    assert len(scene.transport.opened) == 1, "no worker was asked twice"
    assert len(scene.ledger.settlements) == 1
    assert scene.limiter.given == 1
    assert header(second, b"x-cocoon-replayed") == header(first, b"x-request-id")
    assert header(second, b"x-request-id") != header(first, b"x-request-id"), "each call has its own"
    assert header(first, b"x-cocoon-replayed") == []


async def test_without_the_header_nobody_asks_the_store_and_both_pay() -> None:
    scene = Scene()
    body = body_of(stream=False)
    await scene.send((None, body), (None, body))
    assert len(scene.ledger.settlements) == 2
    assert scene.claims.asked == 0
    assert "claim" not in scene.steps.names


async def test_a_refusal_before_money_moved_is_not_remembered() -> None:
    scene = Scene()
    good = body_of(stream=False)
    unknown = good.replace(b'"m"', b'"nobody-has-it"')
    first, second = await scene.send((b"k", unknown), (b"k", good))
    assert [error.code for error in first.errors] == ["model_not_found"]
    assert second.errors == list[CocoonError]()
    assert second.answered is not None, "the key was free, for another body too"


async def test_a_body_that_cannot_be_read_takes_no_key() -> None:
    scene = Scene()
    first, second = await scene.send((b"k", b"{"), (b"k", body_of(stream=False)))
    assert [error.code for error in first.errors] == ["invalid_request"]
    assert second.answered is not None


async def test_another_body_under_the_same_key_is_a_conflict_and_costs_nothing() -> None:
    scene = Scene()
    _, second = await scene.send((b"k", body_of(stream=False)), (b"k", body_of(stream=True)))
    assert [error.code for error in second.errors] == ["idempotency_conflict"]
    assert len(scene.ledger.settlements) == 1
