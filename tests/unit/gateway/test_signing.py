"""The gateway's signer: what it signs, for whom, in how few signatures, and when it does not."""

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator

import pytest

from cocoon.clock import ManualClock, SystemClock
from cocoon.errors import MalformedError
from cocoon.signatures import SignaturesRequest, UnsignedTicket
from cocoon.signed_batch import LEAVES_MAX, Countersignature, head_digest, open_batch, require_leaf
from cocoon.ticket import Ticket, seal_ticket, ticket_key
from gateway.errors import OverloadedError
from gateway.signing import WAITING_MAX, BatchSigner, Charged, GatewayKey, SigningUnavailableError, development_key
from tests.receipt_values import GLOBAL_ID, SECRET, Signer
from tests.signing_values import Operator

CUSTOMER = uuid.UUID(int=5)


class Counted:
    """A private key that counts its signatures."""

    def __init__(self, key: GatewayKey) -> None:
        self.count = 0
        self._private = key.private
        key.private = self  # type: ignore[assignment]

    def sign(self, message: bytes) -> bytes:
        self.count += 1
        return self._private.sign(message)


def a_key(operator: Operator) -> GatewayKey:
    return GatewayKey(operator.gateway.private_bytes_raw(), operator.carried, global_id=GLOBAL_ID, clock=SystemClock())


@pytest.fixture
def operator() -> Operator:
    return Operator(GLOBAL_ID)


@pytest.fixture
async def signer(operator: Operator) -> AsyncIterator[BatchSigner]:
    made = BatchSigner(a_key(operator), global_id=GLOBAL_ID, network_secret=SECRET, clock=SystemClock())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(made.run())
        yield made
        running.cancel()


def asked(worker: Signer, *tickets: UnsignedTicket) -> SignaturesRequest:
    return SignaturesRequest(keyset_digest=worker.digest, tickets=tickets)


def given(worker: Signer, ticket: Ticket) -> UnsignedTicket:
    """The headers that a gateway hands over with a job."""
    return UnsignedTicket(
        ticket=seal_ticket(ticket_key(worker.secret, worker.digest), ticket), stub=worker.stub(ticket, CUSTOMER)
    )


async def test_many_workers_tickets_share_one_signature_and_each_has_its_path(operator: Operator) -> None:
    key = a_key(operator)
    counted = Counted(key)
    signer = BatchSigner(key, global_id=GLOBAL_ID, network_secret=SECRET, clock=SystemClock())
    workers = [Signer() for _ in range(5)]
    tickets = [[worker.ticket() for _ in range(7)] for worker in workers]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(signer.run())
        answers = await asyncio.gather(
            *(
                signer.sign_tickets(worker.worker_id, asked(worker, *(given(worker, one) for one in theirs)))
                for worker, theirs in zip(workers, tickets, strict=True)
            )
        )
        running.cancel()
    assert counted.count == 1
    for theirs, answer in zip(tickets, answers, strict=True):
        assert answer.batch is not None
        head = open_batch(
            answer.batch, operator_key=operator.public, global_id=GLOBAL_ID,
            now_s=SystemClock().now().timestamp(),
        )  # fmt: skip
        assert head.size == 35
        for ticket, proof in zip(theirs, answer.proofs, strict=True):
            assert proof is not None
            require_leaf(head, ticket.encode(), proof)


async def test_a_ticket_is_signed_only_for_the_worker_and_keyset_it_was_issued_to(signer: BatchSigner) -> None:
    ours, other, foreign = Signer(), Signer(), Signer(secret=b"f" * 32)
    ticket = ours.ticket()
    good = given(ours, ticket)
    raised = ours.ticket(job=ticket.job_id, max_completion=10_000)
    key = ticket_key(SECRET, ours.digest)
    forged = [
        UnsignedTicket(ticket=good.ticket[:-4] + "AAAA", stub=good.stub),
        UnsignedTicket(ticket="no ticket", stub=good.stub),
        # The agent knows the MAC key: only the stub stops it from inventing tickets.
        UnsignedTicket(ticket=seal_ticket(key, raised), stub=good.stub),
        UnsignedTicket(ticket=good.ticket, stub=""),
        given(other, other.ticket()),
        given(foreign, foreign.ticket()),
        given(ours, ours.ticket(global_id=GLOBAL_ID + 1)),
    ]
    answer = await signer.sign_tickets(ours.worker_id, asked(ours, *forged, good))
    assert [proof is not None for proof in answer.proofs] == [False] * len(forged) + [True]
    # Another worker delivers it, and nothing is left to sign.
    stolen = await signer.sign_tickets(other.worker_id, asked(ours, good))
    assert (stolen.batch, stolen.proofs) == (None, (None,))


async def test_countersignatures_say_what_each_head_was_charged_and_prove_its_ticket(
    signer: BatchSigner, operator: Operator
) -> None:
    asked = [
        Charged(b"t" * 125, b"h" * 124, 12), None, Charged(b"u" * 125, b"i" * 124, 0),
        Charged(b"v" * 125, b"j" * 124, None),
    ]  # fmt: skip
    batch, entries = await signer.countersign(asked, include_by=1_700_000_000)
    assert batch is not None
    head = open_batch(batch, operator_key=operator.public, global_id=GLOBAL_ID, now_s=SystemClock().now().timestamp())
    assert [entry is None for entry in entries] == [False, True, False, False]
    for entry, one in zip(entries, asked, strict=True):
        if entry is None or one is None:
            continue
        require_leaf(head, one.ticket, entry.ticket)
        assert (entry.countersigned is None) == (one.numerator is None)
        if entry.countersigned is not None:
            require_leaf(head, entry.countersigned.leaf, entry.countersigned.proof)
            said = Countersignature.decode(entry.countersigned.leaf)
            assert (said.head_sha256, said.charge_numerator) == (head_digest(one.head), one.numerator)
            assert said.include_by == 1_700_000_000
    assert await signer.countersign([None], include_by=0) == (None, [None])


async def test_more_than_one_batch_can_hold_is_signed_in_several_and_too_much_is_refused(operator: Operator) -> None:
    key = a_key(operator)
    counted = Counted(key)
    signer = BatchSigner(key, global_id=GLOBAL_ID, network_secret=SECRET, clock=SystemClock())
    leaves = [number.to_bytes(4, "big") for number in range(LEAVES_MAX)]
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(signer.sign(leaves)) for _ in range(WAITING_MAX // LEAVES_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await signer.sign(leaves[:1])
        running = group.create_task(signer.run())
        answers = await asyncio.gather(*waiting)
        running.cancel()
    assert counted.count == len(waiting)
    assert {len(proofs) for _, proofs in answers} == {LEAVES_MAX}


async def test_a_delegation_that_has_ended_signs_nothing_any_more(operator: Operator) -> None:
    clock = ManualClock(dt.datetime.fromtimestamp(operator.now_s, dt.UTC))
    key = GatewayKey(operator.gateway.private_bytes_raw(), operator.carried, global_id=GLOBAL_ID, clock=clock)
    signer = BatchSigner(key, global_id=GLOBAL_ID, network_secret=SECRET, clock=clock)
    clock.advance(3600)
    with pytest.raises(SigningUnavailableError):
        await signer.sign([b"leaf"])


async def test_a_failure_reaches_everybody_who_waits(operator: Operator) -> None:
    key = a_key(operator)
    signer = BatchSigner(key, global_id=GLOBAL_ID, network_secret=SECRET, clock=SystemClock())
    key.private = None  # type: ignore[assignment]
    running = asyncio.get_running_loop().create_task(signer.run())
    outcomes = await asyncio.gather(signer.sign([b"a"]), signer.sign([b"b"]), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [SigningUnavailableError] * 2
    with pytest.raises(AttributeError):
        await running


@pytest.mark.parametrize("change", ["key", "network", "expired"])
def test_a_gateway_does_not_start_with_a_delegation_for_something_else(operator: Operator, change: str) -> None:
    seed, network, clock = operator.gateway.private_bytes_raw(), GLOBAL_ID, SystemClock()
    if change == "key":
        seed = bytes(32)
    elif change == "network":
        network += 1
    else:
        operator.delegate(not_after=int(operator.now_s) - 1)
    with pytest.raises(MalformedError):
        GatewayKey(seed, operator.carried, global_id=network, clock=clock)


def test_development_keys_are_the_same_in_every_process_and_differ_between_networks() -> None:
    clock = SystemClock()
    first, second = (development_key(SECRET, global_id=GLOBAL_ID, clock=clock) for _ in range(2))
    assert first.operator_key == second.operator_key
    assert development_key(b"o" * 32, global_id=GLOBAL_ID, clock=clock).operator_key != first.operator_key
