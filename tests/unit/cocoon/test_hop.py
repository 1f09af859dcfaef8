import struct

import msgspec
import pytest

from cocoon import hop
from cocoon.errors import MalformedError
from cocoon.hop import FrameKind, FrameReader, Trailer
from cocoon.usage import TokenUsage

TRAILER = Trailer(
    usage=TokenUsage(prompt=3, cached=1, completion=2),
    finish_reason="stop",
    receipt_head=b"h" * 124,
    receipt_signature=b"s" * 64,
    receipt_body=b"{}",
)


def test_the_three_kinds_come_back() -> None:
    usage = TokenUsage(prompt=2**32 - 1, cached=7, completion=1)
    reader = FrameReader()

    frames = reader.feed(hop.data_frame(b"abc") + hop.progress_frame(usage) + hop.trailer_frame(TRAILER))

    assert [kind for kind, _ in frames] == [FrameKind.DATA, FrameKind.PROGRESS, FrameKind.TRAILER]
    assert frames[0][1] == b"abc"
    assert hop.decode_progress(frames[1][1]) == usage
    assert hop.decode_trailer(frames[2][1]) == TRAILER
    assert not reader.pending


def test_a_frame_is_kind_then_length_then_payload() -> None:
    assert hop.data_frame(b"ab") == b"\x01\x00\x00\x00\x02ab"
    assert hop.progress_frame(TokenUsage(prompt=1, completion=2)) == b"\x02" + struct.pack(">IIII", 12, 1, 0, 2)


def test_an_empty_frame_is_a_frame() -> None:
    assert FrameReader().feed(hop.data_frame(b"")) == [(FrameKind.DATA, b"")]


def test_a_begun_frame_is_pending() -> None:
    reader = FrameReader()

    assert reader.feed(hop.data_frame(b"abc")[:-1]) == []
    assert reader.pending
    assert reader.feed(b"c") == [(FrameKind.DATA, b"abc")]
    assert not reader.pending


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\x00\x00",
        b"\x04\x00\x00\x00\x01",
        b"HTTP/1.1 200 OK",
        b"data: {}\n\n",
        b"\x01" + struct.pack(">I", hop.FRAME_BYTES_MAX + 1),
        b"\x02" + struct.pack(">I", 13),
        b"\x03" + struct.pack(">I", hop.TRAILER_BYTES_MAX + 1),
    ],
)
def test_garbage_is_refused_by_its_header_without_waiting_for_its_length(garbage: bytes) -> None:
    with pytest.raises(MalformedError):
        FrameReader().feed(hop.data_frame(b"fine") + garbage)


def test_a_frame_of_16_mib_in_small_pieces_takes_linear_time() -> None:
    payload = bytes(16 * 1024 * 1024)
    frame = hop.data_frame(payload)
    reader = FrameReader()
    frames = []
    for at in range(0, len(frame), 4096):
        frames += reader.feed(frame[at : at + 4096])

    assert frames == [(FrameKind.DATA, payload)]


@pytest.mark.parametrize("payload", [b"", bytes(11), bytes(13), struct.pack(">III", 1, 2, 0)])
def test_a_bad_progress_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedError):
        hop.decode_progress(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        msgspec.json.encode(TRAILER)[:-1],
        msgspec.json.encode(TRAILER).replace(b'"cached":1', b'"cached":4'),
        msgspec.json.encode(TRAILER).replace(b'"prompt":3', b'"prompt":-3'),
        msgspec.json.encode(TRAILER).replace(b'"prompt":3', b'"prompt":3.5'),
        msgspec.json.encode(TRAILER).replace(b'"stop"', b'"\xff"'),
        msgspec.json.encode(TRAILER).replace(b'"failure"', b'"failures"'),
    ],
)
def test_a_bad_trailer_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedError):
        hop.decode_trailer(payload)
