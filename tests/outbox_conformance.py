"""What every `OutboxStore` does."""

import pytest

from billing.ports import RecordRefusedError
from billing.ton.outbox import ATTEMPTS_MAX, Delivery, Intent, OutboxStore
from billing.ton.wallet_messages import Transfer
from cocoon.addresses import Address
from cocoon.contracts.escrow import RequestClose, escrow_init
from tests.escrow_values import CODE, escrow_config


def intent(number: int, *, value_nano: int = 10**9) -> Intent:
    """One message, unlike all others."""
    transfer = Transfer(
        Address(0, (number % 7).to_bytes(32, "big")), value_nano, RequestClose(number).encode(),
        escrow_init(CODE, escrow_config()) if number % 3 == 0 else None, bounce=number % 2 == 0,
    )  # fmt: skip
    return Intent(f"test:{number}", transfer)


def sameness(intents: list[Intent] | tuple[Intent, ...]) -> list[tuple[str, bytes]]:
    """Intents as something that can be compared."""
    return [(one.key, one.transfer.encode().hash) for one in intents]


async def kept(store: OutboxStore, *keys: str, seqno: int = 0) -> int:
    """A body with these intents, open; its id."""
    await store.keep(seqno=seqno, valid_until=1_900_000_000, boc=bytes([seqno]), keys=keys)
    body = await store.pending()
    assert body is not None
    return body.body_id


class OutboxConformance:
    """Subclasses give `store`."""

    async def test_what_was_kept_is_queued_once_in_order(self, store: OutboxStore) -> None:
        intents = [intent(number) for number in range(5)]
        await store.enqueue(intents)
        await store.enqueue([intent(2, value_nano=7), intent(9)])

        assert sameness(await store.queued(10)) == sameness([*intents, intent(9)])
        assert sameness(await store.queued(2)) == sameness(intents[:2])
        assert (await store.pending(), await store.last_seqno()) == (None, None)

    async def test_a_body_holds_its_intents_until_it_is_settled(self, store: OutboxStore) -> None:
        await store.enqueue([intent(number) for number in range(4)])
        await store.keep(seqno=3, valid_until=1_900_000_000, boc=b"signed", keys=["test:2", "test:0"])

        body = await store.pending()

        assert body is not None
        assert (body.seqno, body.valid_until, body.boc) == (3, 1_900_000_000, b"signed")
        assert sameness(body.intents) == sameness([intent(2), intent(0)])
        assert [one.key for one in await store.queued(10)] == ["test:1", "test:3"]
        assert await store.last_seqno() is None

    async def test_what_was_delivered_is_done_and_the_rest_waits_again(self, store: OutboxStore) -> None:
        await store.enqueue([intent(number) for number in range(3)])
        body_id = await kept(store, "test:0", "test:1", "test:2", seqno=4)
        await store.settle(Delivery(body_id, 77, frozenset({"test:0", "test:2"})))
        await store.settle(Delivery(body_id, 78, frozenset({"test:1"})))

        assert [one.key for one in await store.queued(10)] == ["test:1"]
        assert (await store.pending(), await store.last_seqno()) == (None, 4)

    async def test_what_expired_waits_again_in_its_place(self, store: OutboxStore) -> None:
        await store.enqueue([intent(number) for number in range(3)])
        body_id = await kept(store, "test:1", "test:0")
        await store.settle(Delivery(body_id, None, frozenset()))

        assert [one.key for one in await store.queued(10)] == ["test:0", "test:1", "test:2"]
        assert await store.last_seqno() is None

    async def test_a_second_open_body_is_refused_and_changes_nothing(self, store: OutboxStore) -> None:
        await store.enqueue([intent(0), intent(1)])
        body_id = await kept(store, "test:0")
        with pytest.raises(RecordRefusedError):
            await store.keep(seqno=1, valid_until=1, boc=b"", keys=["test:1"])

        body = await store.pending()
        assert body is not None
        assert body.body_id == body_id
        assert [one.key for one in await store.queued(10)] == ["test:1"]

    async def test_an_intent_that_is_not_queued_is_refused(self, store: OutboxStore) -> None:
        await store.enqueue([intent(0), intent(1)])
        body_id = await kept(store, "test:0")
        await store.settle(Delivery(body_id, 5, frozenset({"test:0"})))
        for keys in (["test:0"], ["test:1", "test:0"], ["test:never"]):
            with pytest.raises(RecordRefusedError):
                await store.keep(seqno=1, valid_until=1, boc=b"", keys=keys)

        assert await store.pending() is None
        assert [one.key for one in await store.queued(10)] == ["test:1"]

    async def test_a_seqno_that_was_executed_is_never_used_again(self, store: OutboxStore) -> None:
        await store.enqueue([intent(0), intent(1)])
        await store.settle(Delivery(await kept(store, "test:0", seqno=2), None, frozenset()))
        await store.settle(Delivery(await kept(store, "test:0", seqno=2), 9, frozenset({"test:0"})))
        with pytest.raises(RecordRefusedError):
            await store.keep(seqno=2, valid_until=1, boc=b"", keys=["test:1"])

    async def test_what_was_tried_too_often_is_stuck(self, store: OutboxStore) -> None:
        await store.enqueue([intent(0), intent(1)])
        for seqno in range(ATTEMPTS_MAX):
            assert "test:0" in [one.key for one in await store.queued(10)]
            await store.settle(Delivery(await kept(store, "test:0", seqno=seqno), 9 + seqno, frozenset()))

        assert [one.key for one in await store.queued(10)] == ["test:1"]
