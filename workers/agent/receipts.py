"""Signs receipts.

`seq` is dense per receipt key: a gap would look like a receipt held back, a repeat is slashable (PROTOCOL §4).
`workers.agent.receipt_store` keeps what was signed until the gateway has it.
"""

import hashlib
import threading

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon import receipt
from cocoon.receipt import ReceiptBody, ReceiptHead
from cocoon.ticket import Ticket
from cocoon.usage import TokenUsage


class SignedReceipt(msgspec.Struct, frozen=True):
    """Exact bytes: head, signature, body, and the ticket that allowed the attempt."""

    head: bytes
    signature: bytes
    body: bytes
    ticket: bytes


class ReceiptSigner:
    """One receipt key and its sequence."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._seq = 0

    @property
    def signed(self) -> int:
        """How many receipts this key has signed."""
        return self._seq

    def sign(self, ticket: Ticket, ticket_bytes: bytes, body: ReceiptBody, usage: TokenUsage) -> SignedReceipt:
        """The receipt of one attempt; `usage` must already lie within the ticket.

        Raises:
            MalformedError: the body is too long.
        """
        assert usage.prompt <= ticket.max_prompt, "a head above its ticket is slashable"
        assert usage.completion <= ticket.max_completion, "a head above its ticket is slashable"
        raw_body = receipt.encode_body(body)
        with self._lock:
            head = ReceiptHead(
                global_id=ticket.global_id,
                stake=ticket.stake,
                seq=self._seq,
                ticket_sha256=hashlib.sha256(ticket_bytes).digest(),
                body_sha256=receipt.body_digest(raw_body),
                usage=usage,
            ).encode()
            signature = receipt.sign(self._key, head)
            self._seq += 1
        return SignedReceipt(head=head, signature=signature, body=raw_body, ticket=ticket_bytes)
