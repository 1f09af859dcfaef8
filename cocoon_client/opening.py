"""What a client keeps of one of its requests: with it, and only with it, the receipt's commitments can be opened."""

from typing import Annotated, Literal

import msgspec

from cocoon import canonical, receipt, sse
from cocoon.endpoints import EndpointName
from cocoon.enrolment import Digest
from cocoon.errors import MalformedError
from cocoon.openai import decode_chunk
from cocoon.receipt import Commitment

_DONE = b"[DONE]"
_Seconds = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Nano = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_ReceiptId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]


class ShownPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the gateway said that tokens cost before it was asked, in nano per million."""

    prompt: _Nano
    cached: _Nano
    completion: _Nano


class Opening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request as its client knows it. It holds the prompt: whoever has the file can read it.

    `salt` opens the commitments (RS_i of the worker that answered, when sealed). `request` and `answer` are the exact
    bytes before sealing and after opening; `sealed_header` and `rolling` are the clear header and R_k. `evidence` was
    judged at `judged_at` with the client's own `nonce` before the request was sealed at `asked_at` (Unix seconds).
    `ticket`, `head`, `body` and `signature` are the receipt as it came with the answer. `manifest` is the digest of
    the weights that were insisted on, if any; `price` is what the gateway's model list said.
    """

    v: Literal[1]
    receipt_id: _ReceiptId
    endpoint: EndpointName
    sealed: bool
    streamed: bool
    salt: bytes
    request: bytes
    answer: bytes
    sealed_header: bytes
    rolling: bytes
    keyset_digest: Digest
    nonce: bytes
    evidence: bytes
    endorsements: bytes
    judged_at: _Seconds
    asked_at: _Seconds
    ticket: bytes
    head: bytes
    body: bytes
    signature: bytes
    manifest: Digest | None = None
    price: ShownPrice | None = None

    def encode(self) -> bytes:
        """Canonical JSON."""
        return canonical.encode(self)

    @staticmethod
    def decode(raw: bytes) -> "Opening":
        """The opening in its saved bytes.

        Raises:
            MalformedError: not the canonical encoding of an opening.
        """
        return canonical.decode(raw, Opening)

    def commitments(self) -> tuple[bytes, bytes]:
        """`c_req` and `c_resp` as the kept request and answer make them.

        Raises:
            MalformedError: the answer is not in the form that it says.
        """
        commitment = Commitment(self.salt)
        commitment.request(self.request)
        for payload in payloads(self.answer, streamed=self.streamed):
            commitment.response(payload)
        return commitment.c_req, commitment.c_resp


def payloads(answer: bytes, *, streamed: bool) -> list[bytes]:
    """What of an answer is committed to: a whole document, or the data of events without comments and usage.

    Raises:
        MalformedError: an event is too long.
    """
    if not streamed:
        return [answer]
    found: list[bytes] = []
    for event in sse.EventSplitter().feed(answer):
        payload = sse.data_of(event)
        if payload is None or is_usage_chunk(payload):
            continue
        found.append(_DONE if payload.strip() == _DONE else payload)
    return found


def is_usage_chunk(payload: bytes) -> bool:
    """Whether an event only reports usage: no commitment covers those (PROTOCOL §4)."""
    if b'"usage"' not in payload:
        return False
    try:
        chunk = decode_chunk(payload)
    except MalformedError:
        return False
    return not chunk.choices and chunk.usage is not None


def read_body(raw: bytes) -> receipt.ReceiptBody:
    """The body of a receipt in its exact bytes.

    Raises:
        MalformedError: not the canonical encoding of one.
    """
    return canonical.decode(raw, receipt.ReceiptBody)
