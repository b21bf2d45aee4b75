from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.errors import ConfigError, Overloaded
from batchyard.limits import MIB
from batchyard.server import place
from batchyard.server.disk import COPIES, Disk

if TYPE_CHECKING:
    from pathlib import Path


class Free:
    """A disk of blocks of 1 KiB, of which so many bytes are free."""

    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self, _: Path) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=self.free // 1_024, f_frsize=1_024)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Have 100 MiB free."""
    told = Free(100 * MIB)
    monkeypatch.setattr("os.statvfs", told)
    return told


@pytest.fixture
def disk(free: Free, tmp_path: Path) -> Disk:
    """Return a disk with 40 MiB above its reserve of 60."""
    assert free.free == 100 * MIB
    return Disk(tmp_path, 60 * MIB)


def fits(disk: Disk, mib: int, **kind: Any) -> bool:
    """Return whether a body would be taken in."""
    try:
        with disk.room(mib * MIB, **kind):
            return True
    except Overloaded:
        return False


def test_a_batch_that_would_touch_the_reserve_is_refused(disk: Disk) -> None:
    assert fits(disk, 40 // COPIES)
    assert not fits(disk, 40 // COPIES + 1)
    assert fits(disk, 40, copies=1)
    assert not fits(disk, 41, copies=1)


def test_the_ballast_is_given_up_to_start_only_where_next_to_nothing_is_free(
    disk: Disk, free: Free, tmp_path: Path
) -> None:
    disk.take_ballast()
    for left, is_kept in [(1 * MIB, True), (MIB - 1_024, False)]:
        free.free = left
        disk.make_room_to_start()
        assert (tmp_path / "ballast").exists() == is_kept


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EIO])
def test_the_ballast_is_given_up_to_start_where_a_quota_leaves_no_room(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    disk.take_ballast()

    def pwrite(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", pwrite)
    disk.make_room_to_start()
    assert (tmp_path / "ballast").exists() == (number == errno.EIO)
    assert [path.name for path in tmp_path.iterdir()] in (["ballast"], [])


def test_a_folder_that_is_missing_at_a_start_takes_the_room_of_the_ballast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast = tmp_path / "ballast"
    real = os.mkdir

    def mkdir(path: Any, *args: Any, **options: Any) -> None:
        if ballast.exists() or is_full_for_good:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    for is_full_for_good in (True, False):
        ballast.write_bytes(bytes(4_096))
        if is_full_for_good:
            with pytest.raises(ConfigError, match="No space left"):
                place.lock(tmp_path)
        else:
            place.lock(tmp_path).close()
        assert not ballast.exists()
    assert (tmp_path / "spool").is_dir()


def test_uploads_under_way_leave_less_room_until_they_end(disk: Disk) -> None:
    with ExitStack() as under_way:
        for _ in range(4):
            under_way.enter_context(disk.room(3 * MIB))
        assert not fits(disk, 2)
        assert fits(disk, 1)
    assert fits(disk, 13)


def test_what_was_written_is_not_counted_twice(disk: Disk, free: Free) -> None:
    with disk.room(5 * MIB) as room:
        for _ in range(5):
            room.arrive(MIB)
            free.free -= 2 * MIB
            room.wrote(MIB)
        # 15 MiB in all: 10 are written, 5 are for another order.
        assert fits(disk, 25, copies=1)
        assert not fits(disk, 26, copies=1)


def test_a_body_of_unknown_length_is_counted_as_it_comes(disk: Disk) -> None:
    with disk.room(0) as first, disk.room(0) as second:
        for _ in range(6):
            first.arrive(MIB)
            second.arrive(MIB)
        first.arrive(MIB)
        with pytest.raises(Overloaded):
            second.arrive(MIB)
        assert not fits(disk, 1)
    assert fits(disk, 13)


def test_what_may_be_a_repeat_may_use_half_of_the_reserve_but_not_become_a_batch_there(
    disk: Disk, free: Free
) -> None:
    free.free = 59 * MIB
    assert not fits(disk, 0)
    assert not fits(disk, 30, copies=1, is_new=False)
    with disk.room(29 * MIB, copies=1, is_new=False) as room:
        with pytest.raises(Overloaded) as refused:
            room.admit()
        assert refused.value.retry_after_s


def test_a_batch_that_was_let_in_comes_before_those_that_arrive_later(
    disk: Disk, free: Free
) -> None:
    with disk.room(MIB) as first, disk.room(12 * MIB):
        free.free -= 3 * MIB
        first.admit()
        with disk.room(0, is_new=False) as perhaps_a_repeat, pytest.raises(Overloaded):
            perhaps_a_repeat.admit()
        free.free = 59 * MIB
        with pytest.raises(Overloaded):
            first.admit()


def test_the_ballast_takes_room_and_can_be_given_up_once(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 8 * MIB)
    disk.take_ballast()
    ballast = tmp_path / "ballast"
    found = ballast.stat()
    assert found.st_size == 2 * MIB
    assert found.st_blocks * 512 >= 2 * MIB, "it takes real room"
    assert found.st_mode & 0o777 == 0o600
    disk.take_ballast()
    assert disk.give_up_ballast()
    assert not ballast.exists()
    assert not disk.give_up_ballast()
    disk.take_ballast()
    assert ballast.exists()


def test_a_ballast_of_which_only_a_part_could_be_had_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(tmp_path, 8 * MIB)
    ballast = tmp_path / "ballast"
    real = os.posix_fallocate

    def a_part(descriptor: int, begin: int, _: int) -> None:
        real(descriptor, begin, 4_096)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", a_part)
        for _ in range(3):
            disk.take_ballast()
            assert not ballast.exists()
    assert caplog.text.count("Disk quota exceeded") == 1, "told again and again"
    disk.take_ballast()
    assert ballast.stat().st_size == 2 * MIB


def test_a_ballast_that_is_smaller_than_it_should_be_is_made_whole(tmp_path: Path) -> None:
    ballast = tmp_path / "ballast"
    ballast.write_bytes(bytes(4_096))
    Disk(tmp_path, 8 * MIB).take_ballast()
    assert ballast.stat().st_blocks * 512 >= 2 * MIB
    Disk(tmp_path, 4 * MIB).take_ballast()
    assert ballast.stat().st_size == 2 * MIB, "a larger one stays"


def test_there_is_no_ballast_where_there_is_no_room(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 1 << 60)
    disk.take_ballast()
    assert not (tmp_path / "ballast").exists()
