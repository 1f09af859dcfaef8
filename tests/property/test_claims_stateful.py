"""Requests under two idempotency keys on a real database: repeated, dying, taken over, and charged late, at random.

The model knows which request runs and which was charged. Whatever the order, a key is charged once at most, whoever has
it is never somebody else's, and a request that was charged is never run again.
"""

import asyncio
import collections
import uuid
from contextlib import AsyncExitStack
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from billing.ports import HoldClosedError, Outcome, Posted
from billing.postgres.check import broken_invariants
from billing.postgres.pool import Connection, Pool, connect, open_pool
from gateway.idempotency import Ended, Standing
from gateway.outcomes import Turn
from gateway.postgres.idempotency import PostgresClaims
from tests.claim_store_conformance import CUSTOMER, LONG_S, a_turn
from tests.integration.postgres.test_claims import Till
from tests.loop_thread import LoopThread

SEEN: "collections.Counter[str]" = collections.Counter()
"""What happened how often: a machine that never gets anywhere proves nothing."""
CHARGED = {Outcome.COMPLETED, Outcome.CLIENT_GONE}
keys = st.integers(0, 1)
picks = st.integers(0, 10**6)


class Books:
    """One database and what is done to it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def open(self, database_url: str) -> "Books":
        self.pool: Pool = await self._stack.enter_async_context(open_pool(database_url, application="test"))
        self.connection: Connection = await self._stack.enter_async_context(connect(database_url, application="test"))
        self.claims = PostgresClaims(self.pool)
        self.till = Till(self.pool, CUSTOMER)
        await self.till.open(self.pool)
        return self

    async def close(self) -> None:
        await self._stack.aclose()


class Request:
    """One request that was let through, as the model sees it."""

    def __init__(self, key: int, turn: Turn) -> None:
        self.key = key
        self.turn = turn
        self.alive = True
        self.charged: Outcome | None = None
        self.settled = False


def some(machine: "ClaimMachine") -> bool:
    """Whether there is a request to do something to."""
    return bool(machine.requests)


class ClaimMachine(RuleBasedStateMachine):
    """One example; keys are its own, so that all examples share a database."""

    thread: ClassVar[LoopThread]
    books: ClassVar[Books]

    def __init__(self) -> None:
        super().__init__()
        self._name = uuid.uuid4().hex.encode()
        self.requests: list[Request] = []

    @rule(key=keys)
    def ask(self, key: int) -> None:
        """Somebody sends the request (again)."""
        turn = self._turn(key)
        self._heard(key, turn, self.thread.run(self.books.claims.claim(turn, LONG_S)))

    @precondition(some)
    @rule(key=keys, pick=picks, outcome=st.sampled_from(Outcome))
    def ask_while_a_charge_arrives(self, key: int, pick: int, outcome: Outcome) -> None:
        """A repetition and a late journal row in the same moment."""
        if (request := self._pick(pick, settled=False)) is None:
            return
        turn = self._turn(key)

        async def both() -> tuple[object, object]:
            return await asyncio.gather(
                self.books.claims.claim(turn, LONG_S), self.books.till.charge(request.turn.job_id, outcome)
            )

        claim, posted = self.thread.run(both())
        self._posted(request, outcome, posted)
        self._heard(key, turn, claim)

    @precondition(some)
    @rule(pick=picks, outcome=st.sampled_from(Outcome), ends=st.booleans())
    def settle(self, pick: int, outcome: Outcome, ends: bool) -> None:
        """A request's money moves, from its gateway or from a journal that survived it; then its claim may end."""
        if (request := self._pick(pick, settled=False)) is None:
            return
        posted = self.thread.run(self.books.till.charge(request.turn.job_id, outcome))
        self._posted(request, outcome, posted)
        if not (ends and request.alive and isinstance(posted, Posted)):
            return
        request.alive = False
        standing = {Outcome.COMPLETED: Standing.KEPT, Outcome.CLIENT_GONE: Standing.CHARGED}.get(outcome)
        sealed = b"sealed" if standing is Standing.KEPT else None
        self.thread.run(self.books.claims.end([Ended(turn=request.turn, standing=standing, outcome=sealed)]))
        SEEN.update(["ended"])

    @precondition(some)
    @rule(pick=picks)
    def refuse(self, pick: int) -> None:
        """A request ends before it cost anything."""
        request = self._pick(pick, settled=False)
        if request is not None and request.alive:
            request.alive, request.settled = False, True
            self.thread.run(self.books.claims.end([Ended(turn=request.turn, standing=None)]))

    @precondition(some)
    @rule(key=keys)
    def die_and_be_repeated(self, key: int) -> None:
        """A gateway dies, or cannot renew for so long that its claims are over; then the client asks again."""
        turns = [request.turn for request in self.requests if request.key == key]
        if turns:
            self.thread.run(self.books.claims.renew(turns, 0))
        self.ask(key)

    @rule()
    def sweep(self) -> None:
        """Nothing of the last day is swept."""
        self.thread.run(self.books.claims.sweep(100))

    @invariant()
    def a_key_is_charged_once_at_most(self) -> None:
        for key in (0, 1):
            jobs = [request.turn.job_id for request in self.requests if request.key == key]
            charged = self.thread.run(
                self.books.connection.fetchval(
                    "SELECT count(*) FROM usage WHERE job_id = ANY($1::uuid[]) AND charge_nano > 0", jobs
                )
            )
            assert charged == sum(request.charged in CHARGED for request in self.requests if request.key == key) <= 1

    def teardown(self) -> None:
        assert self.thread.run(broken_invariants(self.books.connection)) == []

    def _turn(self, key: int) -> Turn:
        return a_turn(self._name + b"-%d" % key)

    def _pick(self, pick: int, *, settled: bool | None = None) -> Request | None:
        found = [one for one in self.requests if settled is None or one.settled == settled]
        return found[pick % len(found)] if found else None

    def _heard(self, key: int, turn: Turn, claim: object) -> None:
        job = getattr(claim, "job_id", None)
        standing = getattr(claim, "standing", None)
        of_key = [request for request in self.requests if request.key == key]
        if job == turn.job_id:
            SEEN.update(["ran again" if of_key else "ran"])
            assert all(request.charged not in CHARGED for request in of_key), "it was charged, and runs again"
            self.requests.append(Request(key, turn))
            return
        [owner] = [request for request in of_key if request.turn.job_id == job]
        SEEN.update([f"heard: {standing}"])
        if standing is not Standing.RUNNING:
            expected = {Standing.KEPT: Outcome.COMPLETED, Standing.COMPLETED: Outcome.COMPLETED}
            assert owner.charged is expected.get(Standing(str(standing)), Outcome.CLIENT_GONE)

    def _posted(self, request: Request, outcome: Outcome, posted: object) -> None:
        SEEN.update([f"charge: {type(posted).__name__}"])
        request.settled = True
        if isinstance(posted, Posted):
            request.charged = outcome
        else:
            assert isinstance(posted, HoldClosedError)


@pytest.mark.timeout(300)
def test_a_key_is_charged_once_whatever_happens(database_url: str) -> None:
    thread = LoopThread()
    books = thread.run(Books().open(database_url))
    try:
        run_state_machine_as_test(
            type("Bound", (ClaimMachine,), {"thread": thread, "books": books}),
            settings=settings(
                max_examples=40, stateful_step_count=25, deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )  # fmt: skip
    finally:
        thread.run(books.close())
        thread.close()
    reached = {"ran", "ran again", "ended", "heard: running", "charge: Posted", "charge: HoldClosedError"}
    assert reached - set(SEEN) == set()
