"""Bytes that are kept in memory while they are few, else on disk."""

import contextlib
import os
import warnings
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from batchyard.client.planning.spool import Spool


def is_open(status: os.stat_result) -> bool:
    """Whether this process has a certain file open; what else it has open is not looked at."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, as the one of this loop is
            found = descriptor.stat()
            if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
                return True
    return False


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
    spool = Spool(1)
    kept = spool.add(b"x" * 100)
    status = os.fstat(spool._file.fileno())
    spool = None

    assert bytes(kept) == b"x" * 100
    assert is_open(status)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = None  # at once, and not when garbage is collected
    assert not is_open(status)
