"""A ledger that cannot be written any more ends the yard; nothing acknowledged is lost with it, and
that end is none of the shards that were held.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from batchyard.ledger import sqlite_file
from batchyard.ledger.sqlite import SqliteLedger
from crash.checking import assert_holds
from disk import tracing
from disk.loads import Interrupted, Load
from disk.tracing import Disturbed
from helpers_upstream import Upstream
from helpers_workers import SHORT, wait_workers, workers_yard
from helpers_yard import BATCHES, QUICK, Yard, poll, request
from store.making import add

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def shard_of(yard: Yard) -> tuple[str | None, int, int]:
    """Return owner, `at_risk` and `failures` of the only shard, as the ledger has them."""
    with closing(sqlite3.connect(f"file:{yard.data / 'ledger.db'}?mode=ro", uri=True)) as db:
        owner, at_risk, failures = db.execute(
            "SELECT owner, at_risk, failures FROM shards"
        ).fetchone()
    return owner, at_risk, failures


def hold(yard: Yard, upstream: Upstream) -> str:
    """Create a batch of one request that has no answer before the end of the test."""
    batch_id: str = yard.create([request("held|hold:late")])["id"]
    return taken(yard, upstream, batch_id, 1)


def taken(yard: Yard, upstream: Upstream, batch_id: str, calls: int) -> str:
    """Wait for so many calls, and for the renewal that tells of the last one."""
    upstream.wait_calls("held", calls)
    poll(lambda: shard_of(yard)[1], lambda: "the shard is at risk")
    yard.wait_progress(batch_id, lambda shown: shown["in_flight"] == 1)
    return batch_id


def failing(yard: Yard, pid: int | None = None) -> Disturbed:
    """Let no sync of the ledger succeed any more, in one process."""
    files = [yard.data / name for name in ("ledger.db", "ledger.db-wal")]
    return Disturbed(yard, "fdatasync,fsync", "error=EIO", *files, pid=pid)


def finish(yard: Yard, upstream: Upstream, batch_id: str) -> None:
    upstream.gate("late").open()
    counts = yard.wait_ended(batch_id)["request_counts"]
    assert counts["succeeded"] == 1
    assert yard.stop() == 0
    assert not (yard.data / "ledger.failed").exists()
    assert_holds(yard.data)


def test_one_process_is_counted_when_it_is_killed_and_not_when_its_ledger_has_failed(
    upstream: Upstream, tmp_path: Path
) -> None:
    bounds = QUICK | {"limits:RENEW_INTERVAL_S": 0.2}
    with Yard(tmp_path / "data", upstream.url, slots=16, bounds=bounds) as yard:
        batch_id = hold(yard, upstream)
        yard.kill()
        yard.start()
        taken(yard, upstream, batch_id, 2)
        assert shard_of(yard)[2] == 1
        with failing(yard) as disturbed:
            assert yard.wait() == 1
            assert disturbed.injected
        assert "the store failed" in yard.read_log()
        assert shard_of(yard)[1:] == (1, 1), "it could not be told any more"
        assert "I/O error" in (yard.data / "ledger.failed").read_text()
        assert_holds(yard.data)
        yard.start()
        taken(yard, upstream, batch_id, 3)
        assert shard_of(yard)[2] == 1
        finish(yard, upstream, batch_id)


@pytest.mark.parametrize("who", ["worker", "server"])
def test_of_several_processes_the_one_whose_ledger_fails_ends_all_and_nothing_is_counted(
    upstream: Upstream, tmp_path: Path, who: str
) -> None:
    with workers_yard(tmp_path / "data", upstream.url, bounds=SHORT) as yard:
        wait_workers(yard)
        batch_id = hold(yard, upstream)
        owner, _, _ = shard_of(yard)
        working = re.search(rf"\[(\d+)\] working owner={owner}", yard.read_log())
        assert working
        with failing(yard, int(working[1]) if who == "worker" else None) as disturbed:
            if who == "server":  # it writes seldom
                assert yard.post(BATCHES, {"requests": [request("other")]}).status != 200
            assert yard.wait() == 1
            assert disturbed.injected
        assert "the store failed" in yard.read_log()
        assert shard_of(yard)[2] == 0
        yard.start()
        taken(yard, upstream, batch_id, 2)
        assert shard_of(yard)[2] == 0
        finish(yard, upstream, batch_id)


# Checkpoints --------------------------------------------------------------------------------------

OFTEN = {"ledger.sqlite_log:_PAGES": 30}


def run_often(load: Load) -> None:
    for _ in range(30):
        load.run()


@pytest.mark.parametrize("who", ["one process", "server", "worker"])
def test_a_sync_that_fails_at_a_checkpoint_ends_the_yard_and_nothing_is_lost(
    upstream: Upstream, tmp_path: Path, who: str
) -> None:
    """Only of the file: what is acknowledged is in the log, whose syncs succeed."""
    data = tmp_path / "data"
    alone = who == "one process"
    workers = workers_yard(data, upstream.url, bounds=SHORT | OFTEN)
    with Yard(data, upstream.url, slots=16, bounds=QUICK | OFTEN) if alone else workers as yard:
        pids = [None] if alone else wait_workers(yard)
        load = Load(yard, upstream)
        ledger = yard.data / "ledger.db"
        pid = pids[0] if who == "worker" else None
        with Disturbed(
            yard, "fdatasync", "error=EIO:when=1", ledger, also="pwrite64", pid=pid
        ) as disturbed:
            with pytest.raises(Interrupted):
                run_often(load)
            assert yard.wait() == 1
            assert disturbed.injected == 1
        log = yard.read_log()
        assert "the store failed" in log
        assert "disk I/O error" in log
        assert "Traceback" not in log
        failed = next(n for n, line in enumerate(disturbed.report) if "(INJECTED)" in line)
        assert [line for line in disturbed.report[failed + 1 :] if "pwrite64" in line] == []
        assert_holds(yard.data)
        yard.start()
        load.check()
        assert not (yard.data / "ledger.failed").exists()
        load.run()
        load.check()


def test_a_disk_without_room_for_a_checkpoint_ends_nothing(
    upstream: Upstream, tmp_path: Path
) -> None:
    with Yard(tmp_path / "data", upstream.url, slots=16, bounds=QUICK | OFTEN) as yard:
        load = Load(yard, upstream)
        ledger = yard.data / "ledger.db"
        with Disturbed(yard, "pwrite64", "error=ENOSPC", ledger) as disturbed:
            for _ in range(3):
                load.run()
            assert disturbed.injected
        assert "the ledger's log grows" in yard.read_log()
        load.run()
        yard.kill()
        assert_holds(yard.data)
        yard.start()
        load.check()


# Adds to a ledger until that fails, for some checkpoints at the most. A read is open at the first
# one, which therefore copies pages without a sync.
ADDING = """
import asyncio, sys
from pathlib import Path
from batchyard.errors import StoreError
from batchyard.ledger import sqlite_log
from batchyard.ledger.sqlite import SqliteLedger
from helpers_inline import InlineExecutor
from store.making import add

path = Path(sys.argv[1])
sqlite_log._PAGES = 100

async def work():
    ledger = SqliteLedger(path, threads=InlineExecutor)
    reader = ledger._reader._db
    for number in range(150):
        if number == 2:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM batches").fetchone()
            untouched = path.stat().st_mtime_ns
        elif number == 15:
            reader.execute("COMMIT")
            assert path.stat().st_mtime_ns > untouched, "pages were copied"
        try:
            await add(ledger, str(number))
        except StoreError:
            break
        print(number)
    await ledger.close()

asyncio.run(work())
"""


@pytest.mark.anyio
async def test_what_checkpoints_have_copied_before_a_sync_failed_is_still_in_the_log(
    tmp_path: Path,
) -> None:
    """What it could not write the kernel has dropped: after a power cut the file is the old one."""
    path, report, after = tmp_path / "ledger.db", tmp_path / "report", tmp_path / "after"
    after.mkdir()
    sqlite_file.connect(path, read_only=False).close()
    shutil.copy(path, after)
    command = [tracing.strace(), "-f", "-q", "--seccomp-bpf", "-o", str(report), "-P", str(path)]
    command += ["-e", "trace=fdatasync,pwrite64", "-e", "inject=fdatasync:error=EIO:when=1"]
    done = subprocess.run(
        [*command, sys.executable, "-c", ADDING, str(path)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    added = done.stdout.split()
    assert len(added) > 15, "the read had ended"
    calls = [line for line in report.read_text("ascii").splitlines() if "+++" not in line]
    assert [line for line in calls if "pwrite64" not in line] == calls[-1:], "and nothing after it"
    assert "(INJECTED)" in calls[-1]
    shutil.copy(f"{path}-wal", after)
    found = SqliteLedger(after / path.name)
    for number in added:
        assert await found.get("w", f"msgbatch_{number}") is not None, number
    await found.close()


# The start ----------------------------------------------------------------------------------------

OPENING = """
import sys
from pathlib import Path
from batchyard.errors import StoreError
from batchyard.ledger.sqlite import SqliteLedger

try:
    SqliteLedger(Path(sys.argv[1]))
except StoreError as error:
    sys.exit(str(error))
"""


def start_with(path: Path, call: str, of: Path) -> tuple[str, list[str], list[str]]:
    """Open a ledger in a process in which the first such call of a file or directory fails.

    Returns:
        What it says, and its writing calls of that file before the failed one and after it.
    """
    report = path.with_name("report")
    command = [tracing.strace(), "-f", "-q", "--seccomp-bpf", "-o", str(report), "-P", str(of)]
    command += ["-e", "trace=fsync,fdatasync,pwrite64,ftruncate,unlink"]
    command += ["-e", f"inject={call}:error=EIO:when=1"]
    done = subprocess.run(
        [*command, sys.executable, "-c", OPENING, str(path)],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Traceback" not in done.stderr
    lines = [line for line in report.read_text("ascii").splitlines() if "+++" not in line]
    failed = next(n for n, line in enumerate(lines) if "(INJECTED)" in line)
    return done.stderr, lines[:failed], lines[failed + 1 :]


async def left_by_a_kill(tmp_path: Path) -> Path:
    """Return a ledger with a batch that is only in its log."""
    before, path = tmp_path / "before.db", tmp_path / "ledger.db"
    ledger = SqliteLedger(before)
    await add(ledger, "acknowledged")
    shutil.copy(before, path)
    shutil.copy(f"{before}-wal", f"{path}-wal")
    await ledger.close()
    return path


async def is_well(path: Path) -> SqliteLedger:
    ledger = SqliteLedger(path)
    assert not (path.with_name("ledger.failed")).exists()
    await add(ledger, "new")
    assert await ledger.get("w", "msgbatch_new") is not None
    return ledger


@pytest.mark.anyio
@pytest.mark.parametrize(("call", "of"), [("fdatasync", "ledger.db-wal"), ("fsync", "")])
async def test_a_sync_that_fails_when_a_ledger_is_opened_is_noted_for_the_next_start(
    tmp_path: Path, call: str, of: str
) -> None:
    path = await left_by_a_kill(tmp_path)
    said, _, after = start_with(path, call, tmp_path / of)
    assert "cannot open the ledger" in said
    assert after == [], "nothing is written, and no sync is repeated"
    assert "opening the ledger failed" in (tmp_path / "ledger.failed").read_text()
    assert path.with_name("ledger.db-wal").exists()
    ledger = await is_well(path)
    assert await ledger.get("w", "msgbatch_acknowledged") is not None
    await ledger.close()


def test_a_ledger_that_is_opened_on_a_full_disk_asks_once_for_room(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    opening = OPENING.replace(
        "argv[1])", "argv[1]), make_room=lambda: bool(print('asked')) or True"
    )
    assert opening != OPENING
    for times, words in [("1", ""), ("1+", "is full")]:
        sqlite_file.connect(path, read_only=False).close()
        command = [tracing.strace(), "-f", "-q", "--seccomp-bpf", "-o", str(tmp_path / "report")]
        command += ["-P", f"{path}-wal", "-e", f"inject=pwrite64:error=ENOSPC:when={times}"]
        done = subprocess.run(
            [*command, sys.executable, "-c", opening, str(path)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "asked\n"
        assert words in done.stderr
        assert done.returncode == bool(words), done.stderr
        assert not (tmp_path / "ledger.failed").exists(), "nothing is in doubt"


@pytest.mark.anyio
@pytest.mark.parametrize(("call", "of"), [("fdatasync", "ledger.db"), ("fsync", "")])
async def test_after_a_sync_has_failed_at_the_first_start_the_file_is_made_anew(
    tmp_path: Path, call: str, of: str
) -> None:
    """SQLite goes on without a log instead, or as if nothing had happened."""
    path = tmp_path / "ledger.db"
    said, _, _ = start_with(path, call, tmp_path / of)
    assert "cannot open the ledger" in said
    with path.open("rb") as failed:  # keeps its number from being used again
        await (await is_well(path)).close()
        assert not os.path.samestat(os.fstat(failed.fileno()), path.stat())


def test_what_sqlite_ignores_of_the_directory_was_synced_before_or_is_after(tmp_path: Path) -> None:
    """It says nothing when that sync fails: of a new file, and of each new log."""
    said, before, after = start_with(tmp_path / "ledger.db", "fdatasync", tmp_path)
    assert said == ""
    assert [line.split("(")[0].split()[1] for line in before] == ["fsync"], "the new file"
    assert "fsync" in after[0], "the new log"


@pytest.mark.anyio
async def test_a_log_in_doubt_is_written_again_before_any_of_it_is_copied(tmp_path: Path) -> None:
    """Otherwise a power cut may leave half a copy, and of the log what stands before the gap."""
    path, report = await left_by_a_kill(tmp_path), tmp_path / "report"
    sqlite_file.note_failure(path, "a sync of the log")
    log = tmp_path / "ledger.db-wal"
    size = log.stat().st_size
    command = [
        tracing.strace(),
        "-f",
        "-q",
        "--seccomp-bpf",
        "-y",
        "-o",
        str(report),
        "-P",
        str(path),
    ]
    command += ["-P", str(log), "-e", "trace=write,pwrite64,fsync"]
    subprocess.run([*command, sys.executable, "-c", OPENING, str(path)], check=True)
    written, synced, copied, *_ = report.read_text("ascii").splitlines()
    assert " write(" in written
    assert written.endswith(f"= {size}")
    assert "fsync(" in synced
    assert f"{path}>" in copied
    ledger = await is_well(path)
    assert await ledger.get("w", "msgbatch_acknowledged") is not None
    await ledger.close()
