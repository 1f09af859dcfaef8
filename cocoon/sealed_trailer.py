"""The clear trailer of a sealed answer, and what a client checks of the receipt in it (PROTOCOL §3, §4).

The gateway reads the counts in it and can alter nothing: the last frame authenticates its exact bytes. A refusal in the
engine's own words is sealed as well, and its trailer has no receipt.
"""

import hashlib
import hmac
from typing import Literal

import msgspec

from cocoon import canonical, receipt
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.receipt import SEAL_SEALED, Commitment, ReceiptBody, ReceiptHead
from cocoon.ticket import Ticket
from cocoon.usage import TokenUsage


class SealedReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exact bytes: the ticket that allowed the attempt, the signed head, its signature, and the body."""

    ticket: bytes
    head: bytes
    signature: bytes
    body: bytes


class AnswerTrailer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What follows a sealed answer in clear, in canonical encoding."""

    v: Literal[1]
    usage: TokenUsage
    finish_reason: str
    receipt: SealedReceipt | None = None

    def encode(self) -> bytes:
        """The canonical bytes that the last frame authenticates."""
        return canonical.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "AnswerTrailer":
        """The trailer in its carried bytes.

        Raises:
            MalformedError: not the canonical encoding of a trailer.
        """
        return canonical.decode(raw, AnswerTrailer)


class Delivered(msgspec.Struct, frozen=True):
    """What a client knows of its own request and of the answer that it opened.

    `digest` is H, `rolling` R_k, `keyset` the exact bytes of the keyset that answered, as the client verified them.
    `commitment` has been fed the body and every delivered data payload, under RS_i.
    """

    digest: bytes
    rolling: bytes
    keyset: bytes
    commitment: Commitment


def check_receipt(trailer: AnswerTrailer, delivered: Delivered) -> ReceiptBody:
    """Check that the receipt is for exactly this request and this answer; offline, and without the gateway's word.

    Raises:
        MalformedError: it is missing, of another request, answer or keyset, or its signature does not hold.
    """
    shown = trailer.receipt
    if shown is None:
        raise MalformedError("the answer came without a receipt")
    receipt.verify(Keyset.decode(delivered.keyset).receipt_pk, shown.head, shown.signature)
    head, ticket = ReceiptHead.decode(shown.head), Ticket.decode(shown.ticket)
    if head.ticket_sha256 != hashlib.sha256(shown.ticket).digest() or head.body_sha256 != receipt.body_digest(
        shown.body
    ):
        raise MalformedError("the receipt's head names another ticket or body")
    if not hmac.compare_digest(ticket.request_digest, delivered.digest):
        raise MalformedError("the receipt is for another request")
    if head.usage != trailer.usage or (head.global_id, head.stake) != (ticket.global_id, ticket.stake):
        raise MalformedError("the receipt's head says something else than the trailer or the ticket")
    if head.usage.prompt > ticket.max_prompt or head.usage.completion > ticket.max_completion:
        raise MalformedError("the receipt claims more than its ticket allows")
    body = canonical.decode(shown.body, ReceiptBody)
    if (body.receipt_id, body.attempt) != (str(ticket.job_id), ticket.attempt):
        raise MalformedError("the receipt's body is of another attempt")
    if body.keyset_digest != keyset_digest(delivered.keyset):
        raise MalformedError("the receipt's body is of another keyset")
    if (body.seal, body.sealed_digest, body.rolling) != (SEAL_SEALED, delivered.digest, delivered.rolling):
        raise MalformedError("the receipt is for another sealed request or answer")
    if (body.c_req, body.c_resp) != (delivered.commitment.c_req, delivered.commitment.c_resp):
        raise MalformedError("the receipt commits to another request or answer")
    return body
