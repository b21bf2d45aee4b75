"""The parts of the check that read bytes, in whatever pieces they come and however damaged."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits, result, segments, wire
from batchyard.model import Extent
from batchyard.result import read_message
from batchyard.segments.requests import Records, plan_shards, read_records, sizes_of
from batchyard.verify.batch import BatchCheck
from batchyard.verify.files import BatchFiles
from batchyard.verify.findings import Finding, Reporter
from batchyard.verify.requests import BrokenRecord, Record, params_problem
from batchyard.verify.requests import records as parse
from batchyard.verify.results import LINE_BYTES_MAX, Covered, attempt_of, lines
from batchyard.verify.rows import BatchRow
from store.yards import message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IDS = st.lists(st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True), min_size=1, max_size=8)
TEXTS = st.lists(st.text(max_size=300), min_size=8, max_size=8)
CUTS = st.lists(st.integers(1, 400), min_size=1, max_size=40)


def segment_of(ids: list[str], texts: list[str]) -> bytes:
    """Return a requests segment as the server writes it."""
    unique = list(dict.fromkeys(ids))
    requests = [
        {"custom_id": custom_id, "params": {"text": text}}
        for custom_id, text in zip(unique, texts, strict=False)
    ]
    entries = wire.split(wire.encode({"requests": requests}))
    sizes, order = sizes_of(entries), range(len(entries))
    shards = plan_shards(entries, sizes, ["p"] * len(entries), order)
    return b"".join(Records(entries, sizes, order, shards).chunks())


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = number = 0
    while at < len(data):
        size = cuts[number % len(cuts)]
        yield data[at : at + size]
        at += size
        number += 1


@given(IDS, TEXTS, CUTS)
def test_requests_are_read_as_the_worker_reads_them_in_any_pieces(
    ids: list[str], texts: list[str], cuts: list[int]
) -> None:
    data = segment_of(ids, texts)
    found = list(parse(pieces(data, cuts), len(data)))
    assert [(r.custom_id, r.params) for r in found] == list(read_records(data))
    for record in found:
        assert data[record.offset :].startswith(f"{record.custom_id} ".encode())
        assert params_problem(record.params) is None


@given(IDS, TEXTS, CUTS, st.integers(0, 5_000), st.binary(max_size=30), st.integers(0, 30))
def test_damaged_requests_are_told_with_their_place(
    ids: list[str], texts: list[str], cuts: list[int], at: int, new: bytes, old: int
) -> None:
    data = segment_of(ids, texts)
    at %= len(data) + 1
    damaged = data[:at] + new + data[at + old :]
    before = [r for r in parse([data], len(data)) if r.offset + len(r.params) < at]
    found: list[Record] = []
    offset = len(damaged)
    try:
        found.extend(parse(pieces(damaged, cuts), len(damaged)))
    except BrokenRecord as error:
        offset = error.offset
    assert 0 <= offset <= len(damaged)
    assert offset >= (found[-1].offset if found else 0)
    intact = [r for r in before if r.offset + len(r.custom_id) + 70 + len(r.params) < at]
    assert found[: len(intact)] == intact


@pytest.mark.parametrize(
    "params",
    [
        b"[]",
        b"{",
        b"",
        b'{"a":1,}',
        b'{"a":"\xff"}',
        b'{"a":nan}',
        b"{} {}",
        b'{"a":' + b"[" * 9_999,
    ],
)
def test_params_that_are_no_json_object_are_a_problem(params: bytes) -> None:
    assert params_problem(params)


@given(st.binary(max_size=2_000), CUTS)
def test_lines_are_the_same_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    found = list(lines(pieces(data, cuts)))
    *whole, rest = data.split(b"\n")
    assert [line.data for line in found] == whole + ([rest] if rest else [])
    assert [line.whole for line in found] == [True] * len(whole) + ([False] if rest else [])
    for line in found:
        assert data[line.offset :].startswith(line.data)


def test_a_line_longer_than_any_may_be_is_not_held() -> None:
    block = b"x" * limits.MIB
    blocks = [b"short\n", *[block] * (LINE_BYTES_MAX // limits.MIB + 9), b"\nlast\n"]
    first, long, last = lines(blocks)
    assert (first.data, first.whole) == (b"short", True)
    assert not long.whole
    assert len(long.data) <= LINE_BYTES_MAX
    assert (last.data, last.whole, last.offset) == (b"last", True, sum(map(len, blocks)) - 5)


@pytest.mark.parametrize(
    "name", ["0.1", "0.0.ffffffffffffffff", "01.1.ffffffffffffffff", "0.1.FFFFFFFFFFFFFFFF", "x"]
)
def test_only_names_that_an_attempt_makes_are_result_segments(name: str) -> None:
    assert attempt_of(name) is None
    assert attempt_of("12.3.0123456789abcdef") == (12, 3)


# Checksums of extents ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Summed(Extent):
    """An extent with the CRC-32 of each MiB."""

    blocks: tuple[int, ...] = ()


BATCH = BatchRow(
    seq=1,
    id="msgbatch_x",
    workspace="w",
    requests=1,
    version="v",
    betas="",
    billing="batch",
    created_us=0,
    expires_us=limits.PROCESSING_WINDOW_US,
    cancel_us=None,
    ended_us=1,
    archived_us=None,
    tokens="[0,0,0,0]",
    succeeded=0,
    errored=0,
    canceled=0,
    expired=0,
)
SEGMENT = f"{segments.batch_prefix(BATCH.id)}/r/0.1.{'a' * 16}"


@pytest.fixture(scope="module")
def whole() -> bytes:
    """Between two and three MiB of result lines."""
    body = [result.succeeded(f"r{n}", read_message(message(f"r{n}")).body) for n in range(11_000)]
    return b"".join(body)


def findings_of(root: Path, data: bytes, length: int, checksums: tuple[int, ...]) -> list[Finding]:
    path = root / SEGMENT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    found: list[Finding] = []
    check = BatchCheck(root, BATCH, BatchFiles(), Reporter(found.append))
    check._extent(Summed(SEGMENT, length, checksums), Covered(None), None)
    return found


def checksums_of(data: bytes) -> tuple[int, ...]:
    starts = range(0, len(data), limits.MIB)
    return tuple(zlib.crc32(data[at : at + limits.MIB]) for at in starts)


def test_a_changed_letter_inside_an_answer_is_found_by_its_checksum(
    whole: bytes, tmp_path: Path
) -> None:
    sums = checksums_of(whole)
    assert len(sums) == 3
    assert findings_of(tmp_path, whole + b"late bytes", len(whole), sums) == []
    at = whole.index(b"answer", limits.MIB + 5)
    damaged = whole[:at] + b"b" + whole[at + 1 :]
    assert findings_of(tmp_path, damaged, len(whole), ()) == [], "older extents have none"
    (found,) = findings_of(tmp_path, damaged, len(whole), sums)
    assert (found.rule, found.segment, found.offset) == ("result-checksum", SEGMENT, limits.MIB)


def test_an_extent_with_too_few_checksums_is_told(whole: bytes, tmp_path: Path) -> None:
    (found,) = findings_of(tmp_path, whole, len(whole), checksums_of(whole)[:2])
    assert (found.rule, found.text) == ("result-checksum", "2 checksums, there must be 3")


def test_a_short_segment_does_not_match_its_last_checksum(whole: bytes, tmp_path: Path) -> None:
    end = whole.rindex(b"\n", 0, -1) + 1
    found = findings_of(tmp_path, whole[:end], len(whole), checksums_of(whole))
    assert [f.rule for f in found] == ["extent-short", "result-checksum"]


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_what_they_must(data: bytes) -> None:
    with suppress(BrokenRecord):
        list(parse([data] if data else [], len(data)))
    list(lines([data]))
    params_problem(data)
