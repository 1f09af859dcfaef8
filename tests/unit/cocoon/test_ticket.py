import struct
import uuid
from typing import Any

import pytest

from cocoon.canonical import base64url
from cocoon.errors import MalformedError
from cocoon.ticket import TICKET_BYTES, Ticket, open_ticket, plain_request_digest, seal_ticket, ticket_key

KEY = ticket_key(b"s" * 32, b"k" * 32)


def make(**changes: Any) -> Ticket:
    fields: dict[str, Any] = {
        "global_id": -3,
        "stake": bytes(32),
        "job_id": uuid.UUID(int=1),
        "attempt": 0,
        "lease": uuid.UUID(int=2),
        "price_version": 1,
        "max_prompt": 10,
        "max_completion": 20,
        "not_after": 1_764_547_200,
        "request_digest": plain_request_digest(b"{}"),
    }
    return Ticket(**fields | changes)


def test_a_ticket_has_125_bytes_and_comes_back() -> None:
    made = make()

    assert len(made.encode()) == TICKET_BYTES == 125
    assert open_ticket(KEY, seal_ticket(KEY, made)) == (made, made.encode())


def test_a_flipped_bit_anywhere_in_the_ticket_or_its_mac_is_refused() -> None:
    sealed = bytearray(make().encode())
    sealed += b"".join([open_mac(make())])
    accepted = []
    for position in range(len(sealed) * 8):
        sealed[position // 8] ^= 1 << position % 8
        try:
            open_ticket(KEY, base64url(bytes(sealed)))
            accepted.append(position)
        except MalformedError:
            pass
        sealed[position // 8] ^= 1 << position % 8

    assert accepted == []


def test_any_other_character_anywhere_in_the_header_is_refused() -> None:
    header = seal_ticket(KEY, make())
    accepted = []
    for at, old in enumerate(header):
        for new in "AQgwBh_-=\n é":
            if new == old:
                continue
            try:
                open_ticket(KEY, header[:at] + new + header[at + 1 :])
                accepted.append((at, new))
            except MalformedError:
                pass

    assert accepted == []


@pytest.mark.parametrize("header", ["", "A", "AAAA", "A" * 210, "A" * 100_000, "\x00"])
def test_what_is_not_a_ticket_is_refused(header: str) -> None:
    with pytest.raises(MalformedError):
        open_ticket(KEY, header)


def test_a_header_with_something_appended_is_refused() -> None:
    header = seal_ticket(KEY, make())

    for tail in ("A", "AA", "AAAA", "=", header):
        with pytest.raises(MalformedError):
            open_ticket(KEY, header + tail)


def test_another_keysets_key_does_not_open_it() -> None:
    header = seal_ticket(KEY, make())

    for other in (ticket_key(b"s" * 32, b"K" * 32), ticket_key(b"S" * 32, b"k" * 32), bytes(32)):
        with pytest.raises(MalformedError):
            open_ticket(other, header)


def test_an_authentic_text_that_is_no_ticket_is_refused() -> None:
    raw = b"XXXX" + make().encode()[4:]
    sealed = base64url(raw + mac_of(raw))

    with pytest.raises(MalformedError):
        open_ticket(KEY, sealed)


@pytest.mark.parametrize("changes", [{"stake": bytes(31)}, {"stake": bytes(33)}, {"request_digest": b""}])
def test_a_field_of_another_length_is_refused_not_padded(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        make(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"attempt": 256}, {"max_prompt": 2**32}, {"max_completion": -1}, {"not_after": 2**64}, {"global_id": 2**31}],
)
def test_a_number_that_does_not_fit_is_refused_not_wrapped(changes: dict[str, Any]) -> None:
    with pytest.raises(struct.error):
        make(**changes).encode()


def test_the_extremes_fit() -> None:
    made = make(attempt=255, max_prompt=2**32 - 1, max_completion=2**32 - 1, not_after=2**64 - 1, global_id=-(2**31))

    assert Ticket.decode(made.encode()) == made


def mac_of(raw: bytes) -> bytes:
    import hmac

    return hmac.digest(KEY, raw, "sha256")


def open_mac(made: Ticket) -> bytes:
    return mac_of(made.encode())
