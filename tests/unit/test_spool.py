"""Bytes that are kept in memory while they are few, else on disk."""

import gc
import warnings
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from batchyard.client.planning.spool import Spool


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@given(st.lists(st.tuples(st.binary(max_size=200), st.booleans())), st.sampled_from([1, 300]))
def test_what_is_kept_comes_back_in_any_order(pieces: list[tuple[bytes, bool]], limit: int):
    spool = Spool(limit)  # most of it is on disk
    kept = []
    for data, looks_back in pieces:
        kept.append((spool.add(data), data))
        if looks_back:
            assert bytes(kept[0][0]) == kept[0][1]

    for spooled, data in reversed(kept):
        assert bytes(spooled) == data
        assert len(spooled) == len(data)


def test_the_file_goes_with_the_last_who_can_read_it():
    before = open_files()
    spool = Spool(1)
    kept = spool.add(b"x" * 100)
    spool = None

    assert bytes(kept) == b"x" * 100
    assert open_files() == before + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = None
        gc.collect()
    assert open_files() == before
