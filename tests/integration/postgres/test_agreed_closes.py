"""Closes that client and operator agree on: what is signed is what was charged, and nothing is charged after it."""

import asyncio
import contextlib
import itertools
import random
import uuid

import asyncpg
import pytest

from billing.ceilings import EscrowClosingError
from billing.escrows import (
    AgreedClose,
    CloseAgreedError,
    CloseNotAgreedError,
    Escrow,
    EscrowState,
    MovementKind,
    UnknownEscrowError,
)
from billing.ports import InsufficientCreditError
from billing.postgres.account import Accounts
from billing.postgres.check import broken_invariants
from billing.postgres.escrows import Escrows
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool
from cocoon.money import Price
from cocoon.usage import TokenUsage
from tests.ledger_values import hold_request, settlement
from tests.settlement_values import new_id, raw_address, seen, terms

SIGNATURE = b"\x05" * 64
NANO = Price(version=1, prompt=1_000_000, cached=0, completion=0)
"""One nano for each token."""
DEPOSIT = 1_000


def sign(_escrow: Escrow) -> bytes:
    return SIGNATURE


class Customer:
    """A customer with one escrow of 1,000 nano whose chain is played; requests hold and then are charged."""

    def __init__(self, pool: Pool, ledger: PostgresLedger) -> None:
        self.escrows, self.ledger, self.pool = Escrows(pool), ledger, pool
        self.id, self.address = uuid.UUID(int=0), raw_address("escrow")
        self.held: list[uuid.UUID] = []
        self.settled = 0
        self._seqnos = itertools.count(1)

    async def open(self) -> "Customer":
        self.id = await Accounts(self.pool).open_customer(new_id(), "Ada")
        await self.escrows.register(new_id(), self.id, terms())
        await self.see()
        return self

    async def see(self, **changes: object) -> tuple[MovementKind, ...]:
        at = seen(next(self._seqnos), DEPOSIT, self.settled, **changes)
        return tuple(one.kind for one in (await self.escrows.observe(self.id, self.address, at)).moved)

    async def begin(self, nano: int) -> None:
        request = hold_request(self.id, nano)
        await self.ledger.hold(request)
        self.held.append(request.job_id)

    async def finish(self, nano: int) -> None:
        usage = TokenUsage(prompt=nano)
        await self.ledger.settle(settlement(self.held.pop(), self.id, usage=usage, price=NANO))

    async def spend(self, nano: int) -> None:
        await self.begin(nano)
        await self.finish(nano)

    async def agree(self) -> Escrow | None:
        return await self.escrows.agree_close(self.id, self.address, sign)

    async def look(self) -> Escrow:
        found = await self.escrows.find(self.address)
        assert found is not None
        return found


@pytest.fixture
async def ada(pool: Pool, ledger: PostgresLedger) -> Customer:
    return await Customer(pool, ledger).open()


async def test_nothing_is_served_from_the_question_on_until_it_is_withdrawn(ada: Customer) -> None:
    asked = await ada.escrows.ask_close(ada.id, ada.address)
    assert (await ada.escrows.ask_close(ada.id, ada.address)).close_asked_at == asked.close_asked_at
    with pytest.raises(EscrowClosingError):
        await ada.begin(1)

    await ada.escrows.withdraw_close(ada.id, ada.address)
    await ada.spend(1)


async def test_what_runs_is_waited_for_and_then_signed_to_the_nano(ada: Customer) -> None:
    await ada.spend(300)
    await ada.begin(100)
    await ada.escrows.ask_close(ada.id, ada.address)
    assert await ada.agree() is None
    await ada.finish(70)

    agreed = await ada.agree()
    assert agreed is not None
    assert agreed.agreed is not None
    assert (agreed.agreed.cumulative_nano, agreed.agreed.signature) == (370, SIGNATURE)
    assert await ada.agree() is None, "it is signed once"


async def test_what_is_signed_stays_and_is_charged_nothing_more(ada: Customer, connection: Connection) -> None:
    await ada.spend(300)
    await ada.escrows.ask_close(ada.id, ada.address)
    await ada.agree()
    with pytest.raises(CloseAgreedError):
        await ada.escrows.withdraw_close(ada.id, ada.address)
    with pytest.raises(EscrowClosingError):
        await ada.begin(1)
    for change in ("charged_nano = charged_nano + 1", "agreed_nano = 299, charged_nano = 299", "close_asked_at = NULL"):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await connection.execute(f"UPDATE escrows SET {change}")


async def test_who_may_not_ask_is_told_why(ada: Customer, pool: Pool, ledger: PostgresLedger) -> None:
    with pytest.raises(UnknownEscrowError):
        await ada.escrows.ask_close(new_id(), ada.address)
    keyless = Customer(pool, ledger)
    keyless.address = raw_address("keyless")
    keyless.id = await Accounts(pool).open_customer(new_id(), "Bob")
    await keyless.escrows.register(new_id(), keyless.id, terms("keyless", operator_key=None))
    await keyless.see()
    with pytest.raises(CloseNotAgreedError):
        await keyless.escrows.ask_close(keyless.id, keyless.address)
    await ada.see(state=EscrowState.CLOSED)
    with pytest.raises(CloseNotAgreedError):
        await ada.escrows.ask_close(ada.id, ada.address)


async def test_an_operator_that_does_not_sign_leaves_the_question_open(ada: Customer) -> None:
    await ada.escrows.ask_close(ada.id, ada.address)
    assert await ada.escrows.agree_close(ada.id, ada.address, lambda _: None) is None
    assert (await ada.look()).agreed is None


async def test_a_request_that_races_the_question_is_charged_before_the_signature_or_not_at_all(
    pool: Pool, ledger: PostgresLedger
) -> None:
    for turn in range(10):
        ada = Customer(pool, ledger)
        ada.address = raw_address(f"race {turn}")
        ada.id = await Accounts(pool).open_customer(new_id(), f"Ada {turn}")
        await ada.escrows.register(new_id(), ada.id, terms(f"race {turn}"))
        await ada.see()

        async def ask(ada: Customer = ada) -> Escrow | None:
            await ada.escrows.ask_close(ada.id, ada.address)
            return await ada.agree()

        begun, agreed = await asyncio.gather(ada.begin(10), ask(), return_exceptions=True)
        if isinstance(begun, EscrowClosingError):
            assert isinstance(agreed, Escrow)
            assert agreed.charged_nano == 0
        else:
            assert (begun, agreed) == (None, None), "what runs is waited for"
            await ada.finish(7)
            later = await ada.agree()
            assert later is not None
            assert later.charged_nano == 7


class Story:
    """What happens to a customer in an order that `rng` chooses; the chain is played by the contract's rules."""

    def __init__(self, ada: Customer, rng: random.Random) -> None:
        self.ada, self.rng = ada, rng
        self.closing = False
        self.agreed: AgreedClose | None = None

    async def step(self) -> None:
        await self.rng.choice((self.serve, self.serve, self.finish, self.ask, self.withdraw, self.agree, self.chain))()
        escrow = await self.ada.look()
        if escrow.agreed is not None:
            self.agreed = self.agreed or escrow.agreed
            assert (escrow.agreed, escrow.charged_nano) == (self.agreed, self.agreed.cumulative_nano)
            assert self.ada.held == [], "nothing runs once it is signed"

    async def serve(self) -> None:
        with contextlib.suppress(InsufficientCreditError):
            await self.ada.begin(self.rng.randrange(1, 60))

    async def finish(self) -> None:
        if self.ada.held:
            await self.ada.finish(1)

    async def ask(self) -> None:
        await self.ada.escrows.ask_close(self.ada.id, self.ada.address)

    async def withdraw(self) -> None:
        with contextlib.suppress(CloseAgreedError):
            await self.ada.escrows.withdraw_close(self.ada.id, self.ada.address)

    async def agree(self) -> None:
        await self.ada.agree()

    async def chain(self) -> None:
        """A voucher is settled, never for more than was charged; or the client asks the contract for the close."""
        self.closing = self.closing or self.rng.random() < 0.3
        charged = (await self.ada.look()).charged_nano
        self.ada.settled = self.rng.randint(self.ada.settled, charged)
        state = EscrowState.CLOSING if self.closing else EscrowState.OPEN
        await self.ada.see(state=state, close_requested_at=int(self.closing))

    async def end(self) -> bool:
        """The client submits what is signed, perhaps late, or waits for the window; whether it submitted."""
        submitted = self.agreed is not None and self.rng.random() < 0.7
        if submitted and self.agreed is not None:
            self.ada.settled = self.agreed.cumulative_nano
        while self.ada.held:
            await self.ada.finish(1)
        await self.ada.see(state=EscrowState.CLOSED, close_requested_at=1)
        return submitted


@pytest.mark.parametrize("seed", range(8))
async def test_no_order_of_things_pays_the_operator_more_or_the_client_less_than_its_due(
    seed: int, ada: Customer, connection: Connection
) -> None:
    story = Story(ada, random.Random(seed))
    for _ in range(30):
        await story.step()
    submitted = await story.end()
    escrow = await ada.look()
    used = await connection.fetchval("SELECT debits_posted FROM accounts WHERE kind = 'customer_leased'")
    assert ada.settled <= used
    assert not submitted or ada.settled == used
    assert escrow.refunded_nano == DEPOSIT - ada.settled
    lost = await connection.fetchval("SELECT debits_posted - credits_posted FROM accounts WHERE kind = 'operator_loss'")
    assert (lost or 0) == used - ada.settled
    assert await broken_invariants(connection) == []
