"""What an agent sends when it delivers receipts, and what the gateway makes of each (PROTOCOL §4).

A receipt travels with the ticket that allowed its attempt, the gateway's own sealed stub of that attempt, and, once
per batch, the exact bytes of the keyset that signed it: whoever judges it needs nothing but the network's secret.
"""

import enum
from typing import Annotated

import msgspec

from cocoon.signed_batch import COUNTERSIGNATURE_BYTES, Proof, SignedBatch

RECEIPTS_PATH = "/v1/workers/receipts"
RECEIPTS_MAX = 500
"""Receipts of one batch."""
KEYSETS_MAX = 32
"""Different keysets of one batch."""
BATCH_BYTES_MAX = 4 * 1024 * 1024
TICKET_CHARS_MAX = 256
STUB_CHARS_MAX = 2048
_HEAD_BYTES = 124
_SIGNATURE_BYTES = 64
_BODY_BYTES_MAX = 4096
_KEYSET_BYTES_MAX = 8192


class Verdict(enum.StrEnum):
    """What became of a receipt. Everything but `PENDING` is final: the agent need not send it again."""

    RECORDED = "recorded"
    """The books already say the same, or there is nothing to charge."""
    RECOVERED = "recovered"
    """It was lost, and has been charged and paid from this receipt."""
    DISCREPANCY = "discrepancy"
    """The books say otherwise; both sides' numbers are recorded and nothing was changed."""
    PENDING = "pending"
    """The gateway may still settle it itself; send it again later."""
    REFUSED = "refused"
    """Not authentic, or not this worker's."""

    @property
    def final(self) -> bool:
        """Whether the receipt need not be sent again."""
        return self is not Verdict.PENDING


class DeliveredReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One receipt. `keyset` is an index into the batch's; `ticket` and `stub` are the headers the job came with."""

    keyset: Annotated[int, msgspec.Meta(ge=0, lt=KEYSETS_MAX)]
    ticket: Annotated[str, msgspec.Meta(max_length=TICKET_CHARS_MAX)]
    stub: Annotated[str, msgspec.Meta(max_length=STUB_CHARS_MAX)]
    head: Annotated[bytes, msgspec.Meta(min_length=_HEAD_BYTES, max_length=_HEAD_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(min_length=_SIGNATURE_BYTES, max_length=_SIGNATURE_BYTES)]
    body: Annotated[bytes, msgspec.Meta(max_length=_BODY_BYTES_MAX)]


class ReceiptBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/workers/receipts`, authorised by the heartbeat token. Sending it again changes nothing."""

    keysets: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=_KEYSET_BYTES_MAX)], ...], msgspec.Meta(max_length=KEYSETS_MAX)
    ]
    receipts: Annotated[tuple[DeliveredReceipt, ...], msgspec.Meta(max_length=RECEIPTS_MAX)]


class Countersigned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gateway's word on what a receipt was charged: the leaf's exact bytes, and its place in the signed batch."""

    leaf: Annotated[bytes, msgspec.Meta(min_length=COUNTERSIGNATURE_BYTES, max_length=COUNTERSIGNATURE_BYTES)]
    proof: Proof


class ReceiptVerdicts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One verdict for each receipt of the batch, in its order.

    `countersigned` is empty, or has an entry for each receipt, all under `batch`: None where there is nothing final
    to say. A gateway that cannot sign at the moment judges all the same.
    """

    verdicts: tuple[Verdict, ...]
    batch: SignedBatch | None = None
    countersigned: tuple[Countersigned | None, ...] = ()
