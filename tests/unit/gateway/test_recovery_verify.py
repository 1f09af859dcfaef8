"""What counts as an authentic receipt: every part is checked against every other, and nothing is taken on trust."""

import datetime as dt
import uuid
from typing import Any

import msgspec
import pytest

from billing.ports import Outcome
from billing.recoveries import Claim
from cocoon.canonical import base64url, from_base64url
from cocoon.errors import MalformedError
from cocoon.receipt_batch import DeliveredReceipt
from cocoon.ticket import seal_ticket, ticket_key
from cocoon.usage import TokenUsage
from gateway.recovery import verify
from gateway.stubs import Stub, open_stub, seal_stub, stub_key
from tests.receipt_values import GLOBAL_ID, RECEIPT_PRICE, SECRET, Signer

CUSTOMER = uuid.UUID(int=5)


def judged(signer: Signer, delivered: DeliveredReceipt, *, worker: uuid.UUID | None = None) -> Claim:
    return verify(delivered, [signer.raw], worker or signer.worker_id, SECRET, global_id=GLOBAL_ID)


def changed(delivered: DeliveredReceipt, **members: Any) -> DeliveredReceipt:
    return msgspec.structs.replace(delivered, **members)


def test_an_authentic_receipt_claims_what_it_says_for_whom_the_gateway_said() -> None:
    signer = Signer()
    ticket = signer.ticket(attempt=2)
    usage = TokenUsage(prompt=10, cached=4, completion=5)
    delivered = signer.delivered(ticket, CUSTOMER, usage)
    claim = judged(signer, delivered)
    settled = claim.settlement
    assert (settled.job_id, settled.attempt, settled.customer_id) == (ticket.job_id, 2, CUSTOMER)
    assert (settled.key_id, settled.model, settled.price) == (uuid.UUID(int=7), "m", RECEIPT_PRICE)
    assert (settled.worker_id, settled.usage, claim.claimed) == (signer.worker_id, usage, usage)
    assert (settled.outcome, settled.finish_reason) == (Outcome.COMPLETED, "stop")
    assert settled.started_at == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)
    assert (claim.hold_id, claim.ticket, claim.receipt_body) == (ticket.lease, ticket.encode(), delivered.body)


def test_claims_above_the_ticket_are_cut_down_to_it_and_remembered() -> None:
    signer = Signer()
    over = TokenUsage(prompt=500, cached=300, completion=51)
    claim = judged(signer, signer.delivered(signer.ticket(), CUSTOMER, over))
    assert claim.settlement.usage == TokenUsage(prompt=100, cached=100, completion=50)
    assert claim.claimed == over


def test_an_answer_that_was_cut_off_does_not_count_as_complete() -> None:
    signer = Signer()
    claim = judged(signer, signer.delivered(signer.ticket(), CUSTOMER, finish_reason="abort"))
    assert claim.settlement.outcome is Outcome.CLIENT_GONE


@pytest.mark.parametrize("reason", ["x" * 65, "a\x00b", "naïve"])
def test_a_finish_reason_that_the_books_cannot_hold_costs_no_charge(reason: str) -> None:
    signer = Signer()
    claim = judged(signer, signer.delivered(signer.ticket(), CUSTOMER, finish_reason=reason))
    assert claim.settlement.finish_reason == "other"


def test_a_ticket_whose_mac_or_bytes_are_forged_is_refused() -> None:
    signer = Signer()
    ticket = signer.ticket()
    delivered = signer.delivered(ticket, CUSTOMER)
    sealed = bytearray(from_base64url(delivered.ticket))
    for at in (0, 60, 110, 124, 125, 156):
        spoilt = bytearray(sealed)
        spoilt[at] ^= 1
        with pytest.raises(MalformedError):
            judged(signer, changed(delivered, ticket=base64url(bytes(spoilt))))


def test_a_worker_cannot_make_a_ticket_although_it_knows_the_tickets_key() -> None:
    signer = Signer()
    generous = signer.ticket(max_completion=2**31)
    made = signer.delivered(generous, CUSTOMER)
    # With its own MAC key it can seal any ticket; the stub of a genuine one does not fit it.
    genuine = signer.delivered(signer.ticket(job=generous.job_id), CUSTOMER)
    with pytest.raises(MalformedError, match="stub"):
        judged(signer, changed(made, stub=genuine.stub))
    own = seal_stub(
        stub_key(b"guessed" * 5, signer.digest), signer.worker_id, generous.encode(),
        Stub(customer_id=CUSTOMER, key_id=CUSTOMER, model="m", price=RECEIPT_PRICE),
    )  # fmt: skip
    for stub in (own, "", "AA", base64url(b"\x00" * 12)):
        with pytest.raises(MalformedError):
            judged(signer, changed(made, stub=stub))


def test_another_workers_receipt_is_refused() -> None:
    signer, thief = Signer(), Signer()
    delivered = signer.delivered(signer.ticket(), CUSTOMER)
    with pytest.raises(MalformedError, match="stub"):
        judged(signer, delivered, worker=thief.worker_id)


def test_a_ticket_of_another_keyset_is_refused() -> None:
    first = Signer()
    second = Signer(first.worker_id)
    delivered = first.delivered(first.ticket(), CUSTOMER)
    with pytest.raises(MalformedError):
        judged(second, delivered)
    # ... even when both its seals are made anew for the other keyset: the stub is not.
    ticket = first.ticket()
    resealed = changed(first.delivered(ticket, CUSTOMER), ticket=seal_ticket(ticket_key(SECRET, second.digest), ticket))
    with pytest.raises(MalformedError):
        judged(second, resealed)


def test_a_keyset_that_the_batch_does_not_have_is_refused() -> None:
    signer = Signer()
    delivered = changed(signer.delivered(signer.ticket(), CUSTOMER), keyset=1)
    with pytest.raises(MalformedError):
        judged(signer, delivered)
    with pytest.raises(MalformedError):
        verify(changed(delivered, keyset=0), [b"{}"], signer.worker_id, SECRET, global_id=GLOBAL_ID)


def test_an_altered_head_or_signature_is_refused() -> None:
    signer = Signer()
    delivered = signer.delivered(signer.ticket(), CUSTOMER)
    for at in (0, 40, 115, 123):
        head = bytearray(delivered.head)
        head[at] ^= 1
        with pytest.raises(MalformedError):
            judged(signer, changed(delivered, head=bytes(head)))
    for signature in (b"\x00" * 64, Signer().key.sign(delivered.head)):
        with pytest.raises(MalformedError):
            judged(signer, changed(delivered, signature=signature))


@pytest.mark.parametrize(
    "head",
    [{"ticket_sha256": b"t" * 32}, {"body_sha256": b"b" * 32}, {"global_id": -3}, {"stake": b"s" * 32}],
)
def test_a_head_of_another_ticket_body_network_or_stake_is_refused(head: dict[str, Any]) -> None:
    signer = Signer()
    with pytest.raises(MalformedError):
        judged(signer, signer.delivered(signer.ticket(), CUSTOMER, head=head))


@pytest.mark.parametrize(
    "body",
    [{"receipt_id": str(uuid.UUID(int=1))}, {"attempt": 1}, {"keyset_digest": b"k" * 32}, {"started_ms": 2**53 - 1}],
)
def test_a_body_of_another_job_attempt_keyset_or_time_is_refused(body: dict[str, Any]) -> None:
    signer = Signer()
    with pytest.raises(MalformedError):
        judged(signer, signer.delivered(signer.ticket(), CUSTOMER, **body))


def test_a_ticket_of_another_network_is_refused() -> None:
    signer = Signer()
    with pytest.raises(MalformedError):
        judged(signer, signer.delivered(signer.ticket(global_id=-3), CUSTOMER))


def test_a_stub_opens_only_for_its_ticket_worker_and_keyset_and_tells_the_worker_nothing() -> None:
    signer = Signer()
    ticket = signer.ticket()
    text = signer.stub(ticket, CUSTOMER)
    key = stub_key(SECRET, signer.digest)
    assert open_stub(key, signer.worker_id, ticket.encode(), text).customer_id == CUSTOMER
    assert CUSTOMER.bytes not in from_base64url(text)
    assert signer.stub(ticket, CUSTOMER) != text
    others = (
        (stub_key(b"o" * 32, signer.digest), signer.worker_id, ticket.encode()),
        (stub_key(SECRET, b"d" * 32), signer.worker_id, ticket.encode()),
        (key, uuid.uuid4(), ticket.encode()),
        (key, signer.worker_id, signer.ticket().encode()),
    )
    for other_key, worker, raw in others:
        with pytest.raises(MalformedError):
            open_stub(other_key, worker, raw, text)
