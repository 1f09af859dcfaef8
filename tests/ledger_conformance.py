"""What every `Ledger` must do. Subclasses bring a `ledger` and a way to make its open holds overdue."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from billing.ports import (
    Balance,
    HoldClosedError,
    InsufficientCreditError,
    Ledger,
    Outcome,
    TransferConflictError,
    UnknownCustomerError,
)
from cocoon.errors import MalformedError
from cocoon.money import Amount, Asset, Price
from cocoon.usage import TokenUsage
from tests.ledger_values import PRICE, hold_request, job_id, settlement

MakeOverdue = Callable[[], Awaitable[None]]


async def funded(ledger: Ledger, nano: int = 1_000_000) -> uuid.UUID:
    customer = uuid.uuid4()
    await ledger.deposit(job_id(), customer, Amount(nano))
    return customer


def purse(available: int, held: int, spent: int) -> Balance:
    return Balance(available=Amount(available), held=Amount(held), spent=Amount(spent))


class LedgerConformance:
    async def test_a_deposit_can_be_spent_and_counts_once(self, ledger: Ledger) -> None:
        customer, transfer = uuid.uuid4(), job_id()
        await ledger.deposit(transfer, customer, Amount(500))
        await ledger.deposit(transfer, customer, Amount(500))
        assert await ledger.balance(customer) == purse(500, 0, 0)

    async def test_a_deposit_id_with_another_body_is_a_conflict(self, ledger: Ledger) -> None:
        customer, transfer = uuid.uuid4(), job_id()
        await ledger.deposit(transfer, customer, Amount(500))
        with pytest.raises(TransferConflictError):
            await ledger.deposit(transfer, customer, Amount(501))
        assert await ledger.balance(customer) == purse(500, 0, 0)

    async def test_strangers_have_no_balance_and_no_credit(self, ledger: Ledger) -> None:
        with pytest.raises(UnknownCustomerError):
            await ledger.balance(uuid.uuid4())
        with pytest.raises(UnknownCustomerError):
            await ledger.hold(hold_request(uuid.uuid4(), 0))

    async def test_a_hold_takes_its_maximum_when_the_balance_affords_it(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 1000)
        hold = await ledger.hold(hold_request(customer, 100, 400))
        assert hold.amount == Amount(400)
        assert await ledger.balance(customer) == purse(600, 400, 0)

    async def test_a_hold_shrinks_to_what_is_there_but_not_below_its_minimum(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 1000)
        assert (await ledger.hold(hold_request(customer, 100, 5000))).amount == Amount(1000)
        with pytest.raises(InsufficientCreditError):
            await ledger.hold(hold_request(customer, 1, 5000))
        assert await ledger.balance(customer) == purse(0, 1000, 0)

    async def test_the_same_hold_again_reserves_nothing_more(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 1000)
        request = hold_request(customer, 100, 400)
        assert await ledger.hold(request) == await ledger.hold(request)
        assert await ledger.balance(customer) == purse(600, 400, 0)

    async def test_a_job_id_with_another_hold_is_a_conflict(self, ledger: Ledger) -> None:
        customer, other = await funded(ledger), await funded(ledger)
        request = hold_request(customer, 100)
        await ledger.hold(request)
        changes: tuple[dict[str, Any], ...] = ({"amount_max": Amount(101)}, {"customer_id": other}, {"ttl_s": 1})
        for changed in changes:
            fields = {name: getattr(request, name) for name in request.__struct_fields__} | changed
            with pytest.raises(TransferConflictError):
                await ledger.hold(type(request)(**fields))

    async def test_a_hold_that_was_resolved_is_not_granted_again(self, ledger: Ledger) -> None:
        customer = await funded(ledger)
        request = hold_request(customer, 100)
        await ledger.hold(request)
        await ledger.void(request.job_id, customer)
        with pytest.raises(HoldClosedError):
            await ledger.hold(request)

    async def test_ids_must_carry_their_day(self, ledger: Ledger) -> None:
        customer = await funded(ledger)
        for call in (
            ledger.deposit(uuid.uuid4(), customer, Amount(1)),
            ledger.void(uuid.uuid4(), customer),
            ledger.settle(settlement(uuid.uuid4(), customer)),
        ):
            with pytest.raises(MalformedError):
                await call

    @pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.CLIENT_GONE])
    async def test_a_settlement_charges_what_was_used_and_returns_the_rest(
        self, ledger: Ledger, outcome: Outcome
    ) -> None:
        customer, worker = await funded(ledger, 100_000), uuid.uuid4()
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        usage = TokenUsage(prompt=10, cached=4, completion=7)  # 6*400 + 4*40 + 7*1600.000001 = 13760.000007 nano
        posted = await ledger.settle(settlement(request.job_id, customer, worker=worker, usage=usage, outcome=outcome))
        assert posted.charge == Amount(13_761)
        assert posted.worker_share == Amount(13_072)  # 95 %, rounded down
        assert posted.fee == Amount(688)  # 5 %, rounded down; one nano waits in the rounding account
        assert await ledger.balance(customer) == purse(86_239, 0, 13_761)

    async def test_a_broken_answer_costs_nothing(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 100_000)
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        ended = settlement(request.job_id, customer, worker=uuid.uuid4(), outcome=Outcome.BROKEN)
        posted = await ledger.settle(ended)
        assert (posted.charge, posted.worker_share, posted.fee) == (Amount(0), Amount(0), Amount(0))
        assert await ledger.settle(ended) == posted
        assert await ledger.balance(customer) == purse(100_000, 0, 0)
        await ledger.void(request.job_id, customer)  # nothing is left to release

    async def test_without_a_worker_the_whole_charge_is_the_networks(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 100_000)
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        price = Price(version=1, prompt=10**6, cached=0, completion=10**6)
        posted = await ledger.settle(
            settlement(request.job_id, customer, price=price, usage=TokenUsage(prompt=30, completion=12))
        )
        assert (posted.charge, posted.worker_share, posted.fee) == (Amount(42), Amount(0), Amount(42))

    async def test_a_settlement_is_posted_once_however_often_it_is_sent(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 100_000)
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        ended = settlement(request.job_id, customer, worker=uuid.uuid4())
        first = await ledger.settle(ended)
        assert await asyncio.gather(*(ledger.settle(ended) for _ in range(3))) == [first] * 3
        assert (await ledger.balance(customer)).spent == first.charge

    async def test_another_body_for_the_same_attempt_is_a_conflict(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 100_000)
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        await ledger.settle(settlement(request.job_id, customer))
        with pytest.raises(TransferConflictError):
            await ledger.settle(settlement(request.job_id, customer, finish_reason="length"))

    async def test_a_second_attempt_of_a_settled_job_is_not_charged(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 100_000)
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        first = await ledger.settle(settlement(request.job_id, customer, attempt=1))
        with pytest.raises(HoldClosedError):
            await ledger.settle(settlement(request.job_id, customer, attempt=2))
        assert (await ledger.balance(customer)).spent == first.charge

    async def test_a_charge_above_the_hold_is_refused_and_the_hold_stays(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 100_000)
        request = hold_request(customer, 13_760)
        await ledger.hold(request)
        with pytest.raises(TransferConflictError):
            await ledger.settle(settlement(request.job_id, customer))
        assert await ledger.balance(customer) == purse(86_240, 13_760, 0)

    async def test_a_settlement_for_somebody_elses_hold_is_refused(self, ledger: Ledger) -> None:
        customer, other = await funded(ledger, 100_000), await funded(ledger, 100_000)
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        with pytest.raises(TransferConflictError):
            await ledger.settle(settlement(request.job_id, other))
        assert await ledger.balance(other) == purse(100_000, 0, 0)

    async def test_nothing_is_settled_without_a_hold(self, ledger: Ledger) -> None:
        customer = await funded(ledger)
        with pytest.raises(HoldClosedError):
            await ledger.settle(settlement(job_id(), customer))

    async def test_a_void_returns_the_hold_and_may_be_repeated(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 1000)
        request = hold_request(customer, 400)
        await ledger.hold(request)
        await ledger.void(request.job_id, customer)
        await ledger.void(request.job_id, customer)
        assert await ledger.balance(customer) == purse(1000, 0, 0)
        with pytest.raises(HoldClosedError):
            await ledger.settle(settlement(request.job_id, customer))

    async def test_what_is_posted_foreign_or_unknown_cannot_be_voided(self, ledger: Ledger) -> None:
        customer, other = await funded(ledger, 100_000), await funded(ledger)
        posted, opened, voided = (hold_request(customer, 20_000) for _ in range(3))
        for request in (posted, opened, voided):
            await ledger.hold(request)
        await ledger.settle(settlement(posted.job_id, customer))
        await ledger.void(voided.job_id, customer)
        for job, owner in ((posted.job_id, customer), (opened.job_id, other), (voided.job_id, other)):
            with pytest.raises(HoldClosedError):
                await ledger.void(job, owner)
        with pytest.raises(HoldClosedError):
            await ledger.void(job_id(), customer)

    async def test_overdue_holds_expire_up_to_the_limit(self, ledger: Ledger, make_overdue: MakeOverdue) -> None:
        customer = await funded(ledger, 1000)
        requests = [hold_request(customer, 100) for _ in range(3)]
        for request in requests:
            await ledger.hold(request)
        assert await ledger.expire_due(10) == 0
        await make_overdue()
        assert [await ledger.expire_due(2), await ledger.expire_due(2), await ledger.expire_due(2)] == [2, 1, 0]
        assert await ledger.balance(customer) == purse(1000, 0, 0)
        with pytest.raises(HoldClosedError):
            await ledger.settle(settlement(requests[0].job_id, customer))
        await ledger.void(requests[0].job_id, customer)

    async def test_an_overdue_hold_still_pays_until_it_is_swept(
        self, ledger: Ledger, make_overdue: MakeOverdue
    ) -> None:
        customer = await funded(ledger, 100_000)
        request = hold_request(customer, 50_000)
        await ledger.hold(request)
        await make_overdue()
        assert (await ledger.settle(settlement(request.job_id, customer))).charge == Amount(13_761)
        assert await ledger.expire_due(10) == 0

    async def test_many_small_charges_round_once_not_each_time(self, ledger: Ledger) -> None:
        customer, worker = await funded(ledger, 1_000_000), uuid.uuid4()
        price = Price(version=1, prompt=333_333, cached=0, completion=0, share_bps=9_000)  # a third of a nano a token
        shares = 0
        for _ in range(9):
            request = hold_request(customer, 1)
            await ledger.hold(request)
            posted = await ledger.settle(
                settlement(request.job_id, customer, worker=worker, price=price, usage=TokenUsage(prompt=1))
            )
            shares += posted.worker_share.nano
        assert (await ledger.balance(customer)).spent == Amount(3)  # ceil(9 * 0.333333), not 9
        assert shares == 2  # floor(9 * 0.2999997)

    async def test_a_hold_of_zero_serves_a_free_model(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 1)
        request = hold_request(customer, 0)
        await ledger.hold(request)
        free = Price(version=1, prompt=0, cached=0, completion=0)
        assert (await ledger.settle(settlement(request.job_id, customer, price=free))).charge == Amount(0)

    async def test_concurrent_holds_never_promise_more_than_there_is(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 1000)
        answers = await asyncio.gather(
            *(ledger.hold(hold_request(customer, 300)) for _ in range(8)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, InsufficientCreditError)]
        assert (len(answers), len(refused)) == (8, 5)
        assert await ledger.balance(customer) == purse(100, 900, 0)

    async def test_one_bad_member_does_not_fail_its_neighbours(self, ledger: Ledger) -> None:
        customer = await funded(ledger, 1_000_000)
        requests = [hold_request(customer, 20_000) for _ in range(5)]
        conflicting = hold_request(customer, 1)
        answers = await asyncio.gather(
            *(ledger.hold(request) for request in requests),
            ledger.hold(hold_request(uuid.uuid4(), 5)),
            ledger.hold(conflicting),
            return_exceptions=True,
        )
        assert [type(answer).__name__ for answer in answers] == ["Hold"] * 5 + ["UnknownCustomerError", "Hold"]
        ends = [settlement(request.job_id, customer, worker=uuid.uuid4()) for request in requests]
        settled = await asyncio.gather(
            *(ledger.settle(end) for end in ends),
            ledger.settle(settlement(conflicting.job_id, customer)),
            ledger.settle(settlement(job_id(), customer)),
            return_exceptions=True,
        )
        kinds = ["Posted"] * 5 + ["TransferConflictError", "HoldClosedError"]
        assert [type(answer).__name__ for answer in settled] == kinds
        assert PRICE.asset is Asset.TON
