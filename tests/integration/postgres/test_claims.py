"""Claims on idempotency keys in Postgres: they conform, and a job that is taken over is never charged, however late."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator

import pytest

from billing.lease_store import JournalRow
from billing.ports import HoldClosedError, Outcome, Posted
from billing.postgres.check import broken_invariants
from billing.postgres.leases import PostgresLeases
from billing.postgres.ledger import PostgresLedger
from billing.postgres.pool import Connection, Pool, transaction
from billing.postgres.recoveries import Recoveries
from billing.postgres.write_off import GivenUp, write_off
from cocoon.money import Amount
from cocoon.receipt_batch import Verdict
from gateway.idempotency import Claim, Ended, Standing
from gateway.outcomes import Outcome as Answer
from gateway.outcomes import Turn
from gateway.postgres.idempotency import CONNECTIONS_MAX, PostgresClaims
from gateway.recovery import Reconciler
from tests.claim_store_conformance import BODY, CUSTOMER, LONG_S, SECRET, Charge, ClaimStoreConformance, a_turn, ours
from tests.lease_store_conformance import change, one
from tests.ledger_values import job_id, settlement
from tests.receipt_values import GLOBAL_ID, Signer
from tests.receipt_values import SECRET as NETWORK_SECRET

CREDIT = 10**9
RACES = 20


@pytest.fixture
async def store(pool: Pool, connection: Connection) -> AsyncIterator[PostgresClaims]:
    """A store in whose database the books balance when the test is over."""
    yield PostgresClaims(pool)
    assert await broken_invariants(connection) == []


class Till:
    """A customer with a lease that charges what it is told to, as a journal would."""

    def __init__(self, pool: Pool, customer: uuid.UUID) -> None:
        self.leases = PostgresLeases(pool, "")
        self.customer = customer
        self.lease_id = uuid.UUID(int=0)
        self._fence = 0

    async def open(self, pool: Pool) -> None:
        async with PostgresLedger(pool) as ledger:
            await ledger.deposit(job_id(), self.customer, Amount(CREDIT))
        asked = change(self.customer, need_min_nano=CREDIT // 2, need_nano=CREDIT // 2)
        answer = await one(self.leases, asked)
        self.lease_id, self._fence = asked.lease_id, answer.fence

    async def charge(self, job: uuid.UUID, outcome: Outcome = Outcome.COMPLETED) -> object:
        [answer] = await self.leases.flush(
            [JournalRow(settlement=settlement(job, self.customer, outcome=outcome), lease_id=self.lease_id,
                        fence=self._fence)]
        )  # fmt: skip
        return answer


@pytest.fixture
async def till(pool: Pool) -> Till:
    made = Till(pool, CUSTOMER)
    await made.open(pool)
    return made


class TestPostgresClaims(ClaimStoreConformance):
    @pytest.fixture
    def charge(self, till: Till) -> Charge:
        async def charge(job: uuid.UUID, outcome: Outcome) -> None:
            assert isinstance(await till.charge(job, outcome), Posted)

        return charge


async def taken_over(store: PostgresClaims) -> Turn:
    """A request whose key has gone to another one."""
    dead, heir = a_turn(), a_turn()
    await store.claim(dead, 0)
    assert await store.claim(heir, LONG_S) == ours(heir)
    return dead


async def test_the_journal_of_a_request_that_was_taken_over_comes_too_late(
    store: PostgresClaims, till: Till, connection: Connection
) -> None:
    dead = await taken_over(store)
    for _ in range(2):
        assert isinstance(await till.charge(dead.job_id), HoldClosedError)
    [row] = await connection.fetch("SELECT outcome, charge_nano, finish_reason, model FROM usage")
    assert tuple(row.values()) == ("client_gone", 0, "written_off", "m")
    [refused] = await connection.fetch("SELECT job_id, reason FROM refused_usage")
    assert tuple(refused.values()) == (dead.job_id, "hold_closed")


async def test_the_receipt_of_a_request_that_was_taken_over_charges_nobody(
    store: PostgresClaims, till: Till, pool: Pool, connection: Connection
) -> None:
    dead, signer = await taken_over(store), Signer()
    judge = Reconciler(Recoveries(pool, till.leases), network_secret=NETWORK_SECRET, global_id=GLOBAL_ID)
    await connection.execute("UPDATE leases SET expires_at = now() - interval '1 s'")
    await till.leases.sweep(10, 600)
    verdicts: list[Verdict] = []
    for job in (dead.job_id, job_id()):  # the second was not taken over by anybody
        receipt = signer.delivered(signer.ticket(job=job, lease=till.lease_id), CUSTOMER)
        verdicts += [judged.verdict for judged in await judge.judge(signer.worker_id, signer.batch(receipt))]
    assert verdicts == [Verdict.DISCREPANCY, Verdict.RECOVERED]
    [found] = await connection.fetch("SELECT job_id, kind, against_worker FROM discrepancies")
    assert tuple(found.values()) == (dead.job_id, "other_attempt", False)
    charges = await connection.fetch("SELECT charge_nano FROM usage WHERE job_id = $1", dead.job_id)
    assert [row["charge_nano"] for row in charges] == [0]


async def test_of_many_who_find_a_dead_request_one_runs(store: PostgresClaims, connection: Connection) -> None:
    dead = a_turn()
    await store.claim(dead, 0)
    heirs = [a_turn() for _ in range(RACES)]
    found = await asyncio.gather(*(store.claim(heir, LONG_S) for heir in heirs))
    assert len({claim.job_id for claim in found}) == 1
    assert sum(claim == ours(heir) for heir, claim in zip(heirs, found, strict=True)) == 1
    assert await connection.fetchval("SELECT count(*) FROM usage") == 1


async def test_a_take_over_and_a_late_charge_in_the_same_moment_never_both_happen(
    store: PostgresClaims, till: Till, connection: Connection
) -> None:
    ran = charged = 0
    for number in range(RACES):
        key = str(number).encode()
        dead, heir = a_turn(key), a_turn(key)
        await store.claim(dead, 0)
        claim, posted = await asyncio.gather(store.claim(heir, LONG_S), till.charge(dead.job_id))
        if isinstance(posted, Posted):
            charged += 1
            assert claim == Claim(job_id=dead.job_id, body_tag=dead.body_tag, standing=Standing.COMPLETED)
        else:
            ran += 1
            assert isinstance(posted, HoldClosedError)
            assert claim == ours(heir)
    assert ran + charged == RACES
    rows = await connection.fetch("SELECT count(*) AS n, count(DISTINCT job_id) AS jobs FROM usage")
    assert (rows[0]["n"], rows[0]["jobs"]) == (RACES, RACES)


async def test_a_job_that_was_charged_is_not_written_off(till: Till, pool: Pool, connection: Connection) -> None:
    job = job_id()
    await till.charge(job, Outcome.CLIENT_GONE)
    async with transaction(pool) as within:
        given_up = GivenUp(job_id=job, customer_id=CUSTOMER, key_id=uuid.UUID(int=8), model="m" * 300)
        assert await write_off(within, given_up) is Outcome.CLIENT_GONE
    assert await connection.fetchval("SELECT count(*) FROM usage") == 1


async def test_a_broken_job_whose_claim_stayed_is_written_off_as_well(
    till: Till, store: PostgresClaims, connection: Connection
) -> None:
    # Another attempt of it may have a receipt.
    dead, heir = a_turn(), a_turn()
    await store.claim(dead, 0)
    await till.charge(dead.job_id, Outcome.BROKEN)
    assert await store.claim(heir, LONG_S) == ours(heir)
    outcomes = [row["outcome"] for row in await connection.fetch("SELECT outcome FROM usage ORDER BY attempt")]
    assert outcomes == ["broken", "client_gone"]


async def test_a_stolen_row_neither_shows_nor_opens_anything(store: PostgresClaims, connection: Connection) -> None:
    turn, answer = a_turn(b"order-17"), Answer(stream=False, headers=(), body=b"the secret answer")
    await store.claim(turn, LONG_S)
    await store.end([Ended(turn=turn, standing=Standing.KEPT, outcome=turn.seal(answer))])
    [row] = await connection.fetch("SELECT * FROM idempotency_claims")
    stolen = repr(dict(row)).encode() + b"".join(value for value in row.values() if isinstance(value, bytes))
    for known in (b"order-17", BODY, answer.body, SECRET):
        assert known not in stolen
        # Nor can a guess be checked against it.
        assert hashlib.sha256(known).digest() not in stolen
    # All that the database knows of the API key is its hash, and that is no key to anything here.
    thief = a_turn(b"order-17", secret=hashlib.sha256(SECRET).digest())
    assert thief.key_tag != turn.key_tag
    with pytest.raises(Exception, match="does not open"):
        thief.open(row["outcome"], row["job_id"])
    assert a_turn(b"order-17").open(row["outcome"], row["job_id"]) == answer


async def test_requests_with_a_key_leave_connections_for_charges(store: PostgresClaims, pool: Pool) -> None:
    dead = a_turn()
    await store.claim(dead, 0)
    async with transaction(pool) as blocker:
        await blocker.fetch("SELECT 1 FROM idempotency_claims FOR UPDATE")
        waiting = [asyncio.create_task(store.claim(a_turn(), LONG_S)) for _ in range(20)]
        await until_blocked(blocker)
        # Seven of eight connections could wait behind that lock by now.
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask(pool))
    found = {claim.job_id for claim in await asyncio.gather(*waiting)}
    assert len(found) == 1


async def until_blocked(connection: Connection) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(60):
        while await connection.fetchval(query) < CONNECTIONS_MAX:
            # The transaction's view of activity is fixed until it is cleared.
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)


async def ask(pool: Pool) -> None:
    async with pool.acquire(timeout=60) as connection:
        await connection.fetchval("SELECT 1")
