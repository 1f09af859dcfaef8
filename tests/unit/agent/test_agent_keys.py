import datetime as dt
import hashlib
import os
import ssl
from pathlib import Path

import pytest

from cocoon import receipt
from cocoon.clock import ManualClock
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.receipt import ReceiptBody, ReceiptHead
from cocoon.sealed import Recipient, UnopenableError, open_request, parse_request, seal_request
from cocoon.usage import TokenUsage
from tests.sealing import TERMS
from tests.unit.agent.agent_values import ticket
from workers.agent.keys import Identity, KeyRing


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(dt.datetime(2026, 11, 22, tzinfo=dt.UTC))


def _body(**changes: str) -> ReceiptBody:
    fields = {
        "v": 1, "receipt_id": "r", "attempt": 0, "keyset_digest": b"", "model_manifest_sha256": b"", "tee_type": "none",
        "seal": "plain", "c_req": b"", "c_resp": b"", "finish_reason": "stop", "started_ms": 1, "ended_ms": 2,
    }  # fmt: skip
    return ReceiptBody(**{**fields, **changes})


def test_a_keyset_names_fresh_keys_and_lives_its_time(clock: ManualClock) -> None:
    one, two = Identity(clock, b"b" * 16, 3600), Identity(clock, b"b" * 16, 3600)
    keyset = Keyset.decode(one.raw)
    assert keyset.not_after - keyset.not_before == 3600
    assert keyset_digest(one.raw) == one.digest != two.digest
    assert one.keyset.receipt_pk != two.keyset.receipt_pk
    assert one.renewal_due_s == 3000
    clock.advance(3000)
    assert (one.renewal_due_s <= 0, one.expired) == (True, False)
    clock.advance(600)
    assert one.expired


def test_what_is_sealed_for_a_keyset_opens_with_its_identity_only(clock: ManualClock) -> None:
    one, two = Identity(clock, b"b" * 16), Identity(clock, b"b" * 16)
    recipient = Recipient(one.digest, Keyset.decode(one.raw).hpke_xwing)
    sealed = parse_request(seal_request(TERMS, b"{}", [recipient], os.urandom).raw)
    assert open_request(sealed, one.digest, one.sealed_key).body == b"{}"
    with pytest.raises(UnopenableError):
        open_request(sealed, one.digest, two.sealed_key)


def test_keys_reach_tls_without_touching_a_disk(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, bytes]] = []

    class Spy(ssl.SSLContext):
        def load_cert_chain(self, certfile: str, *rest: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            path = Path(certfile)
            loaded.append((str(path.readlink()), path.read_bytes()))
            super().load_cert_chain(certfile)

    Identity(clock, b"b" * 16).install(Spy(ssl.PROTOCOL_TLS_SERVER))
    ((target, pem),) = loaded
    assert target.startswith("/memfd:")
    assert b"PRIVATE KEY" in pem


def test_sequence_numbers_are_dense_and_heads_verify(clock: ManualClock) -> None:
    identity = Identity(clock, b"b" * 16)
    usage = TokenUsage(prompt=5, cached=1, completion=7)
    raw = ticket(1).encode()
    signed = [identity.signer.sign(ticket(1), raw, _body(), usage) for _ in range(3)]
    heads = [ReceiptHead.decode(one.head) for one in signed]
    assert [head.seq for head in heads] == [0, 1, 2]
    assert heads[0].usage == usage
    assert heads[0].ticket_sha256 == hashlib.sha256(raw).digest()
    for one in signed:
        receipt.verify(identity.keyset.receipt_pk, one.head, one.signature)


def test_a_body_that_cannot_be_signed_leaves_no_gap(clock: ManualClock) -> None:
    signer = Identity(clock, b"b" * 16).signer
    with pytest.raises(MalformedError):
        signer.sign(ticket(1), b"t", _body(finish_reason="x" * 5000), TokenUsage())
    assert ReceiptHead.decode(signer.sign(ticket(1), b"t", _body(), TokenUsage()).head).seq == 0


def test_usage_above_the_ticket_is_never_signed(clock: ManualClock) -> None:
    signer = Identity(clock, b"b" * 16).signer
    with pytest.raises(AssertionError):
        signer.sign(ticket(1, max_completion=3), b"t", _body(), TokenUsage(completion=4))


def test_resumption_cannot_carry_an_old_certificate_past_its_keyset(clock: ManualClock) -> None:
    context = KeyRing(clock, b"b" * 16).context
    assert (context.num_tickets, bool(context.options & ssl.OP_NO_TICKET)) == (0, True)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
