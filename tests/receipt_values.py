"""A worker, its keyset and receipts as gateways and agents make them, for tests to deliver and to spoil."""

import time
import uuid
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cocoon import receipt
from cocoon.clock import SystemClock
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.money import Price
from cocoon.receipt import NO_STAKE, ReceiptBody, ReceiptHead
from cocoon.receipt_batch import DeliveredReceipt, ReceiptBatch
from cocoon.ticket import Ticket, plain_request_digest, seal_ticket, ticket_key
from cocoon.usage import TokenUsage
from gateway.stubs import Stub, seal_stub, stub_key
from tests.ledger_values import job_id
from tests.unit.workers.worker_values import a_keyset
from workers.agent.staking import StakedKey

SECRET = b"n" * 32
GLOBAL_ID = -217
RECEIPT_PRICE = Price(version=3, prompt=1_000_000, cached=500_000, completion=2_000_000, share_bps=9_000)


class Signer:
    """One worker with one keyset, which a stake answers for if there is one."""

    def __init__(
        self, worker_id: uuid.UUID | None = None, secret: bytes = SECRET, *, staked: StakedKey | None = None,
        global_id: int = GLOBAL_ID,
    ) -> None:  # fmt: skip
        self.worker_id = worker_id or uuid.uuid4()
        self.secret = secret
        self.key = Ed25519PrivateKey.generate()
        self.global_id = global_id
        self.stake = NO_STAKE if staked is None else staked.address.account
        receipt_pk = self.key.public_key().public_bytes_raw()
        self.keyset: Keyset = a_keyset(SystemClock(), receipt_pk=receipt_pk)
        if staked is not None:
            delegation = staked.delegate(receipt_pk, self.keyset.not_after)
            self.keyset = msgspec.structs.replace(self.keyset, stake_addr=str(staked.address), delegation=delegation)
        self.raw = self.keyset.encode()
        self.digest = keyset_digest(self.raw)

    def ticket(self, **changes: Any) -> Ticket:
        job = changes.pop("job", None) or job_id()
        members: dict[str, Any] = {
            "global_id": self.global_id, "stake": self.stake, "job_id": job, "attempt": 0, "lease": job,
            "price_version": 3, "max_prompt": 100, "max_completion": 50, "not_after": int(time.time()) + 60,
            "request_digest": plain_request_digest(b"body"),
        }  # fmt: skip
        return Ticket(**members | changes)

    def stub(self, ticket: Ticket, customer: uuid.UUID) -> str:
        stub = Stub(customer_id=customer, key_id=uuid.UUID(int=7), model="m", price=RECEIPT_PRICE)
        return seal_stub(stub_key(self.secret, self.digest), self.worker_id, ticket.encode(), stub)

    def delivered(
        self, ticket: Ticket, customer: uuid.UUID, usage: TokenUsage | None = None, *,
        head: dict[str, Any] | None = None, **changes: Any,
    ) -> DeliveredReceipt:  # fmt: skip
        """A receipt for `usage` (10 prompt, 5 completion) under this ticket; `changes` alter its body."""
        members: dict[str, Any] = {
            "v": 1, "receipt_id": str(ticket.job_id), "attempt": ticket.attempt, "keyset_digest": self.digest,
            "model_manifest_sha256": b"", "tee_type": "none", "seal": "plain", "c_req": b"c" * 32, "c_resp": b"r" * 32,
            "finish_reason": "stop", "started_ms": 1_700_000_000_000, "ended_ms": 1_700_000_001_000,
        }  # fmt: skip
        body = receipt.encode_body(ReceiptBody(**members | changes))
        signed: dict[str, Any] = {
            "global_id": ticket.global_id, "stake": ticket.stake, "seq": 0,
            "ticket_sha256": receipt.body_digest(ticket.encode()), "body_sha256": receipt.body_digest(body),
            "usage": usage or TokenUsage(prompt=10, completion=5),
        }  # fmt: skip
        raw = ReceiptHead(**signed | (head or {})).encode()
        return DeliveredReceipt(
            keyset=0,
            ticket=seal_ticket(ticket_key(self.secret, self.digest), ticket),
            stub=self.stub(ticket, customer),
            head=raw,
            signature=self.key.sign(raw),
            body=body,
        )

    def batch(self, *receipts: DeliveredReceipt) -> ReceiptBatch:
        return ReceiptBatch(keysets=(self.raw,), receipts=receipts)
