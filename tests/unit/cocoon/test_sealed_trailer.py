"""What a client checks of the receipt of a sealed answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cocoon import canonical
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.receipt import Commitment, ReceiptBody, ReceiptHead
from cocoon.sealed import UnopenableError, key_tag, parse_request
from cocoon.sealed_answer import KEEP_ALIVE, AnswerOpener
from cocoon.sealed_trailer import AnswerTrailer, Delivered, SealedReceipt, check_receipt
from cocoon.ticket import Ticket
from cocoon.usage import TokenUsage

VECTOR: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors/sealed_answer.json").read_text())
KEYSET = VECTOR["keyset"].encode()
DIGEST, SECRET, ANSWER = (bytes.fromhex(VECTOR[name]) for name in ("digest_hex", "secret_hex", "answer_hex"))


def _opener() -> AnswerOpener:
    return AnswerOpener(digest=DIGEST, secrets={keyset_digest(KEYSET): SECRET})


def _delivered(**changes: Any) -> Delivered:
    commitment = Commitment(SECRET)
    commitment.request(VECTOR["body"].encode())
    for payload in VECTOR["payloads"]:
        commitment.response(payload.encode())
    members = {
        "digest": DIGEST, "rolling": bytes.fromhex(VECTOR["rolling_hex"]), "keyset": KEYSET, "commitment": commitment,
    }  # fmt: skip
    return Delivered(**{**members, **changes})


def _trailer(**changes: Any) -> AnswerTrailer:
    return msgspec.structs.replace(AnswerTrailer.decode(VECTOR["trailer"].encode()), **changes)


def _shown(**changes: Any) -> SealedReceipt:
    shown = _trailer().receipt
    assert shown is not None
    return msgspec.structs.replace(shown, **changes)


def test_the_vector_is_opened_and_its_receipt_holds() -> None:
    header = parse_request(bytes.fromhex(VECTOR["request_hex"])).header
    assert header.key_tag == key_tag(VECTOR["api_key"])
    opener = _opener()
    data = b"".join(opener.feed(ANSWER))
    opener.finish()
    assert data == b"".join(b"data: %b\n\n" % payload.encode() for payload in VECTOR["payloads"])
    assert opener.rolling.hex() == VECTOR["rolling_hex"]
    assert opener.trailer.decode() == VECTOR["trailer"]
    body = check_receipt(AnswerTrailer.decode(opener.trailer), _delivered())
    assert canonical.encode(body).decode() == VECTOR["receipt_body"]
    assert (body.c_req.hex(), body.c_resp.hex()) == (VECTOR["c_req_hex"], VECTOR["c_resp_hex"])


def test_zeros_before_the_prelude_mean_nothing_and_anywhere_else_they_are_an_error() -> None:
    opener = _opener()
    assert [opener.feed(KEEP_ALIVE) for _ in range(3)] == [[]] * 3
    assert len(opener.feed(KEEP_ALIVE + ANSWER)) == 2
    opener.finish()
    with pytest.raises(UnopenableError):
        _opener().feed(ANSWER[:65] + KEEP_ALIVE + ANSWER[65:])
    with pytest.raises(UnopenableError):
        _opener().feed(ANSWER + KEEP_ALIVE)
    waiting = _opener()
    waiting.feed(KEEP_ALIVE)
    with pytest.raises(UnopenableError, match="cut off"):
        waiting.finish()


def _other_ticket() -> SealedReceipt:
    ticket = msgspec.structs.replace(Ticket.decode(_shown().ticket), attempt=1)
    return _shown(ticket=ticket.encode())


def _other_head() -> SealedReceipt:
    head = msgspec.structs.replace(ReceiptHead.decode(_shown().head), usage=TokenUsage(prompt=1))
    return _shown(head=head.encode())


def _other_body() -> SealedReceipt:
    body = msgspec.structs.replace(canonical.decode(_shown().body, ReceiptBody), finish_reason="length")
    return _shown(body=canonical.encode(body))


def _stranger() -> bytes:
    return msgspec.structs.replace(Keyset.decode(KEYSET), boot_id=b"another boot 16b").encode()


@pytest.mark.parametrize(
    ("trailer", "delivered", "reason"),
    [
        (lambda: _trailer(receipt=None), _delivered, "without a receipt"),
        (lambda: _trailer(receipt=_shown(signature=bytes(64))), _delivered, "signature"),
        (lambda: _trailer(receipt=_other_head()), _delivered, "signature"),
        (lambda: _trailer(receipt=_other_ticket()), _delivered, "another ticket or body"),
        (lambda: _trailer(receipt=_other_body()), _delivered, "another ticket or body"),
        (lambda: _trailer(usage=TokenUsage(prompt=1)), _delivered, "than the trailer"),
        (_trailer, lambda: _delivered(digest=bytes(32)), "another request"),
        (_trailer, lambda: _delivered(rolling=bytes(32)), "another sealed request or answer"),
        (_trailer, lambda: _delivered(keyset=_stranger()), "another keyset"),
        (_trailer, lambda: _delivered(commitment=Commitment(SECRET)), "commits to another"),
    ],
)
def test_a_receipt_for_anything_else_is_refused(
    trailer: Callable[[], AnswerTrailer], delivered: Callable[[], Delivered], reason: str
) -> None:
    with pytest.raises(MalformedError, match=reason):
        check_receipt(trailer(), delivered())


def test_a_plain_receipt_is_encoded_as_before() -> None:
    body = canonical.decode(_shown().body, ReceiptBody)
    plain = msgspec.structs.replace(body, seal="plain", sealed_digest=None, rolling=None)
    assert b"sealed_digest" not in canonical.encode(plain)
    assert b"rolling" not in canonical.encode(plain)
    assert canonical.decode(canonical.encode(plain), ReceiptBody) == plain
