"""Frozen results that the disk has damaged: set aside; what is proven whole of them is kept."""

from __future__ import annotations

import logging
import os
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import checksum, result, segments
from batchyard.dispatch import adopt as adopting
from batchyard.errors import DiskFull, StoreError
from batchyard.model import Extent
from batchyard.segments.directory import DirectorySegments
from store.test_adopt import BATCH, BYTES, LINES, WHOLE, adopt, line, make_claim, name, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from batchyard.dispatch.adopt import Adopted
    from batchyard.segments import Segments

BLOCK = 200  # more than one line, and less than two


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Let a checksum stand for a few bytes: results of several mebibytes, quickly."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (checksum, adopting):
            patch.setattr(module, "BLOCK_BYTES", BLOCK)
        yield


def extent_of(segment: str, data: bytes) -> Extent:
    return Extent(segment, len(data), checksum.blocks_of([data]))


class _Disk:
    """Segments in a dictionary that can be damaged."""

    def __init__(self, data: dict[str, bytes]) -> None:
        self.data = dict(data)
        self.synced: set[str] = set()
        self.is_full = False

    def names(self, prefix: str) -> list[str]:
        return sorted(n for n in self.data if n.startswith(prefix))

    def size(self, segment: str) -> int:
        return len(self.data[segment])

    def read(self, segment: str, offset: int, length: int) -> bytes:
        part = self.data.get(segment, b"")[offset : offset + length]
        if len(part) != length:
            raise adopting.DamagedError(f"segment {segment} is shorter")
        return part

    def sync(self, segment: str) -> None:
        self.synced.add(segment)

    def appender(self, segment: str) -> _Appender:
        assert segment not in self.data
        return _Appender(self, segment)


class _Appender:
    def __init__(self, disk: _Disk, segment: str) -> None:
        self.name = segment
        self._disk = disk

    def append(self, chunks: Sequence[bytes]) -> None:
        if self._disk.is_full:
            raise DiskFull("no room")
        self._disk.data[self.name] = b"".join(chunks)

    def sync(self) -> None:
        self._disk.sync(self.name)

    def extents(self) -> tuple[Extent, ...]:
        assert self.name in self._disk.synced
        return (extent_of(self.name, self._disk.data[self.name]),)

    def close(self) -> None:
        pass

    def remove(self) -> None:
        self._disk.data.pop(self.name, None)


def lines_of(disk: _Disk, adopted: Adopted) -> list[bytes]:
    """Return the lines that are part of a result."""
    data = b"".join(disk.data[e.segment][: e.length] for e in adopted.extents if e.length)
    return data.splitlines(keepends=True)


def rescued(data: bytes, damaged: bytes | None, frozen: Extent) -> tuple[_Disk, Adopted]:
    disk = _Disk({} if damaged is None else {name(1): damaged})
    return disk, adopt(disk, make_claim(frozen))  # type: ignore[arg-type]


def provable(start: int, end: int) -> list[bytes]:
    """Return the lines of which no byte is in a block that these bytes touch."""
    first, last = start // BLOCK * BLOCK, -(-end // BLOCK) * BLOCK
    found, at = [], 0
    for each in BYTES:
        if at + len(each) <= first or at > last:
            found.append(each)
        at += len(each)
    return found


def test_the_fixture_has_several_blocks_and_lines_across_their_borders() -> None:
    assert len(WHOLE) > 2 * BLOCK
    assert len(provable(0, 1)) >= 2
    assert len(provable(len(WHOLE) - 1, len(WHOLE))) >= 1


def test_whichever_bit_flips_only_lines_that_share_its_block_are_lost_and_none_is_wrong() -> None:
    frozen = extent_of(name(1), WHOLE)
    for place in range(len(WHOLE)):
        flipped = WHOLE[:place] + bytes([WHOLE[place] ^ 1 << place % 8]) + WHOLE[place + 1 :]
        disk, adopted = rescued(WHOLE, flipped, frozen)
        kept = lines_of(disk, adopted)
        assert set(kept) <= set(BYTES), f"a wrong byte was taken over: {place}"
        assert len(kept) == len(set(kept)) == len(adopted.covered)
        assert set(provable(place, place + 1)) <= set(kept), f"a good line was lost: {place}"
        assert adopted.extents[0] == Extent(name(1), 0)


def test_wherever_a_file_is_cut_the_whole_blocks_before_are_kept() -> None:
    frozen = extent_of(name(1), WHOLE)
    for cut in range(len(WHOLE)):
        disk, adopted = rescued(WHOLE, WHOLE[:cut], frozen)
        kept = lines_of(disk, adopted)
        assert set(provable(cut, len(WHOLE))) <= set(kept) <= set(BYTES)
        assert len(kept) == len(adopted.covered)


@given(st.data())
def test_any_damage_to_any_extents_adopts_no_wrong_byte_and_no_id_twice(
    data: st.DataObject,
) -> None:
    parts = {name(1): BYTES[:2], name(2): BYTES[2:4], name(3): BYTES[4:]}
    whole = {segment: b"".join(lines) for segment, lines in parts.items()}
    named = data.draw(st.sampled_from([1, 2, 3]))  # so many are frozen, the others only lie there
    frozen = [extent_of(segment, whole[segment]) for segment in list(whole)[:named]]
    disk = _Disk(whole)
    for extent in frozen:
        bad = bytearray(whole[extent.segment])
        for place in data.draw(st.lists(st.integers(0, len(bad) - 1), max_size=3)):
            bad[place] ^= data.draw(st.integers(1, 255))
        disk.data[extent.segment] = bytes(bad[: data.draw(st.integers(0, 2 * len(bad)))])
    adopted = adopt(disk, make_claim(*frozen))  # type: ignore[arg-type]
    kept = lines_of(disk, adopted)
    assert set(kept) <= set(BYTES)
    assert len(kept) == len(set(kept))
    assert {result.read_line(each)[0] for each in kept} == adopted.covered
    # A crash before the row knew: done again, the same. And then from the new row.
    again = adopt(disk, make_claim(*frozen))  # type: ignore[arg-type]
    assert sorted(lines_of(disk, again)) == sorted(kept)
    after = adopt(disk, make_claim(*again.extents))  # type: ignore[arg-type]
    assert sorted(lines_of(disk, after)) == sorted(kept)
    assert after.tally == adopted.tally


def test_what_is_set_aside_is_never_taken_again_though_it_parses(store: Segments) -> None:
    """Its checksums are gone with its length: from then on nobody could tell a wrong byte."""
    write(store, name(1), BYTES)
    wrong = Extent(name(1), len(WHOLE), tuple(crc ^ 1 for crc in checksum.blocks_of([WHOLE])))
    adopted = adopt(store, make_claim(wrong))
    assert (adopted.extents, adopted.covered) == ([Extent(name(1), 0)], set())
    again = adopt(store, make_claim(*adopted.extents))
    assert (again.extents, again.covered) == (adopted.extents, set())


def test_lines_are_copied_to_a_segment_of_this_attempt_and_are_there_before_it_is_named(
    store: Segments, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, name(1), BYTES[:3])
    blocks = checksum.blocks_of([b"".join(BYTES[:3])])
    frozen = Extent(name(1), sum(map(len, BYTES[:3])), (*blocks[:-1], blocks[-1] ^ 1))
    with caplog.at_level(logging.ERROR):
        adopted = adopt(store, make_claim(frozen))
    aside, copy = adopted.extents
    assert aside == Extent(name(1), 0)
    assert copy.segment.startswith(f"{segments.results_prefix(BATCH, 0)}9.")
    data = store.read(copy.segment, 0, copy.length)
    assert data == BYTES[0] + BYTES[1], "the third shares the damaged block"
    assert copy.blocks == checksum.blocks_of([data])
    assert f"damaged segment {name(1)}" in caplog.text
    assert adopted.damage is not None
    assert "damaged on the disk: 2 of them could be kept" in adopted.damage


def test_a_segment_that_is_gone_costs_its_own_lines_only(store: Segments) -> None:
    write(store, name(2), BYTES[:2])
    good = extent_of(name(2), b"".join(BYTES[:2]))
    adopted = adopt(store, make_claim(extent_of(name(1), BYTES[2]), good))
    assert adopted.extents == [Extent(name(1), 0), good]
    assert adopted.covered == {"a", "b"}


def test_results_of_others_may_take_the_place_of_what_is_lost(store: Segments) -> None:
    """A segment was left alone because it repeated an id: now it is the only one that has it."""
    write(store, name(2), BYTES[:2])
    adopted = adopt(store, make_claim(extent_of(name(1), BYTES[0])))
    assert adopted.covered == {"a", "b"}


def test_of_files_from_before_there_were_checksums_lines_that_parse_are_kept() -> None:
    data = BYTES[0] + b"x" * 50 + b"\n" + BYTES[2] + BYTES[0]
    disk, adopted = rescued(data, data, Extent(name(1), len(data)))
    assert lines_of(disk, adopted) == [BYTES[0], BYTES[2]]
    assert adopted.covered == {LINES[0][0], LINES[2][0]}


def test_a_stranger_with_a_valid_checksum_is_left_out() -> None:
    data = BYTES[0] + line("stranger") + BYTES[1]
    disk, adopted = rescued(data, data, extent_of(name(1), data))
    assert lines_of(disk, adopted) == [BYTES[0], BYTES[1]]


def test_a_full_disk_can_be_tried_again() -> None:
    frozen = extent_of(name(1), WHOLE)
    disk = _Disk({name(1): WHOLE[:-1]})
    disk.is_full = True
    with pytest.raises(DiskFull):
        adopt(disk, make_claim(frozen))  # type: ignore[arg-type]
    disk.is_full = False
    assert adopt(disk, make_claim(frozen)).covered  # type: ignore[arg-type]


def test_bytes_that_the_disk_cannot_give_are_damaged_and_other_failures_are_the_stores(
    tmp_path: Path,
) -> None:
    store = DirectorySegments(tmp_path / "segments")
    write(store, name(1), BYTES[:1])
    path = tmp_path / "segments" / name(1)
    path.unlink()
    os.mkfifo(path)  # a read at an offset is an error here, of another kind than a bad sector
    write_end = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(StoreError) as failed:
            adopt(store, make_claim(extent_of(name(1), BYTES[0])))
        assert type(failed.value) is StoreError
    finally:
        os.close(write_end)


def test_old_extents_keep_their_bytes(store: Segments) -> None:
    write(store, name(1), BYTES)
    whole = Extent(name(1), len(WHOLE), checksum.blocks_of([WHOLE]))
    adopted = adopt(store, make_claim(whole))
    assert adopted.extents == [whole]
    assert adopted.covered == {custom_id for custom_id, _ in LINES}
    assert zlib.crc32(WHOLE[:BLOCK]) == whole.blocks[0]
