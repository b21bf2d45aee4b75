"""Data directories that cannot be used: the start is refused, names the directory and says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchyard.server import place
from helpers_upstream import DEADLINE_S
from helpers_yard import Yard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
READ_ONLY = (
    *("unshare", "--mount", "sh", "-euc"),
    'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"',
    "sh",
)


def refused(data: Path, *before: str, code: int = 2) -> str:
    """Start a yard that must not start, perhaps by another program; return what it said of it."""
    command = [*before, *Yard(data.parent / "any", "http://127.0.0.1:9").command()]
    command[command.index("--data") + 1] = str(data)
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert str(data) in done.stderr
    return done.stderr


def is_able(*command: str) -> bool:
    """Return whether a program can be run here."""
    if shutil.which(command[0]) is None:
        return False
    return not subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def a_file(root: Path) -> Path:
    (root / "file").write_bytes(b"somebody's")
    return root / "file"


def below_a_file(root: Path) -> Path:
    return a_file(root) / "data"


def a_link_to_nowhere(root: Path) -> Path:
    (root / "link").symlink_to("nowhere/at/all")
    return root / "link"


def a_name_too_long(root: Path) -> Path:
    return root / ("n" * 256)


def another_spool(root: Path) -> Path:
    (root / "data").mkdir()
    (root / "data/spool").write_bytes(b"somebody's")
    return root / "data"


def another_endpoint(root: Path) -> Path:
    """Where the first thing that cannot be written is written when all else runs."""
    (root / "data/server.json").mkdir(parents=True)
    return root / "data"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (a_file, "File exists"),
        (below_a_file, "Not a directory"),
        (a_link_to_nowhere, "File exists"),
        (a_name_too_long, "File name too long"),
        (another_spool, "File exists"),
        (another_endpoint, "Is a directory"),
    ],
)
def test_what_is_no_directory_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], why: str
) -> None:
    data = make(tmp_path)
    assert f"cannot use data directory {data}: {why}" in refused(data)


def documents(root: Path, count: int = 3) -> Path:
    for number in range(count):
        (root / f"{number}.md").write_bytes(b"a report")
    return root


def output_of_a_run(root: Path) -> Path:
    (root / ".batchyard").mkdir()
    return root


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (documents, "3 documents, such as 0.md, and no yard"),
        (output_of_a_run, "the output of a run (.batchyard) and no yard"),
    ],
)
def test_a_folder_of_documents_is_refused_and_stays_as_it_is(
    tmp_path: Path, make: Callable[[Path], Path], what: str
) -> None:
    data = make(tmp_path)
    before = sorted(data.iterdir())
    said = refused(data)
    assert f"cannot use data directory {data}: it holds {what}" in said
    assert f"such as --data {data / 'batchyard-data'}" in said
    assert sorted(data.iterdir()) == before


@pytest.mark.parametrize(
    "names",
    [
        [".gitkeep", ".snapshot", "lost+found"],
        ["batchyard.toml", "models.toml", "yard.log", "nohup.out", "README.md", "requests.jsonl"],
        ["0.md", "1.md", "2.md", ".batchyard", "lock"],
        ["0.md", "1.md", "2.md", "ledger.db-wal"],
        ["0.md", "1.md", "2.md", "segments"],
    ],
)
def test_a_mount_and_what_is_left_of_a_yard_are_never_refused(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        if "." in name or name == "lock":
            (tmp_path / name).touch()
        else:
            (tmp_path / name).mkdir()
    place.lock(tmp_path).close()
    assert (tmp_path / "spool").is_dir()


def test_a_file_in_the_place_of_the_segments_is_refused(tmp_path: Path) -> None:
    (tmp_path / "segments").write_bytes(b"somebody's")
    said = refused(tmp_path, code=1)
    assert f"stopped, the store failed: cannot use {tmp_path / 'segments'}" in said
    assert "File exists" in said


NEWER = """
import os, sys
from pathlib import Path
from batchyard.ledger import sqlite_file
db = sqlite_file.connect(Path(sys.argv[1]), read_only=False)
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
db.execute("BEGIN")
db.execute("CREATE TABLE newer (x)")
db.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")
db.execute("COMMIT")
os._exit(9)
"""
FOREIGN = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE theirs (x)")
os._exit(9)
"""


@pytest.mark.parametrize(
    ("killed", "why"), [(NEWER, "has schema version"), (FOREIGN, "of another program")]
)
def test_a_ledger_of_others_stays_as_it_is_with_what_is_only_in_its_log(
    tmp_path: Path, killed: str, why: str
) -> None:
    data = tmp_path / "data"
    (data / "spool").mkdir(parents=True)
    path = data / "ledger.db"
    assert subprocess.run([sys.executable, "-c", killed, str(path)], check=False).returncode == 9

    def found() -> dict[str, bytes | None]:
        # The index of the log is memory that processes share.
        return {
            each.name: each.read_bytes() if each.is_file() else None
            for each in data.iterdir()
            if each.name not in {"lock", "ledger.db-shm"}
        }

    before = found()
    assert before["ledger.db-wal"]
    assert why in refused(data)
    assert found() == before


def test_nothing_is_made_where_nothing_can_be_made() -> None:
    data = Path("/proc/batchyard/data")
    assert f"cannot use data directory {data}: No such file" in refused(data)


def test_a_file_in_the_place_of_the_directory_stays_as_it_is(tmp_path: Path) -> None:
    refused(a_file(tmp_path))
    assert (tmp_path / "file").read_bytes() == b"somebody's"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def denied() -> Iterator[tuple[Path, Sequence[str]]]:
    """Return an empty directory, and what comes before the program to run it as its owner.

    Root may do everything, and becomes somebody else.
    """
    with tempfile.TemporaryDirectory() as root:
        data = Path(root) / "data"
        data.mkdir()
        if os.geteuid():
            yield data, ()
            return
        Path(root).chmod(0o755)
        os.chown(data, 65534, 65534)
        python = Yard(data, "").command()[0]
        for probe in ((python, "-c", "import batchyard"), ("test", "-w", str(data))):
            if not is_able(*NOBODY, *probe):
                pytest.skip("nobody else can run the program here")
        yield data, NOBODY


@pytest.mark.parametrize(
    ("mode", "why"), [(0o000, "is not readable"), (0o500, "Permission denied")]
)
def test_a_directory_without_the_permission_is_refused(
    denied: tuple[Path, Sequence[str]], mode: int, why: str
) -> None:
    data, other = denied
    data.chmod(mode)
    said = refused(data, *other)
    data.chmod(0o700)
    assert why in said
    assert not list(data.iterdir())


def test_a_disk_that_may_only_be_read_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if not is_able(*READ_ONLY, str(data), "true"):
        pytest.skip("nothing can be mounted here")
    assert "Read-only file system" in refused(data, *READ_ONLY, str(data))
    assert not list(data.iterdir())
