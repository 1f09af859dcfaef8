"""The payout contract in the books: what it may not show, and what the operator takes from it once."""

import datetime as dt
from typing import Any

import pytest

from billing.escrows import ChainContradictionError, MovementKind
from billing.payouts import PayoutSeen
from billing.postgres.account import Accounts
from billing.postgres.escrows import Escrows
from billing.postgres.ledger import PostgresLedger
from billing.postgres.payouts import Payouts
from billing.postgres.pool import Connection, Pool
from cocoon.addresses import Address
from tests.settlement_books import enrol_worker, spend
from tests.settlement_values import GENESIS, new_id, raw_address, seen, terms

PAYOUT = raw_address("payout")
ROOT = bytes([7]) * 32


def shown(seqno: int, **changes: Any) -> PayoutSeen:
    fields: dict[str, Any] = {
        "received_nano": 10_000, "paid_nano": 0, "fee_withdrawn_nano": 0, "fee_max_nano": 1_000, "active_epoch": 0,
        "active_root": bytes(32), "active_total_nano": 0, "pending_epoch": 0, "pending_root": bytes(32),
        "anchor_count": 0, "anchor_size": 0, "anchor_root": bytes(32),
    }  # fmt: skip
    return PayoutSeen(seqno=seqno, at=GENESIS + dt.timedelta(seconds=seqno), **fields | changes)


@pytest.fixture
async def payouts(pool: Pool, ledger: PostgresLedger, connection: Connection) -> Payouts:
    """Of a worker that earned, with the operator's part as revenue, both settled by an escrow."""
    customer = await Accounts(pool).open_customer(new_id(), "Ada")
    escrow = (await Escrows(pool).register(new_id(), customer, terms())).terms.address
    await Escrows(pool).observe(customer, escrow, seen(1, 10_000))
    await spend(ledger, customer, await enrol_worker(connection, Address(0, bytes([3]) * 32)), 10_000)
    await Escrows(pool).observe(customer, escrow, seen(2, 10_000, 10_000))
    return Payouts(pool, PAYOUT)


async def booked(connection: Connection) -> list[tuple[Any, ...]]:
    rows = await connection.fetch(
        "SELECT received_nano, fee_withdrawn_nano, active_epoch, seen_seqno FROM payout_contract"
    )
    return [tuple(row) for row in rows]


async def test_a_contract_that_shows_less_than_before_books_nothing(payouts: Payouts, connection: Connection) -> None:
    taken = await payouts.observe_contract(shown(5, fee_withdrawn_nano=100))
    assert taken is not None
    assert [(one.kind, one.amount_nano) for one in taken] == [(MovementKind.FEE, 100)]
    before = await booked(connection)
    for lie in (
        {"received_nano": 9_999, "fee_withdrawn_nano": 100},
        {"received_nano": 9_999, "fee_withdrawn_nano": 101},
        {"received_nano": 10_000, "fee_withdrawn_nano": 99},
        {"received_nano": 10_001, "fee_withdrawn_nano": 99},
    ):
        with pytest.raises(ChainContradictionError, match="less than before"):
            await payouts.observe_contract(shown(6, **lie))
    assert await booked(connection) == before
    again = await payouts.observe_contract(shown(6, received_nano=10_001, fee_withdrawn_nano=100))
    assert again == ()


async def test_a_root_that_is_none_of_ours_books_nothing(payouts: Payouts, connection: Connection) -> None:
    await payouts.observe_contract(shown(1))
    epoch = await payouts.prepare_epoch(9_000)
    assert epoch is not None
    before = await booked(connection)
    for lie in (
        {"pending_epoch": 1, "pending_root": ROOT},
        {"pending_epoch": 2, "pending_root": epoch.root},
        {"active_epoch": 1, "active_root": ROOT},
        {"active_epoch": 1, "active_root": epoch.root, "pending_epoch": 2, "pending_root": ROOT},
    ):
        with pytest.raises(ChainContradictionError, match="is not ours"):
            await payouts.observe_contract(shown(2, **lie))
    assert await booked(connection) == before
    for number, good in enumerate(
        ({"pending_epoch": 1, "pending_root": epoch.root}, {"active_epoch": 1, "active_root": epoch.root}), 2
    ):
        assert await payouts.observe_contract(shown(number, **good)) == ()


async def test_an_epoch_gives_no_more_than_what_came_in_and_no_earning_twice(payouts: Payouts) -> None:
    await payouts.observe_contract(shown(1))
    assert await payouts.prepare_epoch(-1) is None
    first = await payouts.prepare_epoch(4_000)
    assert first is not None
    assert first.total_nano == 4_000
    assert await payouts.prepare_epoch(4_000) is None, "all of it was given"
    second = await payouts.prepare_epoch(1_000_000)
    assert second is not None
    assert second.total_nano == second.earned_nano
    assert await payouts.prepare_epoch(1_000_000) is None
