from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.server.byte_range import Span, read

LENGTH = 100


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-9", Span(0, 10)),
        ("bytes=90-", Span(90, 100)),
        ("bytes=-10", Span(90, 100)),
        ("bytes=-1000", Span(0, 100)),
        ("bytes=0-1000", Span(0, 100)),
        ("bytes=99-99", Span(99, 100)),
        ("bytes= 5-6 ", Span(5, 7)),
    ],
)
def test_one_range_is_read(header: str, span: Span) -> None:
    assert read(header, LENGTH) == span


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_outside_the_body_is_empty(header: str) -> None:
    span = read(header, LENGTH)
    assert span is not None
    assert span.is_empty


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "lines=0-9", "bytes=9-0",
     "bytes=0-9,20-29", "bytes=+1-2", "bytes=1_0-20", "bytes=\u0661-5"],
)  # fmt: skip
def test_what_is_no_single_byte_range_is_ignored(header: str | None) -> None:
    assert read(header, LENGTH) is None


@given(st.text(max_size=40), st.integers(0, 10**12))
def test_a_span_lies_within_the_body(header: str, length: int) -> None:
    for text in (header, f"bytes={header}"):
        span = read(text, length)
        if span is not None:
            assert span.start >= 0
            assert span.end <= length
