import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cocoon import receipt
from cocoon.errors import MalformedError
from cocoon.receipt import HEAD_BYTES, ReceiptBody, ReceiptHead
from cocoon.usage import TokenUsage

SECRET = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = SECRET.public_key().public_bytes_raw()
P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P


def head(**changes: Any) -> ReceiptHead:
    fields: dict[str, Any] = {
        "global_id": -239,
        "stake": receipt.NO_STAKE,
        "seq": 5,
        "ticket_sha256": b"t" * 32,
        "body_sha256": b"b" * 32,
        "usage": TokenUsage(prompt=9, cached=3, completion=4),
    }
    return ReceiptHead(**fields | changes)


def body(**changes: Any) -> ReceiptBody:
    fields: dict[str, Any] = {
        "v": 1,
        "receipt_id": "x",
        "attempt": 0,
        "keyset_digest": bytes(32),
        "model_manifest_sha256": b"",
        "tee_type": "none",
        "seal": "none",
        "c_req": bytes(32),
        "c_resp": bytes(32),
        "finish_reason": "stop",
        "started_ms": 1,
        "ended_ms": 2,
    }
    return ReceiptBody(**fields | changes)


def test_a_head_has_124_bytes_and_comes_back() -> None:
    raw = head().encode()

    assert len(raw) == HEAD_BYTES == 124
    assert ReceiptHead.decode(raw) == head()


def test_a_signature_holds_for_the_exact_bytes_only() -> None:
    raw = head().encode()
    signature = receipt.sign(SECRET, raw)
    receipt.verify(PUBLIC, raw, signature)

    accepted = []
    for position in range(0, HEAD_BYTES * 8, 5):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        try:
            receipt.verify(PUBLIC, bytes(flipped), signature)
            accepted.append(position)
        except MalformedError:
            pass
    for position in range(0, 64 * 8, 5):
        flipped = bytearray(signature)
        flipped[position // 8] ^= 1 << position % 8
        try:
            receipt.verify(PUBLIC, raw, bytes(flipped))
            accepted.append(-position)
        except MalformedError:
            pass

    assert accepted == []


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(MalformedError):
        receipt.verify(bytes(length), head().encode(), bytes(64))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(MalformedError):
        receipt.verify(PUBLIC, head().encode(), bytes(length))


def test_another_key_is_refused() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32).public_key().public_bytes_raw()

    with pytest.raises(MalformedError):
        receipt.verify(other, head().encode(), receipt.sign(SECRET, head().encode()))


def test_the_key_under_which_everything_verifies_is_refused() -> None:
    identity = b"\x01" + bytes(31)
    forged = identity + bytes(32)
    # OpenSSL takes it; if that ever changes, the check below is spare but right.
    Ed25519PublicKey.from_public_bytes(identity).verify(forged, b"any message")

    with pytest.raises(MalformedError):
        receipt.verify(identity, head().encode(), forged)


def added(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    k = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, P - 2, P) % P
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, P - 2, P) % P
    return x, y


def multiplied(scalar: int, point: tuple[int, int]) -> tuple[int, int]:
    result = (0, 1)
    for bit in f"{scalar:b}":
        result = added(result, result)
        result = added(result, point) if bit == "1" else result
    return result


def points() -> Iterator[tuple[int, int]]:
    """Points of the whole curve, in order of y."""
    root = pow(2, (P - 1) // 4, P)
    for y in itertools.count(2):
        square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
        x = pow(square, (P + 3) // 8, P)
        for candidate in (x, x * root % P):
            if candidate * candidate % P == square:
                yield candidate, y


def small_order_encodings() -> set[bytes]:
    """Every encoding, canonical or not, of the eight points whose order divides eight, by curve arithmetic."""
    # Times the prime order of the main subgroup, only a point's part of small order is left.
    prime_order = 2**252 + 27742317777372353535851937790883648493
    generator = next(
        small for small in (multiplied(prime_order, point) for point in points()) if multiplied(4, small) != (0, 1)
    )
    heights = {multiplied(scalar, generator)[1] for scalar in range(8)}
    return {
        (value | sign << 255).to_bytes(32, "little")
        for height in heights
        for value in (height, height + P)
        if value < 2**255
        for sign in (0, 1)
    }


def test_every_key_of_small_order_is_refused_and_no_other() -> None:
    encodings = small_order_encodings()

    assert len(encodings) == 14
    assert [key.hex() for key in encodings if receipt.is_strong_key(key)] == []
    assert receipt.is_strong_key(PUBLIC)


@pytest.mark.parametrize("changes", [{"stake": b""}, {"ticket_sha256": bytes(31)}, {"body_sha256": bytes(33)}])
def test_a_field_of_another_length_is_refused_not_padded(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        head(**changes)


@pytest.mark.parametrize("changes", [{"seq": -1}, {"seq": 2**64}, {"global_id": 2**31}, {"global_id": -(2**31) - 1}])
def test_a_number_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="integer"):
        head(**changes)


@pytest.mark.parametrize("raw", [b"", b"CRH1", bytes(124), b"CRH2" + bytes(120), b"CRH1" + bytes(121)])
def test_other_bytes_are_not_a_head(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        ReceiptHead.decode(raw)


def test_a_head_that_claims_more_cached_than_prompt_tokens_is_refused() -> None:
    raw = bytearray(head().encode())
    raw[112:124] = (1).to_bytes(4, "big") + (2).to_bytes(4, "big") + (3).to_bytes(4, "big")

    with pytest.raises(MalformedError):
        ReceiptHead.decode(bytes(raw))


def test_a_body_beyond_4_kib_is_refused() -> None:
    fitting = len(receipt.encode_body(body(finish_reason="")))
    assert len(receipt.encode_body(body(finish_reason="x" * (4096 - fitting)))) == 4096

    with pytest.raises(MalformedError):
        receipt.encode_body(body(finish_reason="x" * (4097 - fitting)))


def test_commitments_do_not_depend_on_the_pieces_but_on_every_byte_and_the_salt() -> None:
    def commit(salt: bytes, request: bytes, *pieces: bytes) -> tuple[bytes, bytes]:
        commitment = receipt.Commitment(salt)
        commitment.request(request)
        for piece in pieces:
            commitment.response(piece)
        return commitment.c_req, commitment.c_resp

    assert commit(b"s", b"req", b"ab", b"c") == commit(b"s", b"req", b"a", b"", b"bc")
    values = {
        value for c in (commit(b"s", b"x", b"x"), commit(b"t", b"x", b"x"), commit(b"s", b"y", b"y")) for value in c
    }
    assert len(values) == 6
