"""What every `LeaseStore` must do. Subclasses bring a `store` that is also its `Books`, and a way to age its leases."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest

from billing.lease_store import (
    Books,
    JournalRow,
    LeaseActiveError,
    LeaseAnswer,
    LeaseChange,
    LeaseExhaustedError,
    LeaseLostError,
    LeaseStore,
)
from billing.ports import Balance, HoldClosedError, Outcome, Posted, TransferConflictError, UnknownCustomerError
from cocoon.money import Amount, Asset
from cocoon.usage import TokenUsage
from tests.ledger_values import job_id, settlement

AgeLeases = Callable[[], Awaitable[None]]
"""Bring every lease's next deadline into the past."""
CHARGE = 13_761
"""What `settlement()` costs."""


class BooksAndLeases(LeaseStore, Books, Protocol):
    """Both ports, on the same accounts."""


def purse(available: int, held: int, spent: int) -> Balance:
    return Balance(available=Amount(available), held=Amount(held), spent=Amount(spent))


def change(customer: uuid.UUID, *, lease: uuid.UUID | None = None, seq: int = 1, **members: Any) -> LeaseChange:
    return LeaseChange(
        lease_id=lease or job_id(), customer_id=customer, asset=Asset.TON, holder="h", seq=seq, ttl_s=60, **members
    )


async def one(store: LeaseStore, asked: LeaseChange) -> LeaseAnswer:
    [answer] = await store.change([asked])
    assert isinstance(answer, LeaseAnswer), repr(answer)
    return answer


async def opened(store: BooksAndLeases, deposit: int, leased: int) -> tuple[uuid.UUID, LeaseChange, LeaseAnswer]:
    customer = uuid.uuid4()
    await store.deposit(job_id(), customer, Amount(deposit))
    asked = change(customer, need_min_nano=leased, need_nano=leased)
    return customer, asked, await one(store, asked)


def row(customer: uuid.UUID, lease: LeaseChange, fence: int | None, **members: Any) -> JournalRow:
    job = members.pop("job", None) or job_id()
    return JournalRow(settlement=settlement(job, customer, **members), lease_id=lease.lease_id, fence=fence)


class LeaseStoreConformance:
    async def test_a_lease_takes_what_is_needed_and_a_part_of_the_surplus(self, store: BooksAndLeases) -> None:
        customer = uuid.uuid4()
        await store.deposit(job_id(), customer, Amount(1000))
        answer = await one(store, change(customer, need_min_nano=10, need_nano=200, headroom_nano=10_000))
        assert answer.delta_nano == 200 + 800 // 4
        assert await store.balance(customer) == purse(600, 400, 0)

    async def test_near_zero_nothing_is_leased_ahead(self, store: BooksAndLeases) -> None:
        customer = uuid.uuid4()
        await store.deposit(job_id(), customer, Amount(1000))
        asked = change(customer, need_min_nano=10, need_nano=600, headroom_nano=300, headroom_min_nano=401)
        assert (await one(store, asked)).delta_nano == 600
        more = change(customer, need_min_nano=10, need_nano=600, headroom_nano=300)
        assert (await one(store, more)).delta_nano == 400  # less than needed, more than the minimum
        short = await one(store, change(customer, need_min_nano=1, need_nano=5))
        assert (short.delta_nano, short.short, short.alone) == (0, True, False)

    async def test_a_short_customer_without_other_leases_is_alone(self, store: BooksAndLeases) -> None:
        customer, asked, first = await opened(store, 1000, 900)
        again = change(customer, lease=asked.lease_id, seq=2, need_min_nano=101, need_nano=101)
        answer = await one(store, again)
        assert (answer.fence, answer.delta_nano, answer.short, answer.alone) == (first.fence, 0, True, True)

    async def test_a_recall_is_answered_once_every_other_lease_has_given_up(self, store: BooksAndLeases) -> None:
        customer, asked, _ = await opened(store, 1000, 900)
        recalled_at = await store.recall([customer], "other")
        wants = change(customer, need_min_nano=500, need_nano=500, recalled_at=recalled_at)
        assert not (await one(store, wants)).alone
        await one(store, change(customer, lease=asked.lease_id, seq=2, give_back_nano=300, answers_recall=True))
        answer = await one(store, wants)
        assert (answer.short, answer.alone) == (True, True)
        less = change(customer, need_min_nano=400, need_nano=500, recalled_at=recalled_at)
        assert (await one(store, less)).delta_nano == 400

    async def test_a_recall_is_heard_with_the_name_of_who_asks(self, store: BooksAndLeases) -> None:
        customer, _, _ = await opened(store, 10, 5)
        heard: asyncio.Queue[tuple[uuid.UUID, str]] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(store.follow_recalls(lambda *call: heard.put_nowait(call)))
            async with asyncio.timeout(60):
                while heard.empty():  # until the listener is there
                    await store.recall([customer], "somebody")
                    await asyncio.sleep(0.01)
            listening.cancel()
        assert heard.get_nowait() == (customer, "somebody")

    async def test_the_same_change_again_answers_what_it_did(self, store: BooksAndLeases) -> None:
        customer, asked, answer = await opened(store, 1000, 400)
        assert await one(store, asked) == answer
        more = change(customer, lease=asked.lease_id, seq=2, give_back_nano=100, need_nano=150)
        assert (await one(store, more)).delta_nano == 50
        assert (await one(store, more)).delta_nano == 50
        assert await store.balance(customer) == purse(550, 450, 0)

    async def test_strangers_and_unknown_leases_are_refused_beside_the_others(self, store: BooksAndLeases) -> None:
        customer, _, _ = await opened(store, 1000, 400)
        answers = await store.change(
            [
                change(uuid.uuid4(), need_nano=5),
                change(customer, need_nano=5),
                change(customer, seq=7, need_nano=5),
            ]
        )
        kinds = [type(answer) for answer in answers]
        assert kinds == [UnknownCustomerError, LeaseAnswer, LeaseLostError]

    async def test_a_lease_of_nothing_is_a_lease(self, store: BooksAndLeases) -> None:
        _, asked, answer = await opened(store, 5, 0)
        assert answer.fence > 0
        free = settlement(job_id(), asked.customer_id, usage=TokenUsage())
        [posted] = await store.flush([JournalRow(settlement=free, lease_id=asked.lease_id, fence=answer.fence)])
        assert isinstance(posted, Posted)

    async def test_a_closed_lease_returns_everything_and_pays_nothing(self, store: BooksAndLeases) -> None:
        customer, asked, answer = await opened(store, 100_000, 50_000)
        await one(store, change(customer, lease=asked.lease_id, seq=2, give_back_nano=50_000, close=True))
        assert await store.balance(customer) == purse(100_000, 0, 0)
        [refused] = await store.flush([row(customer, asked, answer.fence)])
        assert isinstance(refused, LeaseLostError)

    async def test_a_flush_charges_the_lease_and_can_be_sent_again(self, store: BooksAndLeases) -> None:
        customer, asked, answer = await opened(store, 100_000, 50_000)
        worker = uuid.uuid4()
        rows = [row(customer, asked, answer.fence, worker=worker) for _ in range(3)]
        rows.append(row(customer, asked, answer.fence, outcome=Outcome.BROKEN, worker=worker))
        first = await store.flush(rows)
        charges = [posted.charge.nano for posted in first if isinstance(posted, Posted)]
        assert sum(charges) == -(-3 * 13_760_000_007 // 10**6)
        assert charges[3] == 0
        assert await store.flush(rows) == first
        assert await store.flush(rows[1:2]) == first[1:2]
        assert await store.balance(customer) == purse(50_000, 50_000 - sum(charges), sum(charges))
        found = await store.find(rows[0].settlement.job_id, 0)
        assert found is not None
        assert found[1] == first[0]
        assert await store.find(rows[0].settlement.job_id, 1) is None

    async def test_a_conflicting_row_is_refused_alone(self, store: BooksAndLeases) -> None:
        customer, asked, answer = await opened(store, 100_000, 80_000)
        fence = answer.fence
        job = job_id()
        await store.flush([row(customer, asked, fence, job=job)])
        answers = await store.flush(
            [
                row(customer, asked, fence),
                row(customer, asked, fence, job=job, finish_reason="length"),
                row(customer, asked, fence, job=job, attempt=2),
                row(customer, asked, fence + 1),
                row(uuid.uuid4(), asked, fence),
                row(customer, asked, fence),
            ]
        )
        assert [type(found) for found in answers] == [
            Posted, TransferConflictError, HoldClosedError, LeaseLostError, LeaseLostError, Posted,
        ]  # fmt: skip
        assert (await store.balance(customer)).spent.nano == -(-3 * 13_760_000_007 // 10**6)

    async def test_a_lease_never_pays_more_than_it_has(self, store: BooksAndLeases) -> None:
        customer, asked, answer = await opened(store, 100_000, 2 * CHARGE)
        answers = await store.flush([row(customer, asked, answer.fence) for _ in range(3)])
        assert [type(found) for found in answers] == [Posted, Posted, LeaseExhaustedError]
        assert (await store.balance(customer)).held.nano < CHARGE

    async def test_an_expired_lease_waits_in_recovery_and_goes_back(
        self, store: BooksAndLeases, age_leases: AgeLeases
    ) -> None:
        customer, asked, answer = await opened(store, 100_000, 50_000)
        assert await store.sweep(10, 900) == 0
        await age_leases()
        assert [await store.sweep(10, 900), await store.sweep(10, 900)] == [1, 0]
        assert await store.balance(customer) == purse(50_000, 50_000, 0)
        [lost] = await store.change([change(customer, lease=asked.lease_id, seq=2, need_nano=5)])
        assert isinstance(lost, LeaseLostError)
        late = row(customer, asked, answer.fence)
        foreign = row(customer, asked, answer.fence + 1)
        claimed = row(customer, asked, None)
        answers = await store.flush([late, foreign, claimed])
        assert [type(found) for found in answers] == [Posted, LeaseLostError, Posted]
        spent = -(-2 * 13_760_000_007 // 10**6)
        assert await store.balance(customer) == purse(50_000, 50_000 - spent, spent)
        await age_leases()
        assert await store.sweep(10, 900) == 1
        assert await store.balance(customer) == purse(100_000 - spent, 0, spent)
        [refused] = await store.flush([row(customer, asked, answer.fence)])
        assert isinstance(refused, LeaseLostError)

    async def test_a_late_row_never_overdraws_recovery(self, store: BooksAndLeases, age_leases: AgeLeases) -> None:
        customer, asked, answer = await opened(store, 100_000, CHARGE)
        await age_leases()
        await store.sweep(10, 900)
        answers = await store.flush([row(customer, asked, answer.fence) for _ in range(2)])
        assert [type(found) for found in answers] == [Posted, LeaseExhaustedError]
        assert await store.balance(customer) == purse(100_000 - CHARGE, 0, CHARGE)

    async def test_a_claim_without_a_fence_waits_for_the_holder(self, store: BooksAndLeases) -> None:
        customer, asked, answer = await opened(store, 100_000, 50_000)
        claim = row(customer, asked, None)
        [waits] = await store.flush([claim])
        assert isinstance(waits, LeaseActiveError)
        [posted] = await store.flush([JournalRow(
            settlement=claim.settlement, lease_id=asked.lease_id, fence=answer.fence
        )])  # fmt: skip
        assert isinstance(posted, Posted)
        [replayed] = await store.flush([claim])
        assert replayed == posted

    @pytest.mark.parametrize("amount", [0, 400])
    async def test_overdue_leases_can_still_be_renewed_until_they_are_swept(
        self, store: BooksAndLeases, age_leases: AgeLeases, amount: int
    ) -> None:
        customer, asked, _ = await opened(store, 1000, amount)
        await age_leases()
        await one(store, change(customer, lease=asked.lease_id, seq=2))
        assert await store.sweep(10, 900) == 0
        assert await store.balance(customer) == purse(1000 - amount, amount, 0)
