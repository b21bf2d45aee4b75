"""A batch whose requests are lost can be taken out, and only such a one; its files are kept."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from batchyard.errors import ConfigError, DataDirectoryInUse
from batchyard.server import place
from batchyard.verify import check, give_up
from helpers_upstream import DEADLINE_S, Upstream
from helpers_yard import BATCHES, Yard, assert_answered, request
from store.yards import NAMES, change, make_yard, path_of

if TYPE_CHECKING:
    from pathlib import Path

PART = NAMES["part"]
LONG_AFTER_US = 1 << 60


@pytest.fixture
def data(tmp_path: Path) -> Path:
    asyncio.run(make_yard(tmp_path / "data"))
    return tmp_path / "data"


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def damage(data: Path, how: str) -> None:
    path = path_of(data, "part") / "requests"
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize("how", ["gone", "zeros"])
def test_it_goes_with_all_its_files_kept_aside_and_the_rest_holds(data: Path, how: str) -> None:
    damage(data, how)
    before = files(path_of(data, "part"))
    assert check(data, lambda _: None).lost == [PART]
    kept = give_up(data, PART, LONG_AFTER_US)
    assert kept == data / "given-up" / PART
    assert files(kept) == before
    assert not path_of(data, "part").exists()
    summary = check(data, lambda _: None)
    assert (summary.errors, summary.batches, summary.lost) == (0, 4, [])


def test_a_run_that_was_cut_short_can_be_repeated(data: Path) -> None:
    damage(data, "zeros")
    (data / "given-up").mkdir(mode=0o700)
    path_of(data, "part").rename(data / "given-up" / PART)
    give_up(data, PART, LONG_AFTER_US)
    assert (data / "given-up" / PART / "requests").exists()
    assert check(data, lambda _: None).errors == 0


def test_a_batch_that_may_still_run_stays(data: Path) -> None:
    damage(data, "gone")
    with pytest.raises(ConfigError, match="cancel it first"):
        give_up(data, PART, 0)
    change(data, "UPDATE batches SET cancel_us = created_us WHERE id = ?", PART)
    give_up(data, PART, 0)


@pytest.mark.parametrize(
    ("name", "why"),
    [("part", "it will end by itself"), ("ended", "no open batch"), ("gone", "no open")],
)
def test_a_batch_whose_requests_are_there_or_that_is_not_open_stays(
    data: Path, name: str, why: str
) -> None:
    before = files(data / "segments")
    with pytest.raises(ConfigError, match=why):
        give_up(data, NAMES[name], LONG_AFTER_US)
    assert files(data / "segments") == before


def test_an_id_is_never_a_path(data: Path) -> None:
    with pytest.raises(ConfigError, match="by its id"):
        give_up(data, "../../etc", LONG_AFTER_US)


def test_a_running_yard_is_left_alone(data: Path) -> None:
    damage(data, "gone")
    with place.lock(data), pytest.raises(DataDirectoryInUse):
        give_up(data, PART, LONG_AFTER_US)


def test_the_command_that_check_prints_lets_a_yard_go_on_without_it(tmp_path: Path) -> None:
    with Upstream() as upstream, Yard(tmp_path / "data", upstream.url) as yard:
        lost = yard.create([request("lost|hold:for ever")])["id"]
        yard.post(f"{BATCHES}/{lost}/cancel", b"")
        yard.kill()
        (path,) = (yard.data / "segments").rglob("requests")
        path.unlink()
        command = [sys.executable, "-m", "batchyard", "check", str(yard.data)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S).stdout
        (line,) = [line for line in said.splitlines() if "--give-up" in line]
        words = line.partition(": batchyard ")[2].split()
        command = [sys.executable, "-m", "batchyard", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, done
        assert f"gave up {lost}" in done.stdout
        assert "all holds" in done.stdout
        yard.start()
        assert yard.get(f"{BATCHES}/{lost}").status == 404
        prompts = ["after-1", "after-2"]
        assert_answered(yard.run(prompts), prompts)
