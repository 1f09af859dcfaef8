"""What every `LeaseStore` must do for customers whose credit comes from escrows: never lease above the ceiling."""

import uuid
from collections.abc import Awaitable
from typing import Protocol

import pytest

from billing.ceilings import AllowanceExhaustedError, EscrowClosingError, EscrowCredit, VoucherRequiredError
from billing.lease_store import JournalRow, LeaseAnswer, LeaseChange, LeaseStore
from billing.ports import InsufficientCreditError, Posted
from cocoon.money import Amount, Price
from cocoon.usage import TokenUsage
from tests.lease_store_conformance import AgeLeases, BooksAndLeases, change, one
from tests.ledger_values import job_id, settlement
from tests.settlement_values import raw_address

NANO = Price(version=1, prompt=1_000_000, cached=0, completion=0)
"""One nano for each token."""
FIRST, SECOND = raw_address("first"), raw_address("second")


class ShowEscrows(Protocol):
    """Brings a customer's escrows to these states; what their deposits have grown by becomes credit."""

    def __call__(self, customer: uuid.UUID, unsigned_max: int, *escrows: EscrowCredit) -> Awaitable[None]: ...


def escrow(deposited: int, *, signed: int | None = 0, address: str = FIRST, **members: object) -> EscrowCredit:
    fields: dict[str, object] = {
        "epoch": 7, "closing": False, "settled_nano": 0, "charged_nano": 0, "allowance_nano": None,
        "allow_rate_nano": 0,
    }  # fmt: skip
    return EscrowCredit(address=address, deposited_nano=deposited, signed_nano=signed, **{**fields, **members})  # pyright: ignore[reportArgumentType]  a test's values


async def leased(store: LeaseStore, customer: uuid.UUID, least: int, most: int | None = None) -> LeaseAnswer:
    return await one(store, change(customer, need_min_nano=least, need_nano=most or least))


async def charged(store: LeaseStore, customer: uuid.UUID, nano: int, lease: LeaseChange, answer: LeaseAnswer) -> None:
    used = settlement(job_id(), customer, usage=TokenUsage(prompt=nano), price=NANO)
    [posted] = await store.flush([JournalRow(settlement=used, lease_id=lease.lease_id, fence=answer.fence)])
    assert isinstance(posted, Posted)


def refusal(answer: LeaseAnswer) -> InsufficientCreditError:
    assert answer.withheld is not None, repr(answer)
    return answer.withheld.error()


def demanded(answer: LeaseAnswer) -> tuple[str, int, int]:
    assert answer.short
    refused = refusal(answer)
    assert isinstance(refused, VoucherRequiredError), repr(refused)
    demand = refused.demand
    return demand.escrow, demand.epoch, demand.cumulative_nano


class CeilingConformance:
    """For a suite with the fixtures `store`, `show_escrows` and `age_leases`."""

    async def test_leases_of_all_processes_together_stay_below_what_is_signed_and_the_bound(
        self, store: BooksAndLeases, show_escrows: ShowEscrows
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(1000, signed=40))
        assert (await leased(store, customer, 60)).delta_nano == 60
        assert (await leased(store, customer, 1, 500)).delta_nano == 80
        assert demanded(await leased(store, customer, 1)) == (FIRST, 7, 40)
        assert (await store.balance(customer)).available == Amount(860)

    async def test_what_was_charged_is_demanded_and_signing_it_frees_as_much(
        self, store: BooksAndLeases, show_escrows: ShowEscrows
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(1000))
        asked = change(customer, need_min_nano=100, need_nano=100)
        await charged(store, customer, 70, asked, await one(store, asked))
        assert demanded(await leased(store, customer, 1)) == (FIRST, 7, 70)
        await show_escrows(customer, 100, escrow(1000, signed=70))
        assert (await leased(store, customer, 1, 500)).delta_nano == 70

    async def test_no_more_is_served_than_was_deposited_whatever_is_signed(
        self, store: BooksAndLeases, show_escrows: ShowEscrows
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(50, signed=20))
        assert (await leased(store, customer, 10, 500)).delta_nano == 50
        short = await leased(store, customer, 1)
        assert (short.short, short.withheld) == (True, None)  # the balance refuses, and no voucher would help

    async def test_what_an_expired_lease_left_counts_until_it_is_back(
        self, store: BooksAndLeases, show_escrows: ShowEscrows, age_leases: AgeLeases
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(1000))
        await leased(store, customer, 100)
        await age_leases()
        await store.sweep(10, 900)
        assert demanded(await leased(store, customer, 1)) == (FIRST, 7, 0)
        await age_leases()
        await store.sweep(10, 900)
        assert (await leased(store, customer, 1, 500)).delta_nano == 100

    async def test_a_close_request_freezes_and_takes_nothing_back_by_force(
        self, store: BooksAndLeases, show_escrows: ShowEscrows
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(1000))
        asked = change(customer, need_min_nano=90, need_nano=90)
        held = await one(store, asked)
        await show_escrows(customer, 100, escrow(1000, closing=True))
        refused = await leased(store, customer, 1)
        assert isinstance(refusal(refused), EscrowClosingError)
        more = change(customer, lease=asked.lease_id, seq=2, need_min_nano=1, need_nano=1)
        assert (await one(store, more)).short
        await charged(store, customer, 90, asked, held)
        back = change(customer, lease=asked.lease_id, seq=3)
        assert (await one(store, back)).delta_nano == 0

    async def test_a_ceiling_that_has_come_down_still_lets_holders_give_back(
        self, store: BooksAndLeases, show_escrows: ShowEscrows
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(1000))
        asked = change(customer, need_min_nano=90, need_nano=90)
        await one(store, asked)
        await show_escrows(customer, 100, escrow(1000, closing=True))
        back = change(customer, lease=asked.lease_id, seq=2, give_back_nano=60, need_min_nano=10, need_nano=10)
        answer = await one(store, back)
        assert (answer.delta_nano, answer.short) == (-60, True)
        assert (await store.balance(customer)).held == Amount(30)

    @pytest.mark.parametrize(("rate", "wait_s"), [(5, 4), (0, 3600), (1000, 1)])
    async def test_a_delegated_escrow_is_bounded_by_the_allowance_and_says_when_it_fills(
        self, store: BooksAndLeases, show_escrows: ShowEscrows, rate: int, wait_s: int
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(1000, signed=None, allowance_nano=80, allow_rate_nano=rate))
        assert (await leased(store, customer, 1, 500)).delta_nano == 80
        refused = refusal(await leased(store, customer, 20))
        assert isinstance(refused, AllowanceExhaustedError)
        assert refused.retry_after_s == wait_s

    async def test_an_escrow_with_both_keys_is_served_up_to_the_better_of_them(
        self, store: BooksAndLeases, show_escrows: ShowEscrows
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(1000, signed=10, allowance_nano=300))
        assert (await leased(store, customer, 1, 500)).delta_nano == 300

    async def test_the_next_escrow_and_other_credit_come_when_the_first_is_used_up(
        self, store: BooksAndLeases, show_escrows: ShowEscrows
    ) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(300), escrow(500, address=SECOND))
        await store.deposit(job_id(), customer, Amount(50))
        assert (await leased(store, customer, 1, 900)).delta_nano == 100
        await show_escrows(customer, 100, escrow(300, signed=250), escrow(500, address=SECOND))
        assert (await leased(store, customer, 1, 900)).delta_nano == 300
        assert demanded(await leased(store, customer, 1)) == (SECOND, 7, 0)
        await show_escrows(customer, 100, escrow(300, signed=300), escrow(500, address=SECOND, signed=500))
        assert (await leased(store, customer, 1, 900)).delta_nano == 450  # the rest of the escrows, and the 50

    async def test_the_balance_refuses_first(self, store: BooksAndLeases, show_escrows: ShowEscrows) -> None:
        customer = uuid.uuid4()
        await show_escrows(customer, 100, escrow(1000))
        short = await leased(store, customer, 1001)
        assert (short.short, short.withheld) == (True, None)

    async def test_customers_without_an_escrow_have_no_ceiling(
        self, store: BooksAndLeases, show_escrows: ShowEscrows
    ) -> None:
        await show_escrows(uuid.uuid4(), 0, escrow(1000))
        other = uuid.uuid4()
        await store.deposit(job_id(), other, Amount(500))
        assert (await leased(store, other, 500)).delta_nano == 500
