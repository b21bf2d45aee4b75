from __future__ import annotations

import zlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batchyard.checksum import BLOCK_BYTES, Checksums, blocks_of, is_block

WHOLE = bytes(range(256)) * (BLOCK_BYTES // 256 * 2 + 3)
BLOCKS = tuple(
    zlib.crc32(WHOLE[start : start + BLOCK_BYTES]) for start in range(0, len(WHOLE), BLOCK_BYTES)
)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=6))
def test_checksums_do_not_depend_on_how_the_bytes_come(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(WHOLE)]
    pieces = [WHOLE[start:end] for start, end in pairwise(borders)]
    assert blocks_of(pieces) == BLOCKS
    growing = Checksums()
    seen = 0
    for piece in pieces:
        growing.add(piece)
        seen += len(piece)
        assert growing.blocks == blocks_of([WHOLE[:seen]])


def test_no_bytes_have_no_checksum_and_whole_blocks_have_one_each() -> None:
    assert blocks_of([]) == ()
    assert len(blocks_of([WHOLE[:BLOCK_BYTES]])) == 1
    assert len(blocks_of([WHOLE[: BLOCK_BYTES + 1]])) == 2


def test_a_block_is_known_by_its_checksum() -> None:
    first = WHOLE[:BLOCK_BYTES]
    assert is_block(first, 0, BLOCKS)
    assert not is_block(first[:-1] + b"?", 0, BLOCKS)
    assert not is_block(first, 3, BLOCKS[:2])
    assert is_block(b"anything", 7, ()), "old files have no checksums"
