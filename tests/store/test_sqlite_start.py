"""Opening a ledger: killed at each statement of a migration, and after a sync of it has failed."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from batchyard.ledger import sqlite_file
from batchyard.ledger.sqlite import SqliteLedger
from store.making import add
from store.test_sqlite_file import _old_file, anyio

if TYPE_CHECKING:
    from pathlib import Path

# Opens each copy of a file in a process of its own, which dies at the n-th point of a kind.
KILLED = """
import os, sys
from pathlib import Path
from batchyard import crash
from batchyard.ledger import sqlite_file
point, *copies = sys.argv[1:]
for number, copy in enumerate(copies, 1):
    pid = os.fork()
    if not pid:
        os.environ["BATCHYARD_CRASH_AT"] = f"{point}:{number}"
        sqlite_file.connect(Path(copy), read_only=False)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def open_and_die(copies: list[Path], point: str) -> list[int]:
    """Return how opening each ended: minus the signal, or 0 where the point was never reached."""
    command = [sys.executable, "-c", KILLED, point, *map(str, copies)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [int(code) for code in done.stdout.split()]


def content(path: Path) -> tuple[int, list[tuple[str, ...]], dict[str, list[object]]]:
    """Return the version of a file, its schema, and all rows of its tables."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        schema = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
        tables = [name for kind, name, _ in schema if kind == "table"]
        rows = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    return version, schema, rows


@pytest.mark.parametrize("version", [1, 2, 3])
def test_killed_at_any_statement_of_a_migration_the_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, version: int
) -> None:
    steps = range(version, sqlite_file.SCHEMA_VERSION)
    statements = sum(len(sqlite_file._MIGRATIONS[step]) for step in steps)
    points = statements + 2  # before each, before and after the number of the version
    copies = [tmp_path / f"{n}.db" for n in range(points + 2)]
    _old_file(copies[0], version)
    for copy in copies[1:]:
        shutil.copy(copies[0], copy)
    old = content(copies[0])
    *killed, committed, new = copies
    died = open_and_die(killed, "migrating") + open_and_die([committed], "opened")
    assert died == [-signal.SIGKILL] * (points + 1), "each point is reached"
    assert open_and_die([new], "none") == [0]
    for copy in killed:
        assert content(copy) == old
    assert content(committed) == content(new)
    assert content(new)[0] == sqlite_file.SCHEMA_VERSION
    assert not any(open_and_die(killed, "none")), "the next start"
    for copy in killed:
        assert content(copy) == content(new)


# Three processes on one ledger: a program that reads and is idle then, a yard whose checkpoint it
# does not let finish, and the next start. Each goes on at a line of its input.
READING = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT count(*) FROM creates").fetchone()
print(flush=True)
input()
db.execute("COMMIT")
print(flush=True)
input()
"""
WRITING = """
import os, sys
from pathlib import Path
from batchyard.ledger import sqlite_file

db = sqlite_file.connect(Path(sys.argv[1]), read_only=False)

def add(word):
    for number in range(50):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO creates VALUES ('w', ?, x'00', 'b', 1)", (f"{word}{number}",))
        db.execute("COMMIT")

add("before")
print(flush=True)
input()
add("after")
print(*db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone(), flush=True)
os._exit(9)
"""
STARTING = """
import os, sys
from pathlib import Path
from batchyard.ledger import sqlite_file

sqlite_file.connect(Path(sys.argv[1]), read_only=False)
os._exit(0)
"""


def test_a_log_in_doubt_is_copied_whole_also_while_another_program_has_it_open(
    tmp_path: Path,
) -> None:
    """Its index lives on with that program, and counts what was copied to the file and is lost."""
    path = tmp_path / "ledger.db"
    with contextlib.ExitStack() as stack:

        def run(program: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", program, str(path)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            return stack.enter_context(process)

        def go_on(process: subprocess.Popen[str]) -> None:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

        def said(process: subprocess.Popen[str]) -> list[int]:
            assert process.stdout is not None
            return [int(word) for word in process.stdout.readline().split()]

        writer = run(WRITING)
        said(writer)
        before = path.read_bytes()
        reader = run(READING)
        said(reader)
        go_on(writer)
        _, pages, copied = said(writer)
        assert 0 < copied < pages, "no sync has followed"
        writer.wait()
        go_on(reader)
        said(reader)
        path.write_bytes(before)  # as the disk has it
        sqlite_file.note_failure(path, "a sync of the file")
        assert run(STARTING).wait() == 0
        go_on(reader)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM creates").fetchone() == (100,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@anyio
@pytest.mark.parametrize("is_noted", [True, False])
async def test_what_is_stored_after_a_failed_sync_does_not_stand_behind_what_it_has_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_noted: bool
) -> None:
    """The kernel calls clean what it could not write, so that no later sync writes it either."""
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"
    ledger = SqliteLedger(path)
    await add(ledger, "acknowledged")
    left = tmp_path / "left"
    left.mkdir()
    for each in (path, log):  # as the process that failed has left them: nobody folds its log
        shutil.copy(each, left / each.name)
    await ledger.close()
    on_disk = (left / log.name).read_bytes()
    lost = len(on_disk) // 2
    if is_noted:
        sqlite_file.note_failure(left / path.name, "a sync of the log")
    again = SqliteLedger(left / path.name)
    await add(again, "later")
    written = bytearray((left / log.name).read_bytes())
    if written[:lost] == on_disk[:lost]:  # never written anew: that part is on no disk
        written[lost // 2 : lost] = bytes(lost - lost // 2)
    after = tmp_path / "after"
    after.mkdir()
    shutil.copy(left / path.name, after / path.name)
    (after / log.name).write_bytes(written)
    await again.close()
    found = SqliteLedger(after / path.name)
    stored = await found.get("w", "msgbatch_later")
    await found.close()
    assert (stored is not None) == is_noted
