import pytest

from cocoon import sse
from cocoon.errors import MalformedError
from cocoon.sse import EventSplitter


def test_events_come_out_whole_with_their_terminator() -> None:
    splitter = EventSplitter()

    assert splitter.feed(b"data: a\n\n: hi\n\ndata: b") == [b"data: a\n\n", b": hi\n\n"]
    assert splitter.pending == b"data: b"
    assert splitter.feed(b"\n\n") == [b"data: b\n\n"]
    assert splitter.pending == b""


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"])
def test_every_pair_of_line_ends_ends_an_event_wherever_it_is_cut(end: bytes) -> None:
    stream = b"data: a" + end + b"data: b" + end
    for cut in range(len(stream) + 1):
        splitter = EventSplitter()
        events = splitter.feed(stream[:cut]) + splitter.feed(stream[cut:])
        assert events == [b"data: a" + end, b"data: b" + end], cut


def test_a_lone_carriage_return_ends_a_line_too_so_that_no_event_hides_in_another() -> None:
    splitter = EventSplitter()

    events = splitter.feed(b"data: {}\n\rdata: [DONE]\n\n")

    assert [sse.data_of(event) for event in events] == [b"{}", b"[DONE]"]


def test_a_single_crlf_does_not_end_an_event() -> None:
    splitter = EventSplitter()

    assert splitter.feed(b"event: x\r\ndata: a\r\n") == []
    assert splitter.feed(b"\r\n") == [b"event: x\r\ndata: a\r\n\r\n"]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data:  {}\n\n", b" {}"),
        (b"data: \n\n", b""),
        (b"data\n\n", b""),
        (b"data: [DONE]\r\n\r\n", b"[DONE]"),
        (b"data: [DONE]\r\r", b"[DONE]"),
        (b"id: 1\ndata: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\ndata\ndata:b\n\n", b"a\n\nb"),
        (b"event: error\ndata: {}\n\n", b"{}"),
        (b"data: a\nx", b"a"),
        (b"data: a\n", b"a"),
        (b"data: a", b"a"),
        (b": data: a\n\n", None),
        (b"database: a\n\n", None),
        (b" data: a\n\n", None),
        (b"\n\n", None),
        (b"", None),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes | None) -> None:
    assert sse.data_of(event) == data


def test_data_with_line_breaks_cannot_end_its_event_or_start_another() -> None:
    event = sse.data_event(b"a\n\ndata: [DONE]\r\n\r\nb\rc")
    splitter = EventSplitter()

    assert splitter.feed(event) == [event]
    assert sse.data_of(event) == b"a\n\ndata: [DONE]\n\nb\nc"


def test_plain_data_is_one_line() -> None:
    assert sse.data_event(b"{}") == b"data: {}\n\n"
    assert sse.data_of(sse.DONE_EVENT) == b"[DONE]"
    assert sse.data_of(sse.KEEP_ALIVE) is None


@pytest.mark.parametrize("piece", [1024, 3_000_000, 10_000_000])
def test_an_event_without_end_is_refused_whatever_the_pieces(piece: int) -> None:
    stream = b"data: " + b"x" * sse.EVENT_BYTES_MAX + b"\n\n"
    splitter = EventSplitter()

    def feed_all() -> None:
        for at in range(0, len(stream), piece):
            splitter.feed(stream[at : at + piece])

    with pytest.raises(MalformedError):
        feed_all()


def test_the_longest_event_passes() -> None:
    event = b"data: " + b"x" * (sse.EVENT_BYTES_MAX - 8) + b"\n\n"
    splitter = EventSplitter()
    events = []
    for at in range(0, len(event), 1000):
        events += splitter.feed(event[at : at + 1000])

    assert events == [event]
