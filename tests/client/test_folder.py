"""The lock of a run: who works on it keeps others away, who only looks does not."""

import ctypes
import fcntl
import os
import sys
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
    folder = durable.opened(tmp_path)
    with pytest.raises(OSError, match=r"gone\.partial"):
        durable.sync_files(tmp_path, ["gone.partial"], folder)
    with pytest.raises(OSError, match="nowhere"):
        durable.sync_files(tmp_path / "nowhere", [f"{number}" for number in range(100)], folder)
    os.close(folder)
    with pytest.raises(OSError, match="nowhere"):
        durable.opened(tmp_path / "nowhere")


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:41 / /box rw,relatime - overlay overlay rw,upperdir=/ext4
31 22 0:42 / /far rw - nfs4 host:/far rw
"""


@pytest.mark.parametrize(
    ("device", "kind", "as_one"),
    [("254:0", "ext4", True), ("0:41", "overlay", False), ("0:42", "nfs4", False),
     ("9:9", None, False)],
)  # fmt: skip
def test_files_of_an_overlay_or_a_network_file_system_are_synced_one_by_one(
    device: str, kind: str | None, as_one: bool
):
    assert durable.file_system(MOUNTS, device) == kind
    assert durable.is_synced_as_one(MOUNTS, device) == as_one


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no syncfs")
def test_what_syncs_a_group_was_opened_before_its_first_byte_and_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An error of writing back is told to descriptors that were open when it came."""
    steps: list[str] = []
    real = os.open

    def noted(path: str, *arguments: int, **options: int) -> int:
        fd = real(path, *arguments, **options)
        if str(path).endswith(".partial"):
            steps.append("written")
        elif Path(path).name == STATE_DIR:
            steps.append(f"opened {fd}")
        return fd

    class Libc:
        """The C library, which here notes what is to be synced instead."""

        def syncfs(self, fd: int) -> int:
            assert Path(f"/proc/self/fd/{fd}").readlink() == tmp_path / STATE_DIR
            steps.append(f"synced {fd}")
            return 0

    (tmp_path / STATE_DIR).mkdir()
    here = durable.file_system(Path("/proc/self/mountinfo").read_text(), device_of(tmp_path))
    monkeypatch.setattr(durable, "_SYNCED_AS_ONE", frozenset({here}))
    monkeypatch.setattr(os, "open", noted)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    tree = Tree(tmp_path)
    with tree.grouped():
        for round_ in range(2):  # two flushes of one group
            for number in range(100):
                tree.add(f"n{round_}-{number}.md", "text\n")
            tree.flush()

    opened = steps[0].removeprefix("opened ")
    assert steps == [
        f"opened {opened}", *["written"] * 100, f"synced {opened}",
        *["written"] * 100, f"synced {opened}",
    ]  # fmt: skip
    left = [fd for fd in Path("/proc/self/fd").iterdir() if links_to(fd, tmp_path / STATE_DIR)]
    assert left == []


def device_of(path: Path) -> str:
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def links_to(fd: Path, path: Path) -> bool:
    try:
        return fd.readlink() == path
    except OSError:
        return False


def test_a_report_that_is_interrupted_half_way_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / STATE_DIR).mkdir()
    write, tree = os.write, Tree(tmp_path)

    def half(fd: int, data: bytes) -> int:
        write(fd, data[: len(data) // 2])
        raise KeyboardInterrupt

    def interrupted() -> None:
        with tree.grouped():
            tree.add("whole.md", "the whole text\n")
            monkeypatch.setattr(os, "write", half)
            tree.add("half.md", "the whole text\n")

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert (tmp_path / "whole.md").read_text() == "the whole text\n"
    assert not (tmp_path / "half.md").exists()
    assert list((tmp_path / STATE_DIR).iterdir()) == []
