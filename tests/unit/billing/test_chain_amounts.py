"""What the chain shows of escrows and workers' children: no less than before, and no more than was given."""

import datetime as dt
import uuid

import pytest

from billing.escrows import ChainContradictionError, Escrow, EscrowState, MovementKind
from billing.payouts import Payee, PayeeSeen, payee_movements
from tests.settlement_values import NO_ROOT, raw_address, terms

PAYEE = Payee(
    payee_id=uuid.UUID(int=1), wallet=raw_address("wallet"), account=raw_address("child"), claimed_nano=60,
    owed_nano=20, paid_nano=45, returned_nano=5, leaf_nano=100, seen_seqno=7,
)  # fmt: skip


def child(claimed: int, owed: int = 0, in_flight: int = 0, *, seqno: int = 8) -> PayeeSeen:
    at = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
    return PayeeSeen(seqno=seqno, at=at, claimed_nano=claimed, owed_nano=owed, in_flight_nano=in_flight)


def escrow(close_requested_at: int = 0) -> Escrow:
    return Escrow(
        escrow_id=uuid.UUID(int=1), customer_id=uuid.UUID(int=2), terms=terms(allow_max_nano=100, allow_rate_nano=2),
        state=EscrowState.OPEN, deposited_nano=1_000, settled_nano=40, owed_nano=0, refunded_nano=0, charged_nano=0,
        allow_at_nano=10, allow_time=1_000, close_requested_at=close_requested_at, usage_root=NO_ROOT,
    )  # fmt: skip


def test_the_allowance_fills_up_as_the_contracts_does_and_stops_at_a_close() -> None:
    assert [escrow().allowance_nano(now) for now in (900, 1_000, 1_005, 1_044, 9_000)] == [10, 10, 20, 98, 100]
    assert [escrow(1_005).allowance_nano(now) for now in (1_002, 9_000)] == [14, 20]


@pytest.mark.parametrize(
    ("seen", "moved"),
    [
        (child(60, 20), None),
        (child(61, 20), (MovementKind.PAID, 46, 1)),
        (child(100), (MovementKind.PAID, 105, 60)),
        (child(100, 50, 9), (MovementKind.PAID, 46, 1)),
        (child(60, 21), (MovementKind.RETURNED, 6, 1)),
        (child(60, 60), (MovementKind.RETURNED, 45, 40)),
        (child(100, seqno=7), (MovementKind.PAID, 105, 60)),
        (child(0, seqno=6), None),
    ],
)
def test_what_a_child_has_paid_on_balance_moves_once(
    seen: PayeeSeen, moved: tuple[MovementKind, int, int] | None
) -> None:
    found = [(one.kind, one.cumulative_nano, one.amount_nano) for one in payee_movements(PAYEE, seen)]

    assert found == ([] if moved is None else [moved])


@pytest.mark.parametrize(
    "lie", [child(101), child(59), child(60, 61), child(60, 40, 21)], ids=["beyond", "fallen", "owed", "in flight"]
)
def test_a_child_that_claims_more_than_its_leaf_or_less_than_before_moves_nothing(lie: PayeeSeen) -> None:
    with pytest.raises(ChainContradictionError):
        payee_movements(PAYEE, lie)
