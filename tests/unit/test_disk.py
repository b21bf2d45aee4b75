from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchyard.errors import Overloaded
from batchyard.limits import MIB
from batchyard.server.disk import Disk

if TYPE_CHECKING:
    from pathlib import Path


def test_a_batch_that_would_touch_the_reserve_is_refused(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 8 * MIB)
    free = disk.free_bytes()
    disk.admit(free // 2)
    with pytest.raises(Overloaded) as refused:
        disk.admit(free)
    assert refused.value.retry_after_s


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


def test_there_is_no_ballast_where_there_is_no_room(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 1 << 60)
    disk.take_ballast()
    assert not (tmp_path / "ballast").exists()
