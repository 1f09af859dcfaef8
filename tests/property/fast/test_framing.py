"""Wherever the network cuts a stream, the same frames and the same events come out."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cocoon import hop
from cocoon.errors import MalformedError
from cocoon.hop import FrameReader
from cocoon.sse import EventSplitter, data_of
from cocoon.usage import TokenUsage


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    points = [0, *sorted(point % (len(stream) + 1) for point in at), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(points)]


cuts = st.lists(st.integers(0, 10_000), max_size=30)
usages = st.builds(
    lambda prompt, share, completion: TokenUsage(prompt=prompt, cached=prompt * share // 100, completion=completion),
    st.integers(0, 2**32 - 1),
    st.integers(0, 100),
    st.integers(0, 2**32 - 1),
)
frames = st.lists(st.binary(max_size=300).map(hop.data_frame) | usages.map(hop.progress_frame), max_size=12)


@given(frames, cuts)
def test_any_chunking_gives_the_same_frames(pieces: list[bytes], at: list[int]) -> None:
    stream = b"".join(pieces)
    reader = FrameReader()
    found = [frame for chunk in cut(stream, at) for frame in reader.feed(chunk)]

    assert [bytes([kind]) + len(payload).to_bytes(4, "big") + payload for kind, payload in found] == pieces
    assert not reader.pending


@given(st.binary(max_size=400), cuts)
def test_garbage_is_refused_or_waited_for_the_same_way_in_any_chunking(stream: bytes, at: list[int]) -> None:
    def outcome(chunks: list[bytes]) -> tuple[bool, bool]:
        reader = FrameReader()
        try:
            for chunk in chunks:
                reader.feed(chunk)
        except MalformedError:
            return True, False
        return False, reader.pending

    assert outcome(cut(stream, at)) == outcome([stream])


@given(usages)
def test_progress_comes_back(usage: TokenUsage) -> None:
    assert hop.decode_progress(hop.progress_frame(usage)[5:]) == usage


# Few distinct bytes make line ends meet in every way.
sse_bytes = st.text(alphabet="\r\nad: ", max_size=60).map(str.encode)


@given(sse_bytes, cuts)
def test_any_chunking_gives_the_same_events(stream: bytes, at: list[int]) -> None:
    whole = EventSplitter()
    events = whole.feed(stream)
    pieces = EventSplitter()
    found = [event for chunk in cut(stream, at) for event in pieces.feed(chunk)]

    assert found == events
    assert pieces.pending == whole.pending
    assert b"".join(events) + whole.pending == stream


@given(sse_bytes)
def test_cutting_agrees_with_the_specifications_line_by_line_reading(stream: bytes) -> None:
    splitter = EventSplitter()
    ours = [data for event in splitter.feed(stream) if (data := data_of(event)) is not None]

    assert ours == dispatched(stream, done=len(stream) - len(splitter.pending))


def dispatched(stream: bytes, *, done: int) -> list[bytes]:
    """The data of each event that WHATWG HTML §9.2.6 would dispatch for `stream[:done]`."""
    lines = stream[:done].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines[:-1]:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line == b"data":
            data.append(b"")
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return events
