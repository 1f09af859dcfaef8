"""How an agent asks for the signatures of its tickets (PROTOCOL §2).

A ticket comes with a MAC, which convinces its worker and nobody else. The agent sends it back with its stub, any
gateway recognises it as one of the network's, and answers with a signed batch that holds it.
"""

from typing import Annotated

import msgspec

from cocoon.enrolment import Digest
from cocoon.receipt_batch import STUB_CHARS_MAX, TICKET_CHARS_MAX
from cocoon.signed_batch import Proof, SignedBatch

SIGNATURES_PATH = "/v1/workers/signatures"
TICKETS_MAX = 128
"""Tickets of one request."""
REQUEST_BYTES_MAX = 512 * 1024


class UnsignedTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The headers that a job came with."""

    ticket: Annotated[str, msgspec.Meta(max_length=TICKET_CHARS_MAX)]
    stub: Annotated[str, msgspec.Meta(max_length=STUB_CHARS_MAX)]


class SignaturesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/workers/signatures`, authorised by the heartbeat token: tickets of one keyset that need a signature."""

    keyset_digest: Digest
    tickets: Annotated[tuple[UnsignedTicket, ...], msgspec.Meta(min_length=1, max_length=TICKETS_MAX)]


class SignaturesAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The batch, and a proof for each ticket in its order; None for one that no gateway of this network issued."""

    batch: SignedBatch | None
    proofs: tuple[Proof | None, ...]
