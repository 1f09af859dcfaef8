"""What every `ClaimStore` does. Times are given as none at all, so that no test waits for one to pass."""

import hashlib
import random
import uuid
from collections.abc import Awaitable, Callable

from billing.ports import Outcome
from cocoon.clock import SystemClock
from cocoon.ids import new_job_id
from gateway.idempotency import Claim, ClaimStore, Ended, Standing
from gateway.outcomes import OutcomeRoom, Turn

SECRET = b"sk-cocoon-" + b"a" * 43
BODY = b'{"model":"m"}'
LONG_S = 600.0
CUSTOMER, API_KEY = uuid.UUID(int=7), uuid.UUID(int=8)

Charge = Callable[[uuid.UUID, Outcome], Awaitable[None]]


def a_turn(key: bytes = b"k", body: bytes = BODY, secret: bytes = SECRET) -> Turn:
    """Another request."""
    return Turn(
        secret, key, "/v1/chat/completions", body, job_id=new_job_id(SystemClock(), random.SystemRandom()),
        customer_id=CUSTOMER, key_id=API_KEY, model="m", room=OutcomeRoom(10**6),
    )  # fmt: skip


def ours(turn: Turn) -> Claim:
    return Claim(job_id=turn.job_id, body_tag=turn.body_tag, standing=Standing.RUNNING)


class ClaimStoreConformance:
    """Subclasses give `store` and `charge`, by which the books charge a job of the customer."""

    async def test_the_first_has_the_key_and_others_hear_whose_it_is(self, store: ClaimStore) -> None:
        first, second, other = a_turn(), a_turn(), a_turn(b"another")
        assert await store.claim(first, LONG_S) == ours(first)
        assert await store.claim(second, LONG_S) == ours(first)
        assert await store.claim(first, LONG_S) == ours(first)
        assert await store.claim(other, LONG_S) == ours(other)

    async def test_two_api_keys_never_meet(self, store: ClaimStore) -> None:
        mine, theirs = a_turn(), a_turn(secret=SECRET[::-1])
        await store.claim(mine, LONG_S)
        await store.end([Ended(turn=mine, standing=Standing.KEPT, outcome=b"sealed")])
        assert await store.claim(theirs, LONG_S) == ours(theirs)

    async def test_what_was_kept_is_given_to_the_same_body_only(self, store: ClaimStore) -> None:
        first = a_turn()
        await store.claim(first, LONG_S)
        await store.end([Ended(turn=first, standing=Standing.KEPT, outcome=b"sealed")])
        kept = Claim(job_id=first.job_id, body_tag=first.body_tag, standing=Standing.KEPT, outcome=b"sealed")
        assert await store.claim(a_turn(), LONG_S) == kept
        other = await store.claim(a_turn(body=b"{}"), LONG_S)
        assert (other.body_tag, other.outcome) == (first.body_tag, None)

    async def test_each_end_is_remembered_as_what_it_was(self, store: ClaimStore) -> None:
        turns = {standing: a_turn(standing.encode()) for standing in (Standing.COMPLETED, Standing.CHARGED)}
        forgotten = a_turn(b"forgotten")
        for turn in (*turns.values(), forgotten):
            await store.claim(turn, LONG_S)
        ends = [Ended(turn=turn, standing=standing) for standing, turn in turns.items()]
        for _ in range(2):  # whoever does not hear the answer says it again
            await store.end([Ended(turn=forgotten, standing=None), *ends])
        for standing, turn in turns.items():
            assert (await store.claim(a_turn(standing.encode()), LONG_S)).standing is standing, turn
        again = a_turn(b"forgotten")
        assert await store.claim(again, LONG_S) == ours(again)

    async def test_what_is_past_its_time_is_free_again(self, store: ClaimStore) -> None:
        first, second = a_turn(), a_turn(body=b"{}")
        await store.claim(first, LONG_S)
        await store.end([Ended(turn=first, standing=Standing.KEPT, outcome=b"sealed", keep_s=0)])
        assert await store.claim(second, LONG_S) == ours(second)

    async def test_a_dead_request_is_taken_over_and_can_neither_end_nor_renew_any_more(self, store: ClaimStore) -> None:
        dead, heir = a_turn(), a_turn()
        await store.claim(dead, 0)
        assert await store.claim(heir, LONG_S) == ours(heir)
        await store.renew([dead], 0)
        await store.end([Ended(turn=dead, standing=None)])
        await store.end([Ended(turn=dead, standing=Standing.KEPT, outcome=b"late")])
        assert await store.claim(a_turn(), LONG_S) == ours(heir)

    async def test_a_dead_request_that_was_charged_is_not_run_again(self, store: ClaimStore, charge: Charge) -> None:
        for outcome, standing in (
            (Outcome.COMPLETED, Standing.COMPLETED), (Outcome.CLIENT_GONE, Standing.CHARGED),
        ):  # fmt: skip
            dead = a_turn(outcome.encode())
            await store.claim(dead, 0)
            await charge(dead.job_id, outcome)
            for _ in range(2):
                found = await store.claim(a_turn(outcome.encode()), LONG_S)
                assert found == Claim(job_id=dead.job_id, body_tag=dead.body_tag, standing=standing)

    async def test_another_body_does_not_take_a_dead_request_over(self, store: ClaimStore) -> None:
        dead = a_turn()
        await store.claim(dead, 0)
        assert await store.claim(a_turn(body=b"{}"), LONG_S) == ours(dead)

    async def test_a_claim_lives_as_long_as_it_is_renewed(self, store: ClaimStore) -> None:
        first, second = a_turn(), a_turn(b"second")
        for turn in (first, second):
            await store.claim(turn, 0)
        await store.renew([second, first], LONG_S)
        assert await store.claim(a_turn(), LONG_S) == ours(first)
        assert await store.claim(a_turn(b"second"), LONG_S) == ours(second)

    async def test_a_sweep_takes_what_has_ended_so_much_at_a_time(self, store: ClaimStore) -> None:
        turns = [a_turn(hashlib.sha256(bytes([number])).hexdigest().encode()) for number in range(5)]
        for turn in turns:
            await store.claim(turn, 0 if turn is turns[4] else LONG_S)
        await store.end([Ended(turn=turn, standing=Standing.CHARGED, keep_s=0) for turn in turns[:3]])
        await store.end([Ended(turn=turns[3], standing=Standing.CHARGED)])
        assert [await store.sweep(2), await store.sweep(2), await store.sweep(2)] == [2, 1, 0]
