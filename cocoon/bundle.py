"""The receipt bundle: everything about one answer that its customer can verify without asking anybody again.

`GET /v1/receipts/{id}` answers it as JSON, bytes in standard base64. A part that does not exist, or not yet, is null
and never invented: what a verifier makes of a null is its policy. Parts are exact bytes, never re-encoded. This module
says which parts there are and what each is made of; what they prove together is for `cocoon verify` to say.
"""

from typing import Annotated

import msgspec

from cocoon.checkpoints import NOTE_CHARS_MAX, SIZE_MAX
from cocoon.delegation import SIGNATURE_BYTES
from cocoon.enrolment import STAKE_BYTES_MAX
from cocoon.errors import MalformedError
from cocoon.merkle import PROOF_HASHES_MAX
from cocoon.receipt import BODY_BYTES_MAX, HEAD_BYTES
from cocoon.signed_batch import COUNTERSIGNATURE_BYTES, Hash, Proof, SignedBatch
from cocoon.ticket import TICKET_BYTES

VERSION = 1
BUNDLE_BYTES_MAX = 8 * 1024 * 1024
"""Longest bundle that is read: evidence of eight GPUs with its collateral is below 1 MiB."""


class Batched(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A leaf's place in a batch that a gateway signed (`cocoon.signed_batch`).

    The batch carries the operator's delegation of the key that signed it.
    """

    batch: SignedBatch
    proof: Proof


class Countersigned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the books charged for the receipt: the 64 bytes of `CCS1`, and their place in a signed batch."""

    leaf: Annotated[bytes, msgspec.Meta(min_length=COUNTERSIGNATURE_BYTES, max_length=COUNTERSIGNATURE_BYTES)]
    signed: Batched


class Inclusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The receipt's place in the transparency log.

    `checkpoint` is the signed note (`cocoon.checkpoints`) of the tree of `size` entries in which the entry of this
    receipt (`cocoon.transparency`) is number `index`; `path` has the lowest hash first (RFC 6962).
    """

    checkpoint: Annotated[str, msgspec.Meta(max_length=NOTE_CHARS_MAX)]
    index: Annotated[int, msgspec.Meta(ge=0, lt=SIZE_MAX)]
    size: Annotated[int, msgspec.Meta(ge=1, le=SIZE_MAX)]
    path: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=PROOF_HASHES_MAX)]


class ReceiptBundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer's receipt with what proves it.

    `head`, `signature` and `body` are `cocoon.receipt`'s, `ticket` the 125 bytes of the gateway's authorisation.
    `keyset` is the canonical keyset whose `receipt_pk` signed; `evidence` (`attestation.Evidence.encode`) and
    `endorsements` are those with which this keyset was admitted, null where the worker has no TEE. `manifest` is the
    model's. `countersigned` is null where nothing was charged for this receipt. `stake` is the configuration (a BoC) of
    the stake that the head names, null where it names none or none was kept.
    """

    v: int = VERSION
    receipt_id: Annotated[str, msgspec.Meta(max_length=36)]
    head: Annotated[bytes, msgspec.Meta(min_length=HEAD_BYTES, max_length=HEAD_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    body: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]
    ticket: Annotated[bytes, msgspec.Meta(min_length=TICKET_BYTES, max_length=TICKET_BYTES)]
    ticket_signed: Batched | None
    countersigned: Countersigned | None
    keyset: bytes | None
    evidence: bytes | None
    endorsements: bytes | None
    manifest: bytes | None
    log: Inclusion | None
    stake: Annotated[bytes, msgspec.Meta(max_length=STAKE_BYTES_MAX)] | None = None

    def encode(self) -> bytes:
        """The JSON."""
        return msgspec.json.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "ReceiptBundle":
        """Parse JSON. Nothing is verified.

        Raises:
            MalformedError: not a bundle of this version; the message names the part.
        """
        if len(raw) > BUNDLE_BYTES_MAX:
            raise MalformedError("the receipt bundle is too long")
        try:
            bundle = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedError(f"not a receipt bundle: {error}") from error
        if bundle.v != VERSION:
            raise MalformedError(f"a receipt bundle of version {bundle.v}; this is version {VERSION}")
        return bundle


_decoder = msgspec.json.Decoder(ReceiptBundle)
