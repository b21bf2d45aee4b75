"""The lock of a run: who works on it keeps others away, who only looks does not."""

import fcntl
import os
from pathlib import Path

import pytest

from batchyard.client.problems import RunInUse
from batchyard.client.results.outputs import STATE_DIR, Tree
from batchyard.client.running import durable
from batchyard.client.running.folder import Files, Lock


def test_whoever_looks_sees_who_works_and_is_seen_by_nobody(tmp_path: Path):
    files = Files(tmp_path)

    assert not files.is_running()
    with Lock(tmp_path):
        assert files.is_running()
    assert not files.is_running()


def test_two_who_look_at_once_do_not_take_each_other_for_a_worker(tmp_path: Path):
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)

    assert not Files(tmp_path).is_running()
    os.close(looking)


def test_a_run_that_starts_while_somebody_looks_is_not_refused(tmp_path: Path):
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)

    with Lock(tmp_path, pause=lambda _: os.close(looking)):
        assert Files(tmp_path).is_running()


def test_a_run_that_another_process_keeps_is_refused_after_a_bounded_number_of_looks(
    tmp_path: Path,
):
    waits: list[float] = []

    with Lock(tmp_path), pytest.raises(RunInUse), Lock(tmp_path, pause=waits.append):
        pass

    assert sum(waits) < 1


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return what is synced and renamed, in order, by name."""
    found: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(fd: int) -> None:
        found.append(("sync", Path(f"/proc/self/fd/{fd}").readlink().name))
        sync(fd)

    def noted_rename(source: str, target: str, **options: int) -> None:
        found.append(("rename", Path(source).name))
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted_rename)
    return found


def reports_of(out: Path, count: int) -> Tree:
    (out / STATE_DIR).mkdir(parents=True)
    tree = Tree(out)
    with tree.grouped():
        for number in range(count):
            tree.add(f"{'even' if number % 2 else 'odd'}/n{number}.md", f"text {number}\n")
    return tree


def test_a_report_has_its_name_only_when_its_bytes_are_on_disk(
    tmp_path: Path, steps: list[tuple[str, str]]
):
    reports_of(tmp_path / "reports", 5)

    first = steps.index(("rename", "report-0.partial"))
    synced = {name for what, name in steps[:first] if what == "sync"}
    assert {f"report-{number}.partial" for number in range(5)} <= synced
    last = max(at for at, (what, _) in enumerate(steps) if what == "rename")
    assert {name for what, name in steps[last:] if what == "sync"} == {"odd", "even"}


def test_many_reports_are_synced_together_where_that_is_as_good(
    tmp_path: Path, steps: list[tuple[str, str]]
):
    out = tmp_path / "reports"
    reports_of(out, 300)

    each = [name for what, name in steps if what == "sync" and name.endswith(".partial")]
    assert len(each) == (0 if durable.syncs_as_one(out / STATE_DIR) else 300)
    assert sum(what == "rename" for what, _ in steps) == 300
    written = {path.name: path.read_text() for path in out.rglob("*.md")}
    assert written == {f"n{number}.md": f"text {number}\n" for number in range(300)}
    assert list((out / STATE_DIR).iterdir()) == []


def test_files_that_are_not_there_cannot_be_synced(tmp_path: Path):
    with pytest.raises(OSError, match=r"gone\.partial"):
        durable.sync_files(tmp_path, ["gone.partial"])
    with pytest.raises(OSError, match="nowhere"):
        durable.sync_files(tmp_path / "nowhere", [f"{number}" for number in range(100)])
