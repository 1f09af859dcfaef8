"""Judges the receipts that agents deliver, and has charged what a gateway lost.

Nearly every receipt says what the books already know; comparing bytes is enough for those. Only what is new to the
books is verified: the ticket's MAC, the stub that only a gateway can have sealed for this ticket and this worker, and
the signature of the head by the receipt key of the keyset that the stub was sealed for. No ticket, no charge.

The keyset travels with the batch instead of being looked up: the stub binds its digest to the worker, so that no
history of enrolments is needed, and a receipt of an earlier keyset is as good as one of today's.
"""

import asyncio
import datetime as dt
import uuid
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from billing.ports import Outcome, Settlement
from billing.postgres.recoveries import Recoveries
from billing.recoveries import Booked, Claim
from cocoon import canonical, receipt
from cocoon.canonical import from_base64url
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.ids import job_day
from cocoon.receipt import ReceiptBody, ReceiptHead
from cocoon.receipt_batch import DeliveredReceipt, ReceiptBatch, Verdict
from cocoon.ticket import TICKET_BYTES, Ticket, open_ticket, ticket_key
from gateway.errors import OverloadedError
from gateway.stubs import open_stub, stub_key

BATCHES_MAX = 16
"""Batches that wait or are judged in one process; beyond it agents are asked to come back."""
VERIFIED_PER_TURN = 4
"""Receipts verified before the event loop gets a turn: 2 ms."""
FINISH_CHARS_MAX = 64
CUT_OFF = "abort"
"""Finish reason of a receipt for an answer that was cut off while the worker gave it."""
log = structlog.get_logger()


class _Outline(msgspec.Struct, frozen=True):
    """What a receipt is about, as it says itself: not verified."""

    job_id: uuid.UUID
    attempt: int
    head: ReceiptHead


class Judgement(msgspec.Struct, frozen=True):
    """What became of a receipt; `charged` is what the books charge for exactly this one (10^-6 nano), if anything."""

    verdict: Verdict
    head: bytes
    charged: int | None


class Reconciler:
    """One process's judge of receipts."""

    def __init__(self, recoveries: Recoveries, *, network_secret: bytes, global_id: int) -> None:
        self._recoveries = recoveries
        self._network_secret = network_secret
        self._global_id = global_id
        self._waiting = 0
        self._turn = asyncio.Lock()

    async def judge(self, worker_id: uuid.UUID, batch: ReceiptBatch) -> tuple[Judgement, ...]:
        """One judgement for each receipt that the worker delivers; the same batch again changes nothing.

        Raises:
            OverloadedError: too many batches are waiting.
            LedgerUnavailableError: the books cannot be reached; nothing is known to have happened.
        """
        if self._waiting >= BATCHES_MAX:
            raise OverloadedError("too many receipts are waiting to be judged")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._judge(worker_id, batch)
        finally:
            self._waiting -= 1

    async def _judge(self, worker_id: uuid.UUID, batch: ReceiptBatch) -> tuple[Judgement, ...]:
        outlines = [_outline(delivered) for delivered in batch.receipts]
        booked = await self._recoveries.booked({outline.job_id for outline in outlines if outline is not None})
        verdicts: list[Verdict | None] = []
        claims: list[Claim] = []
        for delivered, outline in zip(batch.receipts, outlines, strict=True):
            if outline is not None and _is_known(worker_id, delivered, outline, booked.get(outline.job_id, [])):
                verdicts.append(Verdict.RECORDED)
                continue
            try:
                claims.append(
                    verify(delivered, batch.keysets, worker_id, self._network_secret, global_id=self._global_id)
                )
                verdicts.append(None)
            except MalformedError as error:
                # Only what was refused and why: an honest worker never sees this line.
                log.warning("receipt_refused", worker_id=str(worker_id), reason=str(error))
                verdicts.append(Verdict.REFUSED)
            if len(verdicts) % VERIFIED_PER_TURN == 0:
                await asyncio.sleep(0)
        judged = iter(await self._recoveries.reconcile(claims) if claims else ())
        whole = [next(judged) if verdict is None else verdict for verdict in verdicts]
        if claims:
            # What was recovered just now has rows of its own.
            booked |= await self._recoveries.booked({claim.settlement.job_id for claim in claims})
        return tuple(
            Judgement(verdict=verdict, head=delivered.head, charged=_charged(verdict, delivered, outline, booked))
            for verdict, delivered, outline in zip(whole, batch.receipts, outlines, strict=True)
        )


def verify(
    delivered: DeliveredReceipt, keysets: Sequence[bytes], worker_id: uuid.UUID, network_secret: bytes, *,
    global_id: int,
) -> Claim:  # fmt: skip
    """What an authentic receipt claims.

    Raises:
        MalformedError: any part of it is not what a gateway of this network and this worker made.
    """
    if delivered.keyset >= len(keysets):
        raise MalformedError("the receipt names a keyset that the batch does not have")
    raw_keyset = keysets[delivered.keyset]
    digest = keyset_digest(raw_keyset)
    ticket, raw_ticket = open_ticket(ticket_key(network_secret, digest), delivered.ticket)
    stub = open_stub(stub_key(network_secret, digest), worker_id, raw_ticket, delivered.stub)
    head = ReceiptHead.decode(delivered.head)
    body = canonical.decode(delivered.body, ReceiptBody)
    _require_matching(ticket, raw_ticket, head, body, delivered.body, digest, global_id)
    receipt.verify(Keyset.decode(raw_keyset).receipt_pk, delivered.head, delivered.signature)
    started, ended = _moment(body.started_ms), _moment(body.ended_ms)
    settlement = Settlement(
        job_id=ticket.job_id,
        attempt=ticket.attempt,
        customer_id=stub.customer_id,
        key_id=stub.key_id,
        worker_id=worker_id,
        model=stub.model,
        price=stub.price,
        usage=head.usage.capped(prompt_max=ticket.max_prompt, completion_max=ticket.max_completion),
        outcome=Outcome.CLIENT_GONE if body.finish_reason == CUT_OFF else Outcome.COMPLETED,
        finish_reason=_recordable(body.finish_reason),
        started_at=started,
        first_token_at=None,
        ended_at=ended,
        receipt_head=delivered.head,
        receipt_signature=delivered.signature,
    )
    return Claim(
        settlement=settlement,
        claimed=head.usage,
        hold_id=ticket.lease,
        ticket=raw_ticket,
        receipt_body=delivered.body,
    )


def _require_matching(
    ticket: Ticket, raw_ticket: bytes, head: ReceiptHead, body: ReceiptBody, raw_body: bytes, digest: bytes,
    global_id: int,
) -> None:  # fmt: skip
    if ticket.global_id != global_id or (head.global_id, head.stake) != (ticket.global_id, ticket.stake):
        raise MalformedError("the receipt is of another network or stake")
    if head.ticket_sha256 != receipt.body_digest(raw_ticket):
        raise MalformedError("the head is of another ticket")
    if head.body_sha256 != receipt.body_digest(raw_body):
        raise MalformedError("the body is not the one that was signed")
    if (body.receipt_id, body.attempt, body.keyset_digest) != (str(ticket.job_id), ticket.attempt, digest):
        raise MalformedError("the body is of another attempt or keyset")
    job_day(ticket.job_id)


def _outline(delivered: DeliveredReceipt) -> _Outline | None:
    try:
        ticket = Ticket.decode(from_base64url(delivered.ticket)[:TICKET_BYTES])
        job_day(ticket.job_id)
        return _Outline(ticket.job_id, ticket.attempt, ReceiptHead.decode(delivered.head))
    except MalformedError:
        return None


def _charged(
    verdict: Verdict,
    delivered: DeliveredReceipt,
    outline: _Outline | None,
    booked: Mapping[uuid.UUID, Sequence[Booked]],
) -> int | None:
    """The charge, for the one receipt that its usage row holds: nothing is said about another head of the attempt."""
    if not verdict.final or verdict is Verdict.REFUSED or outline is None:
        return None
    rows = booked.get(outline.job_id, ())
    return next((row.numerator for row in rows if row.receipt_head == delivered.head), None)


def _is_known(worker_id: uuid.UUID, delivered: DeliveredReceipt, outline: _Outline, rows: Sequence[Booked]) -> bool:
    """Whether the usage row of this attempt came with this very head, and says what it says."""
    return any(
        row.attempt == outline.attempt
        and row.worker_id == worker_id
        and row.receipt_head == delivered.head
        and row.usage == outline.head.usage
        and row.outcome.chargeable
        for row in rows
    )


def _moment(unix_ms: int) -> dt.datetime:
    try:
        return dt.datetime.fromtimestamp(unix_ms / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise MalformedError("the receipt's times are absurd") from error


def _recordable(finish_reason: str) -> str:
    """An engine's own word, unless the books could not hold it."""
    sound = len(finish_reason) <= FINISH_CHARS_MAX and finish_reason.isascii() and finish_reason.isprintable()
    return finish_reason if sound else "other"
