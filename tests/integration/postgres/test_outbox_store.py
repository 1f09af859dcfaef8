"""The outbox's store in Postgres conforms, and survives two processes at once."""

import asyncio

import pytest

from billing.ports import RecordRefusedError
from billing.postgres.outbox import PostgresOutbox
from billing.postgres.pool import Pool
from billing.ton.outbox import Delivery
from cocoon.addresses import Address
from tests.outbox_conformance import OutboxConformance, intent, kept

WALLET = Address(0, bytes([1]) * 32)


class TestPostgresOutbox(OutboxConformance):
    @pytest.fixture
    def store(self, pool: Pool) -> PostgresOutbox:
        return PostgresOutbox(pool, WALLET)


async def test_of_two_processes_one_opens_a_body(pool: Pool) -> None:
    store = PostgresOutbox(pool, WALLET)
    await store.enqueue([intent(number) for number in range(8)])

    async def attempt(number: int) -> bool:
        try:
            await store.keep(seqno=0, valid_until=10, boc=bytes([number]), keys=[f"test:{number}"])
        except RecordRefusedError:
            return False
        return True

    assert sorted(await asyncio.gather(*(attempt(number) for number in range(8)))) == [False] * 7 + [True]
    assert len(await store.queued(10)) == 7


async def test_wallets_do_not_meet(pool: Pool) -> None:
    mine, other = PostgresOutbox(pool, WALLET), PostgresOutbox(pool, Address(0, bytes([2]) * 32))
    await mine.enqueue([intent(0)])
    await kept(mine, "test:0")

    assert await other.pending() is None
    await other.enqueue([intent(0)])
    assert [one.key for one in await other.queued(5)] == ["test:0"]


async def test_how_far_an_intent_is_can_be_asked(pool: Pool) -> None:
    store = PostgresOutbox(pool, WALLET)
    assert await store.state("test:0") is None
    await store.enqueue([intent(0)])
    before = await store.state("test:0")
    body_id = await kept(store, "test:0")
    within = await store.state("test:0")
    await store.settle(Delivery(body_id, 2**62, frozenset({"test:0"})))
    after = await store.state("test:0")

    assert before is not None
    assert within is not None
    assert after is not None
    assert (before.in_body, within.in_body, after.delivered_lt) == (False, True, 2**62)
    assert not before.is_stuck
