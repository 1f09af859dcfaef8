"""Judges the receipts that agents deliver, and has charged what a gateway lost.

Every receipt is verified: the ticket's MAC, the stub that only a gateway can have sealed for this ticket and this
worker, and the signature of the head by the receipt key of the keyset that the stub was sealed for. Nearly every one
then says what the books already know. No ticket, no charge.

The keyset travels with the batch instead of being looked up: the stub binds its digest to the worker, so that no
history of enrolments is needed, and a receipt of an earlier keyset is as good as one of today's.
"""

import asyncio
import datetime as dt
import functools
import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from billing.ports import Outcome, Settlement
from billing.postgres.recoveries import Recoveries
from billing.recoveries import Booked, Claim
from cocoon import canonical, receipt
from cocoon.contracts.stake import Evidence
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.ids import job_day
from cocoon.receipt import ReceiptBody, ReceiptHead
from cocoon.receipt_batch import DeliveredReceipt, ReceiptBatch, Verdict
from cocoon.ticket import Ticket, open_ticket, ticket_key
from gateway.errors import OverloadedError
from gateway.stubs import open_stub, stub_key

BATCHES_MAX = 16
"""Batches that wait or are judged in one process; beyond it agents are asked to come back."""
VERIFIED_PER_TURN = 4
"""Receipts verified before the event loop gets a turn: 2 ms."""
KEYSETS_MAX = 256
"""Keysets that one process remembers."""
FINISH_CHARS_MAX = 64
CUT_OFF = "abort"
"""Finish reason of a receipt for an answer that was cut off while the worker gave it."""
log = structlog.get_logger()


class _Opened(NamedTuple):
    """What is needed of a keyset to verify its receipts."""

    digest: bytes
    receipt_pk: bytes
    named: Evidence | None
    ticket_key: bytes
    stub_key: AESGCM


@functools.lru_cache(maxsize=KEYSETS_MAX)
def _opened(raw: bytes, network_secret: bytes) -> _Opened:
    """A keyset signs thousands of receipts; decoding it for each would cost as much as all the rest.

    Raises:
        MalformedError: not a keyset.
    """
    digest, keyset = keyset_digest(raw), Keyset.decode(raw)
    return _Opened(
        digest, keyset.receipt_pk, Evidence.named_by(keyset), ticket_key(network_secret, digest),
        stub_key(network_secret, digest),
    )  # fmt: skip


class Judgement(msgspec.Struct, frozen=True):
    """What became of a receipt; `charged` is what the books charge for exactly this one (10^-6 nano), if anything.

    `claim` is what it says, None for one that is not authentic; `booked_head` is the head that the books have for its
    attempt; `receipt_pk` is the key that signed, of the keyset of this digest, and `named` the stake's word for it.
    """

    verdict: Verdict
    head: bytes
    charged: int | None
    claim: Claim | None = None
    booked_head: bytes | None = None
    receipt_pk: bytes = b""
    keyset_digest: bytes = b""
    named: Evidence | None = None


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
        verified = await self._verified(worker_id, batch)
        authentic = [claim for claim in verified if claim is not None]
        booked = await self._recoveries.booked({claim.settlement.job_id for claim in authentic})
        # Nearly every receipt says what the books know already.
        unknown = [claim for claim in authentic if not _is_known(claim, booked.get(claim.settlement.job_id, []))]
        judged = await self._recoveries.reconcile(unknown) if unknown else []
        verdicts = {id(claim): verdict for claim, verdict in zip(unknown, judged, strict=True)}
        if unknown:
            # What was recovered just now has rows of its own.
            booked |= await self._recoveries.booked({claim.settlement.job_id for claim in unknown})
        return tuple(
            Judgement(verdict=Verdict.REFUSED, head=delivered.head, charged=None)
            if claim is None
            else _judgement(
                claim,
                verdicts.get(id(claim), Verdict.RECORDED),
                _opened(batch.keysets[delivered.keyset], self._network_secret),
                booked,
            )
            for claim, delivered in zip(verified, batch.receipts, strict=True)
        )

    async def _verified(self, worker_id: uuid.UUID, batch: ReceiptBatch) -> list[Claim | None]:
        """What each receipt claims, None where it is not authentic: no receipt is paid, kept or logged unverified."""
        claims: list[Claim | None] = []
        for delivered in batch.receipts:
            try:
                claims.append(
                    verify(delivered, batch.keysets, worker_id, self._network_secret, global_id=self._global_id)
                )
            except MalformedError as error:
                # Only what was refused and why: an honest worker never sees this line.
                log.warning("receipt_refused", worker_id=str(worker_id), reason=str(error))
                claims.append(None)
            if len(claims) % VERIFIED_PER_TURN == 0:
                await asyncio.sleep(0)
        return claims


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
    keyset = _opened(keysets[delivered.keyset], network_secret)
    digest = keyset.digest
    ticket, raw_ticket = open_ticket(keyset.ticket_key, delivered.ticket)
    stub = open_stub(keyset.stub_key, worker_id, raw_ticket, delivered.stub)
    head = ReceiptHead.decode(delivered.head)
    body = canonical.decode(delivered.body, ReceiptBody)
    _require_matching(ticket, raw_ticket, head, body, delivered.body, digest, global_id)
    receipt.verify(keyset.receipt_pk, delivered.head, delivered.signature)
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


def _judgement(
    claim: Claim, verdict: Verdict, keyset: _Opened, booked: Mapping[uuid.UUID, Sequence[Booked]]
) -> Judgement:
    """The charge is said for the one receipt that its usage row holds, and for no other head of the attempt."""
    settlement, head = claim.settlement, claim.settlement.receipt_head
    assert head is not None, "a claim comes from a receipt"
    rows = booked.get(settlement.job_id, ())
    charged = next((row.numerator for row in rows if row.receipt_head == head), None) if verdict.final else None
    booked_head = next((row.receipt_head for row in rows if row.attempt == settlement.attempt), None)
    return Judgement(
        verdict=verdict, head=head, charged=charged, claim=claim, booked_head=booked_head,
        receipt_pk=keyset.receipt_pk, keyset_digest=keyset.digest, named=keyset.named,
    )  # fmt: skip


def _is_known(claim: Claim, rows: Sequence[Booked]) -> bool:
    """Whether the usage row of this attempt came with this very head, and says what it says."""
    settlement = claim.settlement
    return any(
        row.attempt == settlement.attempt
        and row.worker_id == settlement.worker_id
        and row.receipt_head == settlement.receipt_head
        and row.usage == claim.claimed
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
