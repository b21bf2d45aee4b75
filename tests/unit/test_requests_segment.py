"""The requests segment: cut into shards, written, and read back."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits
from batchyard.dispatch.routes import dispatch_order
from batchyard.errors import StoreError
from batchyard.segments.requests import Records, plan_shards, read_ids, read_records, sizes_of
from batchyard.wire import Entry

if TYPE_CHECKING:
    from batchyard.model import ShardPlan


def make(*params: bytes) -> list[Entry]:
    return [Entry(f"id-{n}", msgspec.Raw(raw)) for n, raw in enumerate(params)]


def written(entries: list[Entry], order: list[int]) -> bytes:
    sizes = sizes_of(entries)
    shards = plan_shards(entries, sizes, ["p"] * len(entries), order)
    return b"".join(Records(entries, sizes, order, shards).chunks())


def planned(entries: list[Entry], pools: list[str]) -> list[ShardPlan]:
    return plan_shards(entries, sizes_of(entries), pools, dispatch_order(pools))


def test_a_record_is_id_length_check_and_params() -> None:
    checks = zlib.crc32(b"id-1 10"), zlib.crc32(b"id-0 2")
    assert written(make(b"{}", b'{\n"a":\r\n1}'), [1, 0]) == (
        b'id-1 10 %08x\n{\n"a":\r\n1}\nid-0 2 %08x\n{}\n' % checks
    )


params_bytes = st.binary(max_size=40) | st.sampled_from(
    [b"{}", b"{\n}", b"\n\n\n", b"x 5\n", b"id-1 3\nabc\n", '{"ü":"文"}'.encode()]
)


@given(st.lists(st.tuples(params_bytes, st.sampled_from("cab")), min_size=1, max_size=40))
def test_every_shard_reads_back_the_requests_of_its_pool_in_order(
    requests: list[tuple[bytes, str]],
) -> None:
    entries = make(*(params for params, _ in requests))
    pools = [pool for _, pool in requests]
    order = dispatch_order(pools)
    data = written(entries, order)
    shards = planned(entries, pools)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert sum(shard.length for shard in shards) == len(data)
    read: list[tuple[str, bytes]] = []
    for shard in shards:
        cut = data[shard.offset : shard.offset + shard.length]
        part = list(read_records(cut))
        assert len(part) == shard.requests
        assert list(read_records(cut, is_proven=True)) == part
        for custom_id, params in part:
            index = int(custom_id.removeprefix("id-"))
            assert (params, pools[index]) == (requests[index][0], shard.pool)
        read += part
    assert [custom_id for custom_id, _ in read] == [f"id-{index}" for index in order]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (1, [1]),
        (limits.SHARD_REQUESTS, [limits.SHARD_REQUESTS]),
        (limits.SHARD_REQUESTS + 1, [limits.SHARD_REQUESTS, 1]),
        (3 * limits.SHARD_REQUESTS, [limits.SHARD_REQUESTS] * 3),
    ],
)
def test_a_shard_has_at_most_its_number_of_requests(count: int, sizes: list[int]) -> None:
    shards = planned(make(*[b"{}"] * count), ["p"] * count)
    assert [shard.requests for shard in shards] == sizes


def test_a_shard_is_cut_by_bytes_too() -> None:
    half = limits.SHARD_BYTES_MAX // 2
    shards = planned(make(*[b"x" * (half - 100)] * 5), ["p"] * 5)
    assert [shard.requests for shard in shards] == [2, 2, 1]
    assert all(shard.length <= limits.SHARD_BYTES_MAX for shard in shards)


def test_a_request_larger_than_a_shard_gets_one_of_its_own() -> None:
    large = b"x" * (limits.SHARD_BYTES_MAX + 1)
    shards = planned(make(b"{}", large, b"{}"), ["p"] * 3)
    assert [shard.requests for shard in shards] == [1, 1, 1]


def test_a_shard_never_crosses_pools_and_a_pool_is_in_one_piece() -> None:
    pools = ["b", "a"] * 700
    shards = planned(make(*[b"{}"] * 1_400), pools)
    assert [(shard.pool, shard.requests) for shard in shards] == [
        ("a", 500),
        ("a", 200),
        ("b", 500),
        ("b", 200),
    ]


@pytest.mark.parametrize(
    ("requests", "size"),
    [
        (limits.BATCH_REQUESTS_MAX, 2),
        (limits.BATCH_REQUESTS_MAX, limits.BATCH_BODY_BYTES_MAX // limits.BATCH_REQUESTS_MAX),
        (127, limits.BATCH_BODY_BYTES_MAX // 127),
        (3, limits.BATCH_BODY_BYTES_MAX // 3),
    ],
)
def test_no_legal_batch_has_too_many_shards(requests: int, size: int) -> None:
    raw = msgspec.Raw(b"x" * size)  # one object for all: the sum counts, not the memory
    entries = [Entry(f"{n}", raw) for n in range(requests)]
    pools = [f"p{n % limits.BATCH_POOLS_MAX}" for n in range(requests)]
    assert len(planned(entries, pools)) <= limits.BATCH_SHARDS_MAX


DATA = written(make(b"{}", b'{"a":1}'), [0, 1])


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"id 5",
        b"id x\n{}\n",
        b"id\n{}\n",
        b"id 2\n{}",
        b"id 2\n{}x",
        b"id 3\n{}\n",
        b"id 2 0a1b2c3d\n{}\n",
        b"id 2 \n{}x",
        b"id -2\n{}\n",
        DATA + b"\n",
        DATA + b"\0" * 30,
        b"x" * 200 + b" 1\n1\n",
        b" " * 100_000,
    ],
)
def test_a_damaged_segment_is_an_error_with_its_place(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"damaged \d+ bytes into the shard"):
        list(read_records(data))


@pytest.mark.parametrize(
    "data", [b"x", b"id 5", b"id x\n{}\n", b"id 2\n{}", b"id 3\n{}\n", b"id -2\n{}\n", DATA + b"\n"]
)
def test_what_is_proven_and_no_segment_is_an_error_too(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"damaged \d+ bytes into the shard"):
        list(read_records(data, is_proven=True))


def test_a_segment_cut_anywhere_is_an_error_or_ends_between_records() -> None:
    borders = {0, len(b"id-0 2 12345678\n{}\n"), len(DATA)}
    for cut in range(len(DATA) + 1):
        if cut in borders:
            list(read_records(DATA[:cut]))
        else:
            with pytest.raises(StoreError):
                list(read_records(DATA[:cut]))


def test_records_of_files_from_before_there_was_a_check_can_be_read() -> None:
    assert list(read_records(b'id 2\n{}\nother 7\n{"a":1}\n')) == [
        ("id", b"{}"),
        ("other", b'{"a":1}'),
    ]


def test_the_ids_of_damaged_requests_are_right_or_refused() -> None:
    """Any one bit may flip: the ids are those that were written, or an error."""
    for place in range(8 * len(DATA)):
        damaged = bytearray(DATA)
        damaged[place // 8] ^= 1 << place % 8
        try:
            found = read_ids(bytes(damaged))
        except StoreError:
            continue
        assert found == ["id-0", "id-1"]
    assert read_ids(DATA.replace(b'"a"', b'"b"')) == ["id-0", "id-1"]


def test_ids_without_a_check_are_not_trusted() -> None:
    with pytest.raises(StoreError):
        read_ids(b"id 2\n{}\n")
