"""A batch whose requests are lost can be taken out, and only such a one; its files are kept."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import pytest

from batchyard.errors import ConfigError, DataDirectoryInUse, StoreError
from batchyard.ledger import sqlite_file
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


def test_nothing_is_written_to_a_ledger_that_has_failed_before_a_yard_was_started_on_it(
    data: Path,
) -> None:
    damage(data, "gone")
    sqlite_file.note_failure(data / "ledger.db", "a sync")
    before = files(data)
    with pytest.raises(ConfigError, match="start a yard on it once"):
        give_up(data, PART, LONG_AFTER_US)
    assert files(data) == before


def test_a_failure_to_write_is_noted_for_the_next_start(data: Path) -> None:
    damage(data, "gone")
    with contextlib.closing(sqlite3.connect(data / "ledger.db")) as db:
        db.execute("CREATE TRIGGER t BEFORE DELETE ON batches BEGIN SELECT raise(FAIL, 'no'); END")
    with pytest.raises(StoreError, match="cannot give up"):
        give_up(data, PART, LONG_AFTER_US)
    assert "giving up a batch failed" in (data / "ledger.failed").read_text()


def forget_checks(data: Path) -> None:
    """Make the requests those of a version that gave no id a check of its own."""
    path = path_of(data, "part") / "requests"
    whole = path.read_bytes()
    older = re.sub(rb"(?m)^(part-[0-9]+ [0-9]+) [0-9a-f]{8}$", rb"\1", whole)
    path.write_bytes(older)
    assert older != whole
    offset = 0
    for index in range(3):
        ids = [b"part-%d " % n for n in range(4 * index, 4 * index + 4)]
        end = older.find(b"part-%d " % (4 * index + 4))
        end = len(older) if end < 0 else end
        assert all(each in older[offset:end] for each in ids)
        length = end - offset
        statement = "UPDATE shards SET off = ?, len = ?, crc = ? WHERE batch = ? AND idx = ?"
        change(data, statement, offset, length, zlib.crc32(older[offset:end]), PART, index)
        offset = end


def test_damaged_params_with_ids_that_nothing_proves_are_lost_and_with_proven_ones_not(
    data: Path,
) -> None:
    path = path_of(data, "part") / "requests"

    def damage_params() -> None:
        bad = path.read_bytes()
        at = bad.index("é 9".encode())
        path.write_bytes(bad[:at] + b"XX" + bad[at + 2 :])

    whole = path.read_bytes()
    damage_params()
    assert check(data, lambda _: None).lost == []
    path.write_bytes(whole)
    forget_checks(data)
    summary = check(data, lambda _: None)
    assert (summary.errors, summary.lost) == (0, [])
    damage_params()
    assert check(data, lambda _: None).lost == [PART]
    give_up(data, PART, LONG_AFTER_US)
    assert check(data, lambda _: None).errors == 0


def test_requests_of_done_shards_are_not_missed_unless_their_results_are_damaged_too(
    data: Path,
) -> None:
    path = path_of(data, "part") / "requests"
    whole = path.read_bytes()
    path.write_bytes(b"\0" * 20 + whole[20:])  # shard 0 is done
    summary = check(data, lambda _: None)
    assert summary.errors
    assert (summary.lost, summary.redone) == ([], [])
    with pytest.raises(ConfigError, match="it will end by itself"):
        give_up(data, PART, LONG_AFTER_US)
    (results, *_) = sorted(path_of(data, "part").glob("r/0.*"))
    results.unlink()
    summary = check(data, lambda _: None)
    assert (summary.lost, summary.redone) == ([PART], [])
    path.write_bytes(whole)
    summary = check(data, lambda _: None)
    assert (summary.lost, summary.redone) == ([], [PART])
    with pytest.raises(ConfigError, match="it will end by itself"):
        give_up(data, PART, LONG_AFTER_US)


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
