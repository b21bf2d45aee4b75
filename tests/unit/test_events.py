"""Server-sent events: what the standard calls one, however its bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.upstream.events import EventParser, StreamTooLarge


def events(*chunks: bytes, bytes_max: int = 10_000) -> list[tuple[bytes, bytes]]:
    parser = EventParser(bytes_max)
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data:  a\n\n", [(b"", b" a")]),
        (b"data: a\r\n\r\n", [(b"", b"a")]),
        (b"data: a\r\r", [(b"", b"a")]),
        (b"data: a\r\n\n", [(b"", b"a")]),
        (b"event: x\ndata: a\n\n", [(b"x", b"a")]),
        (b"data: a\nevent: x\n\n", [(b"x", b"a")]),
        (b"event: x\nevent: y\ndata: a\n\ndata: b\n\n", [(b"y", b"a"), (b"", b"b")]),
        (b"data: a\ndata: b\ndata\ndata:\n\n", [(b"", b"a\nb\n\n")]),
        (b": comment\n:\ndata: a\n: another\n\n", [(b"", b"a")]),
        (b"id: 7\nretry: 100\nother: x\ndata: a\n\n", [(b"", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b"data: a:b: c\n\n", [(b"", b"a:b: c")]),
        (b" data: a\n\n", []),
        (b"Data: a\n\n", []),
        (b"event: x\n\ndata: a\n\n", [(b"", b"a")]),  # one without data is none, nor its name kept
        (b"\n\n\n\ndata: a\n\n\n\n", [(b"", b"a")]),
        (b"data: a\n", []),  # its blank line never came
        (b"data: a\n\ndata: b", [(b"", b"a")]),
        (b"data: \xe2\x80\xa8\x0b\x0c\x1c\x85\n\n", [(b"", b"\xe2\x80\xa8\x0b\x0c\x1c\x85")]),
        (b"", []),
    ],
)
def test_a_stream_is_read_as_the_standard_says(
    stream: bytes, expected: list[tuple[bytes, bytes]]
) -> None:
    assert events(stream) == expected
    assert events(*(bytes([byte]) for byte in stream)) == expected
    for at in range(len(stream)):
        assert events(stream[:at], b"", stream[at:]) == expected


@given(
    lines=st.lists(
        st.tuples(
            st.sampled_from([b"", b"data: 1", b"data:", b"event: e", b": c", b"id: 1", b"data"]),
            st.sampled_from([b"\n", b"\r\n", b"\r"]),
        )
    ),
    cuts=st.lists(st.integers(0, 200)),
)
def test_where_a_stream_is_cut_does_not_matter(
    lines: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(text + end for text, end in lines)
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert events(*pieces) == events(stream)


def test_an_event_of_the_largest_size_is_read_and_one_byte_more_is_not() -> None:
    assert events(b"data: 123456789\n\n", bytes_max=15) == [(b"", b"123456789")]
    with pytest.raises(StreamTooLarge, match="one event over 15 bytes"):
        events(b"data: 123456789012345\n\n", bytes_max=15)
    with pytest.raises(StreamTooLarge):
        events(b"data: 1234567\n", b"data: 1234567\n", bytes_max=15)


@pytest.mark.parametrize("piece", [b"x", b"data: " + b"x" * 50, b"\xff" * 7])
def test_a_line_without_end_is_not_gathered_for_ever(piece: bytes) -> None:
    parser = EventParser(1_000)
    fed = itertools.chain.from_iterable(map(parser.feed, itertools.repeat(piece, 2_000)))
    with pytest.raises(StreamTooLarge):
        list(fed)
    assert len(parser._line) <= 1_000 + len(piece)


def test_many_events_and_comments_together_may_be_larger_than_one() -> None:
    assert len(events(*[b"data: 12345\n\n: comment\n"] * 1_000, bytes_max=100)) == 1_000
