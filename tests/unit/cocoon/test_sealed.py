"""Sealed requests and answers: what opens, and every attack of the protocol's list that the bytes have to withstand."""

import hashlib
import hmac
import json
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cocoon.errors import MalformedError
from cocoon.sealed import (
    BODY_BYTES_MAX,
    WRAP_BYTES,
    OpenedRequest,
    Recipient,
    ReplayedError,
    ReplayGuard,
    SealedKey,
    UnopenableError,
    check_inner,
    key_tag,
    open_request,
    pad,
    parse_request,
    request_bucket,
    seal_request,
)
from cocoon.sealed_answer import AnswerOpener, AnswerSealer
from tests.sealing import API_KEY, BODY, DIGESTS, JOB, KEYS, RECIPIENTS, TERMS, counted, key

VECTOR = json.loads((pathlib.Path(__file__).parents[2] / "vectors" / "sealed.json").read_text())
replace = msgspec.structs.replace
SENT = seal_request(TERMS, BODY, RECIPIENTS, counted())
PARTS = b"data: one\n\n", b"data: two\n\n", b"data: three\n\n"
TRAILER = b'{"receipt":"..."}'


def opened(raw: bytes = SENT.raw, number: int = 0) -> OpenedRequest:
    return open_request(parse_request(raw), DIGESTS[number], KEYS[number])


def sealer(number: int = 0, random: bytes = b"\x07" * 32) -> AnswerSealer:
    request = opened(number=number)
    return AnswerSealer(digest=request.digest, keyset_digest=DIGESTS[number], secret=request.secret, random=random)


def answer(number: int = 0, random: bytes = b"\x07" * 32) -> list[bytes]:
    """Prelude, three frames, end."""
    sealing = sealer(number, random)
    return [sealing.prelude, *(sealing.frame(part) for part in PARTS), sealing.final(b"", TRAILER)]


def opener() -> AnswerOpener:
    return AnswerOpener(digest=SENT.digest, secrets=SENT.secrets)


def refused(pieces: list[bytes]) -> bool:
    opening = opener()
    try:
        opening.feed(b"".join(pieces))
        opening.finish()
    except UnopenableError:
        return True
    return False


@pytest.mark.parametrize("number", [0, 1])
def test_every_recipient_opens_the_same_body_and_finds_a_secret_of_its_own(number: int) -> None:
    request = opened(number=number)

    assert request.body == BODY
    assert request.digest == SENT.digest
    assert request.secret == SENT.secrets[DIGESTS[number]]
    assert opened(number=0).secret != opened(number=1).secret


def test_the_gateway_reads_the_header_and_nothing_of_the_body() -> None:
    sealed = parse_request(SENT.raw)

    assert (sealed.header.model, sealed.header.job_id, sealed.header.max_completion) == ("smol", JOB, 64)
    assert hmac.compare_digest(sealed.header.key_tag, key_tag(API_KEY))
    assert sealed.header.key_tag != key_tag("sk-cocoon-other")  # a foreign account's replay
    assert b"secret" not in SENT.raw
    assert len(sealed.ciphertext) == 1024 + 16


def test_what_is_sealed_twice_looks_different() -> None:
    again = seal_request(TERMS, BODY, RECIPIENTS, counted())

    assert again.digest == SENT.digest  # the test's randomness repeats; the encapsulation's does not
    assert again.raw != SENT.raw


def test_others_do_not_open_it() -> None:
    with pytest.raises(UnopenableError):
        open_request(parse_request(SENT.raw), DIGESTS[0], KEYS[1])
    with pytest.raises(UnopenableError):
        open_request(parse_request(SENT.raw), b"\xc3" * 32, KEYS[0])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"model":"smol"', b'"model":"tiny"'),
        (b'"max_completion":64', b'"max_completion":65'),
        (b'"stream":true', b'"stream":false'),
        (b'"n":1', b'"n":2'),
        (b'"not_after":1764568800', b'"not_after":1764568801'),
    ],
)
def test_a_header_that_was_swapped_does_not_open(old: bytes, new: bytes) -> None:
    """The gateway swapping the model or routing headers."""
    (length,) = struct.unpack_from(">I", SENT.raw, 4)
    clear = SENT.raw[8 : 8 + length].replace(old, new)
    raw = SENT.raw[:4] + struct.pack(">I", len(clear)) + clear + SENT.raw[8 + length :]

    assert raw != SENT.raw
    with pytest.raises(UnopenableError):
        opened(raw)


def test_recipients_that_were_swapped_do_not_open() -> None:
    (length,) = struct.unpack_from(">I", SENT.raw, 4)
    at = 8 + length
    first, second = SENT.raw[at : at + WRAP_BYTES], SENT.raw[at + WRAP_BYTES : at + 2 * WRAP_BYTES]
    swapped = SENT.raw[:at] + second + first + SENT.raw[at + 2 * WRAP_BYTES :]

    with pytest.raises(UnopenableError):
        opened(swapped)
    other = seal_request(TERMS, BODY, (Recipient(DIGESTS[0], key(9).public_key), RECIPIENTS[1]), counted())
    with pytest.raises(UnopenableError):
        opened(other.raw)


def test_no_altered_octet_opens_as_the_same_request() -> None:
    for offset in range(len(SENT.raw)):
        raw = bytearray(SENT.raw)
        raw[offset] ^= 1 << offset % 8
        # The other recipient's wrap is not this one's business.
        start = len(SENT.raw) - 1040 - 4 - WRAP_BYTES
        if start <= offset < start + WRAP_BYTES:
            continue
        with pytest.raises(MalformedError):
            opened(bytes(raw))


def test_a_body_key_that_the_header_does_not_commit_to_is_refused() -> None:
    """One ciphertext that opens differently for two recipients needs two keys; the header commits to one."""
    sealed = parse_request(SENT.raw)
    info = b"cocoon/wrap/1\x00" + sealed.digest + DIGESTS[0]
    post = KEYS[0]
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    other = suite.encrypt(b"\x99" * 64, post._key.public_key(), info=info)

    with pytest.raises(UnopenableError, match="commits"):
        open_request(replace(sealed, wraps=(other, sealed.wraps[1])), DIGESTS[0], KEYS[0])


@pytest.mark.parametrize(
    "recipients",
    [(), (RECIPIENTS[0], RECIPIENTS[0]), RECIPIENTS[:1] * 9, (Recipient(DIGESTS[0], b"short"),),
     (Recipient(DIGESTS[0], b"\xff" * 1216),)],
)  # fmt: skip
def test_a_request_has_one_to_eight_different_usable_recipients(recipients: tuple[Recipient, ...]) -> None:
    with pytest.raises(MalformedError):
        seal_request(TERMS, BODY, recipients, counted())


def test_a_body_has_a_maximum() -> None:
    with pytest.raises(MalformedError):
        seal_request(TERMS, bytes(BODY_BYTES_MAX + 1), RECIPIENTS, counted())


@pytest.mark.parametrize("raw", [b"", b"CSR1", b"CSR2" + SENT.raw[4:], SENT.raw[:-1], SENT.raw + b"\0", SENT.raw[:100]])
def test_what_is_not_exactly_a_sealed_request_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_request(raw)


@pytest.mark.parametrize(
    ("length", "bucket"),
    [(0, 1024), (1020, 1024), (1021, 4096), (4092, 4096), (4093, 16384), (65532, 65536), (65533, 73728),
     (73724, 73728), (73725, 82944)],
)  # fmt: skip
def test_bodies_are_padded_to_few_lengths(length: int, bucket: int) -> None:
    assert request_bucket(length) == bucket


@pytest.mark.parametrize("padded", [pad(BODY, 2048), pad(BODY, 1024)[:-1] + b"\x01", b"\xff" * 1024, b"", b"\0\0\0"])
def test_other_padding_does_not_open(padded: bytes) -> None:
    """A worker that is to tell one padding from another would tell the client's software."""
    dek = counted()(32)
    extracted = hmac.digest(b"cocoon/dek/1", dek, "sha256")
    body_key = hmac.digest(extracted, b"body" + SENT.digest + b"\x01", "sha256")
    ciphertext = AESGCM(body_key).encrypt(bytes(12), padded, b"\0" + SENT.digest + bytes(8) + b"\1")
    with pytest.raises(UnopenableError, match="padded"):
        open_request(replace(parse_request(SENT.raw), ciphertext=ciphertext), DIGESTS[0], KEYS[0])


@pytest.mark.parametrize(
    "changes",
    [{"model": "tiny"}, {"n": 2}, {"stream": False}, {"completion_each": 65}, {"completion_each": 63}],
)
def test_an_inner_body_that_differs_from_its_header_is_refused(changes: dict[str, Any]) -> None:
    header = opened().header
    asked: dict[str, Any] = {"model": "smol", "n": 1, "stream": True, "completion_each": 64, "manifest": b"m" * 32}
    check_inner(header, **asked)
    unbounded: dict[str, Any] = {**asked, "completion_each": None}
    check_inner(header, **unbounded)

    with pytest.raises(MalformedError):
        check_inner(header, **asked | changes)
    with pytest.raises(MalformedError):
        check_inner(replace(header, manifest=b"o" * 32), **asked)


def test_a_job_is_executed_once_and_a_full_guard_admits_nothing() -> None:
    guard = ReplayGuard(jobs_max=2)
    guard.admit(b"a" * 16)

    with pytest.raises(ReplayedError):
        guard.admit(b"a" * 16)
    guard.admit(b"b" * 16)
    with pytest.raises(ReplayedError):
        guard.admit(b"c" * 16)


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_an_answer_opens_however_it_is_cut(step: int) -> None:
    raw, opening = b"".join(answer()), opener()
    found = [part for at in range(0, len(raw), step) for part in opening.feed(raw[at : at + step])]
    opening.finish()
    sealing = sealer()
    for part in PARTS:
        sealing.frame(part)

    assert tuple(found) == PARTS
    assert opening.trailer == TRAILER
    assert opening.keyset_digest == DIGESTS[0]
    assert opening.rolling == sealing.rolling


def test_the_last_frame_may_carry_data() -> None:
    sealing, opening = sealer(), opener()

    assert opening.feed(sealing.prelude + sealing.final(b"all of it", b"")) == [b"all of it"]
    opening.finish()


def test_frames_hide_their_lengths_in_steps_of_256() -> None:
    sealing = sealer()

    assert {len(sealing.frame(b"x" * length)) for length in (0, 1, 252)} == {4 + 256 + 16}
    assert len(sealing.frame(b"x" * 253)) == 4 + 512 + 16


@pytest.mark.parametrize(
    "change",
    [
        lambda pieces: pieces[:2] + pieces[3:],  # dropped
        lambda pieces: pieces[:2] + pieces[1:],  # duplicated
        lambda pieces: [pieces[0], pieces[2], pieces[1], *pieces[3:]],  # reordered
        lambda pieces: pieces[:-1],  # cut off at a boundary
        lambda pieces: pieces[:3],
        lambda pieces: pieces[:1],
        lambda pieces: [],
        lambda pieces: [*pieces[:2], pieces[-1]],  # the end too early
        lambda pieces: [*pieces, pieces[-1]],
        lambda pieces: [*pieces, b"x"],
        lambda pieces: [*pieces[:-1], pieces[-1].replace(TRAILER, TRAILER.replace(b"receipt", b"RECEIPT"))],
        lambda pieces: [pieces[0], *pieces],  # a second prelude
        lambda pieces: [pieces[0][:1] + DIGESTS[1] + pieces[0][33:], *pieces[1:]],  # under another's name
        lambda pieces: [pieces[0][:1] + b"\xc3" * 32 + pieces[0][33:], *pieces[1:]],
        lambda pieces: [b"\x02" + pieces[0][1:], *pieces[1:]],
        lambda pieces: [*pieces[:1], struct.pack(">I", 2**31), *pieces[1:]],
        lambda pieces: [*pieces[:1], struct.pack(">I", 15) + bytes(15), *pieces[1:]],
    ],
)
def test_an_answer_that_was_tampered_with_is_refused(change: Callable[[list[bytes]], list[bytes]]) -> None:
    assert not refused(answer())
    assert refused(change(answer()))


def test_no_altered_octet_of_an_answer_is_accepted() -> None:
    raw = b"".join(answer())
    accepted = [
        offset
        for offset in range(len(raw))
        if not refused([raw[:offset] + bytes((raw[offset] ^ (1 << offset % 8),)) + raw[offset + 1 :]])
    ]

    assert accepted == []


def test_one_recipient_cannot_forge_another_ones_answer() -> None:
    mine = opened(number=1)
    forged = AnswerSealer(digest=mine.digest, keyset_digest=DIGESTS[0], secret=mine.secret, random=b"\x07" * 32)

    assert refused([forged.prelude, forged.final(b"forged", b"")])


def test_two_executions_of_one_request_share_no_key() -> None:
    first, second = answer(random=b"\x07" * 32), answer(random=b"\x08" * 32)

    assert first[1] != second[1]
    assert refused([first[0], second[1], *first[2:]])


def test_an_answer_is_locked_onto_one_worker() -> None:
    first, second = answer(0), answer(1)
    opening = opener()
    opening.feed(first[0] + first[1])

    with pytest.raises(UnopenableError):
        opening.feed(second[0] + second[1])
    with pytest.raises(UnopenableError):
        opening.feed(first[2])
    with pytest.raises(UnopenableError):
        opening.finish()


def test_nothing_is_sealed_after_the_end() -> None:
    sealing = sealer()
    sealing.final(b"", b"")

    with pytest.raises(RuntimeError):
        sealing.frame(b"more")
    with pytest.raises(RuntimeError):
        sealing.final(b"", b"")


def test_a_key_tells_nothing_about_itself() -> None:
    fresh = SealedKey.generate()

    assert len(fresh.public_key) == 1216
    assert fresh.public_key.hex()[:16] not in repr(fresh)
    assert "object at" in repr(fresh)


def test_the_vector_opens() -> None:
    """Bytes made once: another implementation opens the request and seals this answer from the same secrets."""
    sealed = parse_request(bytes.fromhex(VECTOR["request_hex"]))
    first = key(1)
    request = open_request(sealed, bytes.fromhex(VECTOR["keyset_digest_hex"]), first)
    sealing = AnswerSealer(
        digest=request.digest, keyset_digest=DIGESTS[0], secret=request.secret, random=bytes.fromhex(VECTOR["rn_hex"])
    )
    raw = sealing.prelude + b"".join(sealing.frame(part.encode()) for part in VECTOR["parts"])
    rolling = sealing.rolling
    raw += sealing.final(b"", VECTOR["trailer"].encode())

    assert first.public_key == bytes.fromhex(VECTOR["public_key_hex"])
    assert request.digest.hex() == VECTOR["digest_hex"]
    assert request.secret.hex() == VECTOR["secret_hex"]
    assert request.body.decode() == VECTOR["body"]
    assert raw.hex() == VECTOR["answer_hex"]
    assert rolling.hex() == VECTOR["rolling_hex"]


def expand(extracted: bytes, info: bytes) -> bytes:
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_the_derivations_are_those_of_the_protocol() -> None:
    """HKDF by hand, so that a change of a label or an order cannot pass unseen."""
    random = counted()
    dek = random(32)
    extracted = hmac.digest(b"cocoon/dek/1", dek, "sha256")
    sealed = parse_request(SENT.raw)
    (length,) = struct.unpack_from(">I", SENT.raw, 4)

    assert sealed.digest == hashlib.sha256(b"cocoon/sealed/1\x00" + SENT.raw[8 : 8 + length]).digest()
    assert sealed.header.kc == expand(extracted, b"kc")
    assert key_tag(API_KEY) == hashlib.sha256(b"cocoon/key/1\x00" + API_KEY.encode()).digest()[:16]
    body = AESGCM(expand(extracted, b"body" + sealed.digest)).decrypt(
        bytes(12), sealed.ciphertext, b"\x00" + sealed.digest + bytes(8) + b"\x01"
    )
    assert body == (struct.pack(">I", len(BODY)) + BODY).ljust(1024, b"\0")

    rn, pieces = b"\x07" * 32, answer()
    salt = rn + sealed.digest + DIGESTS[0]
    aead = AESGCM(expand(hmac.digest(salt, SENT.secrets[DIGESTS[0]], "sha256"), b"resp"))
    rolling = hashlib.sha256(b"cocoon/roll/1\x00" + sealed.digest + rn).digest()
    for number, piece in enumerate(pieces[1:4]):
        aad = b"\x01" + sealed.digest + struct.pack(">Q", number) + b"\x00"
        plain = aead.decrypt(number.to_bytes(12, "big"), piece[4:], aad)
        assert plain == (struct.pack(">I", len(PARTS[number])) + PARTS[number]).ljust(256, b"\0")
        rolling = hashlib.sha256(rolling + piece).digest()
    last = pieces[4][8 + len(TRAILER) + 4 :]
    aad = b"\x01" + sealed.digest + struct.pack(">Q", 3) + b"\x01" + hashlib.sha256(TRAILER).digest()
    assert aead.decrypt((3).to_bytes(12, "big"), last, aad) == bytes(256)
    opening = opener()
    opening.feed(b"".join(pieces))
    assert opening.rolling == rolling
