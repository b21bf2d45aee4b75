"""A new data directory: its name, and the names of those above it, are on the disk or not there."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from disk import tracing

if TYPE_CHECKING:
    from pathlib import Path

LOCKING = """
import sys
from pathlib import Path
from batchyard.errors import ConfigError
from batchyard.server import place

try:
    place.lock(Path(sys.argv[1]))
except ConfigError as error:
    sys.exit(str(error))
"""


def lock(data: Path, top: Path, fails: int = 0) -> tuple[str, list[tuple[str, str]]]:
    """Take a data directory in a process of its own; return what it says, and what it did.

    Args:
        data: its path.
        top: the directory below which calls are looked at.
        fails: which sync fails, from 1 on.
    """
    report = top.with_name("report")
    command = [tracing.strace(), "-f", "-q", "--seccomp-bpf", "-y", "-o", str(report)]
    command += ["-e", "trace=fsync,mkdir,mkdirat,rmdir"]
    if fails:
        command += ["-e", f"inject=fsync:error=EIO:when={fails}"]
    done = subprocess.run(
        [*command, sys.executable, "-c", LOCKING, str(data)],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == bool(fails), done.stderr
    calls = []
    for line in report.read_text("ascii").splitlines():
        _, _, path = line.partition(str(top))
        if path:
            call = line.split()[1].partition("(")[0].removesuffix("at")
            calls.append((call, path.partition(">")[0].partition('"')[0]))
    return done.stderr, calls


def test_each_name_is_synced_before_there_is_one_below_it(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "there").mkdir(parents=True)
    _, calls = lock(top / "there/one/two/data", top)
    assert [call for call in calls if not call[1].endswith("spool")] == [
        ("fsync", ""),  # a start before this one may have been cut short
        ("mkdir", "/there/one"),
        ("fsync", "/there"),
        ("mkdir", "/there/one/two"),
        ("fsync", "/there/one"),
        ("mkdir", "/there/one/two/data"),
        ("fsync", "/there/one/two"),
    ]


@pytest.mark.parametrize("fails", [2, 3])
def test_a_name_whose_sync_has_failed_is_made_anew(tmp_path: Path, fails: int) -> None:
    """The kernel calls clean what it could not write: a second sync would be believed."""
    top = tmp_path / "top"
    top.mkdir()
    data = top / "one/data"
    name = "/one" if fails == 2 else "/one/data"
    said, calls = lock(data, top, fails)
    assert "cannot use data directory" in said
    assert "Traceback" not in said
    assert calls[-1] == ("rmdir", name)
    assert not (top / name[1:]).exists()
    said, calls = lock(data, top)
    made = calls.index(("mkdir", name))
    assert calls[made + 1] == ("fsync", name.rpartition("/")[0])
