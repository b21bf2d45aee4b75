"""A requests segment that is read in pieces holds the same records as one that is read whole."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits
from batchyard.errors import DamagedError
from batchyard.segments.requests import Records, plan_shards, read_records, sizes_of, stream_records
from batchyard.wire import Entry


def segment(sizes: list[int]) -> bytes:
    entries = [Entry(f"r{n}", msgspec.Raw(b"x\n" * size)) for n, size in enumerate(sizes)]
    lengths, order = sizes_of(entries), list(range(len(entries)))
    shards = plan_shards(entries, lengths, ["p"] * len(entries), order)
    return b"".join(Records(entries, lengths, order, shards).chunks())


def streamed(data: bytes) -> list[tuple[str, bytes]]:
    pieces = stream_records(lambda at, length: data[at : at + length], len(data))
    return [record for records in pieces for record in records]


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=30))
def test_whatever_the_sizes_the_records_are_the_same(sizes: list[int]) -> None:
    data = segment(sizes)
    assert streamed(data) == list(read_records(data))


def test_a_record_larger_than_a_piece_is_read_whole() -> None:
    data = segment([5, 3 * limits.MIB, 7])
    assert [len(params) for _, params in streamed(data)] == [10, 6 * limits.MIB, 14]


@pytest.mark.parametrize("at", [1, 30, 60])
def test_what_is_cut_is_damaged(at: int) -> None:
    data = segment([20, 20])
    with pytest.raises(DamagedError):
        streamed(data[:-at])


def test_what_is_no_record_is_damaged() -> None:
    for data in (b"no record", b"r1 x\n{}\n", b"x" * 3_000_000, segment([5])[:-1] + b"!"):
        with pytest.raises(DamagedError):
            streamed(data)
