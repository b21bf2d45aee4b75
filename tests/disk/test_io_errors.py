"""System calls of a real server fail: a sync, a write, a rename, a new file, of each the n-th.

The yard may answer with an error, or end and say why; it may not acknowledge what is lost. After a
start without the fault everything that was acknowledged is there, the rest is whole or absent, and
the same work is done without a fault.

strace counts the calls of each thread for itself, so that "the n-th" is that of whichever thread
comes to it first. `BATCHYARD_FAULTS=all`, as in `make power`, takes every n until none is left; by
default some are taken, by `BATCHYARD_POWER_SEED`.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from crash.checking import assert_holds, written_lines
from disk import tracing
from disk.loads import Interrupted, Load
from disk.tracing import Disturbed
from helpers_upstream import Upstream
from helpers_yard import BATCHES, HEADERS, QUICK, Yard, assert_answered, poll, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from disk.loads import Made

ALL = os.environ.get("BATCHYARD_FAULTS") == "all"
SEED = int(os.environ.get("BATCHYARD_POWER_SEED", "20261122"))
NEVER_SO_MANY = 200
THREADS_MAX = 32
# Checkpoints so often that each load has some.
BOUNDS = QUICK | {"limits:SHARD_REQUESTS": 4, "ledger.sqlite_log:_PAGES": 40}

# What the yard does while it works, and about how many of it one thread does in one load.
WORKING = {
    "fdatasync": 25,
    "fsync": 6,
    "pwrite64": 60,
    "rename": 4,
    "mkdir": 6,
    "openat": 12,
    "unlinkat": 3,
    "rmdir": 1,
}
# After one of these has failed nobody knows what is on the disk, nor will: the yard ends.
SYNCS = {"fdatasync", "fsync"}
# What it does when it starts on a directory with work in it.
STARTING = {"fdatasync": 4, "fsync": 3, "pwrite64": 12, "unlink": 1, "ftruncate": 1}


def some(most: dict[str, int], *usual: str) -> list[tuple[str, int]]:
    """Return what is to fail: every number (0) of every call, or one of each of the usual calls."""
    if ALL:
        return [(call, 0) for call in most]
    rng = random.Random(SEED)
    return [(call, rng.randint(1, most[call])) for call in usual]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def assert_ended_or_well(yard: Yard) -> bool:
    """Wait for the end of a yard that has failed; return whether it goes on instead.

    It goes on when what failed was the business of one call, which was answered with an error.
    """
    process = yard.process
    assert process is not None
    try:
        # A yard that leaves stops listening first: refused connections are on the way to its end.
        answer = yard.get(f"{BATCHES}?limit=1")
    except OSError:
        answer = None
    if answer is not None and answer.status == 200 and process.poll() is None:
        return True
    code = yard.wait()
    assert code == 1, (code, yard.read_log())
    return False


def works_again(load: Load) -> None:
    """Check everything on a yard that is well, and that it does the same work now."""
    load.check()
    load.run()
    load.check()


def every(number: int, injected: Callable[[int], bool]) -> int:
    """Try one number, or all until nothing fails any more; return how many times it did."""
    if number:
        return int(injected(number))
    return sum(itertools.takewhile(bool, map(injected, range(1, NEVER_SO_MANY))))


def go_on(load: Load, work: Callable[[], None]) -> None:
    """Do some work; whenever the yard fails at it, hold it to its promises."""
    for _ in range(THREADS_MAX):  # each may meet its n-th call
        try:
            work()
        except Interrupted:
            if not assert_ended_or_well(load.yard):
                return
            work = load.check
        else:
            return
    raise AssertionError("it goes on and works at nothing")


def says_why(yard: Yard) -> None:
    """Check that a yard that has ended said why, and no more than that."""
    log = yard.read_log()
    assert "stopped, the store failed" in log, log
    assert "Traceback" not in log, log


def disturb_work(place: Path, upstream: Upstream, call: str, number: int) -> bool:
    """Let the n-th call fail while a load runs; return whether one did."""
    place.mkdir()
    with Yard(place / "data", upstream.url, slots=16, bounds=BOUNDS) as yard:
        load = Load(yard, upstream, prefix=f"{call}{number}-")
        with Disturbed(yard, call, f"error=EIO:when={number}") as disturbed:
            go_on(load, load.run)
            injected = disturbed.injected
        if injected and call in SYNCS and yard.process is not None:
            assert yard.wait() == 1, "a sync has failed, and the yard goes on"
        is_well = yard.process is not None and assert_ended_or_well(yard)
        if not is_well or yard.stop() != 0:  # it may meet the failure when it is told to end
            says_why(yard)
        yard.start()
        works_again(load)
    return injected > 0


@pytest.mark.timeout(7_200 if ALL else 900)
@pytest.mark.parametrize(
    ("call", "number"), some(WORKING, "fdatasync", "fsync", "pwrite64", "rename", "openat")
)
def test_a_failing_call_loses_nothing_that_was_acknowledged(
    upstream: Upstream, tmp_path: Path, call: str, number: int
) -> None:
    failed = every(number, lambda n: disturb_work(tmp_path / f"{n}", upstream, call, n))
    print(f"\nfaults at work: {call} failed at {failed} places")


# At the start -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A yard that was killed with an ended batch, one half done, and one canceled."""
    with Upstream() as upstream:
        data = tmp_path_factory.mktemp("left") / "data"
        with Yard(data, upstream.url, slots=16, bounds=BOUNDS) as yard:
            load = Load(yard, upstream, prefix="left-")
            load.end(load.create(9))
            load.create(6, "|hold:left-gate0")
            load.create(40)
            load.cancel(load.create(5, "|hold:left-gate1"))
            upstream.wait_until(lambda: upstream.number_answered("left-load2") > 20, "answers")
        yield load


def disturb_start(place: Path, left: Load, call: str, number: int) -> bool:
    """Let the n-th call fail from the start on; return whether one did."""
    place.mkdir()
    shutil.copytree(left.yard.data, place / "data")
    upstream = left.upstream
    traced = tracing.TracedYard(place / "data", upstream.url, slots=16, bounds=BOUNDS)
    traced.tracing = ("-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={number}")
    load = Load(traced, upstream, left.prefix, [replace(made) for made in left.made])
    try:
        traced.launch()
        try:
            traced.wait_ready()
        except AssertionError as error:
            if not any(f"did not start ({code})" in str(error) for code in (1, 2)):
                raise
        else:
            go_on(load, load.check)
            if traced.process is not None and assert_ended_or_well(traced):
                assert traced.stop() == 0, traced.read_log()
    finally:
        if traced.process is not None:
            traced.kill()
    trace = traced.traces[0]
    poll(lambda: "+++" in tracing.tail(trace), lambda: f"strace did not finish {trace}")
    with Yard(place / "data", upstream.url, slots=16, bounds=BOUNDS) as yard:
        load.yard = yard
        works_again(load)
    return "(INJECTED)" in trace.read_text("ascii", "replace")


@pytest.mark.timeout(7_200 if ALL else 900)
@pytest.mark.parametrize(("call", "number"), some(STARTING, "fdatasync", "fsync", "pwrite64"))
def test_a_failing_call_at_the_start_is_survived_by_the_next_start(
    left: Load, tmp_path: Path, call: str, number: int
) -> None:
    failed = every(number, lambda n: disturb_start(tmp_path / f"{n}", left, call, n))
    print(f"\nfaults at the start: {call} failed at {failed} places")


def start_with(left: Load, place: Path, call: str, number: int) -> str:
    """Start with a fault that no start survives; return what the yard says."""
    shutil.copytree(left.yard.data, place / "data")
    yard = tracing.TracedYard(place / "data", left.upstream.url, slots=16, bounds=BOUNDS)
    yard.tracing = ("-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={number}")
    yard.launch()
    assert yard.wait() in {1, 2}
    return yard.read_log()


def test_a_ledger_that_cannot_be_read_is_not_called_something_else(
    left: Load, tmp_path: Path
) -> None:
    """Who is told that it is no ledger may remove it."""
    said = start_with(left, tmp_path, "pwrite64", 1)
    assert "I/O error" in said
    assert "not a ledger" not in said


def test_a_lock_file_that_cannot_be_written_is_named(left: Load, tmp_path: Path) -> None:
    said = start_with(left, tmp_path, "ftruncate", 1)
    assert "Traceback" not in said
    assert "cannot use" in said


def test_a_failure_to_clear_up_harms_nobody(left: Load, tmp_path: Path) -> None:
    shutil.copytree(left.yard.data, tmp_path / "data")
    with Yard(tmp_path / "data", left.upstream.url, slots=16, bounds=BOUNDS) as yard:
        load = Load(yard, left.upstream, left.prefix, [replace(made) for made in left.made])
        with Disturbed(yard, "unlink", "error=EIO"):
            load.open_gates()
            for made in load.made:
                load.end(made)
        load.check()
        assert "Traceback" not in yard.read_log()


# After a failed sync ------------------------------------------------------------------------------


def test_nothing_is_written_to_the_ledger_after_a_sync_of_it_has_failed(
    upstream: Upstream, tmp_path: Path
) -> None:
    """The kernel may have dropped the pages of the log: whoever copies them copies something else,
    and a second sync returns as if nothing had happened.
    """
    with Yard(tmp_path / "data", upstream.url, slots=16, bounds=BOUNDS) as yard:
        load = Load(yard, upstream)
        files = [yard.data / name for name in ("ledger.db", "ledger.db-wal")]
        with Disturbed(
            yard, "fdatasync", "error=EIO:when=4", *files, also="pwrite64,ftruncate,unlink"
        ) as disturbed:
            go_on(load, load.run)
            assert yard.process is None, "the yard goes on"
        says_why(yard)
    failed = next(n for n, line in enumerate(disturbed.report) if "(INJECTED)" in line)
    assert [line for line in disturbed.report[failed + 1 :] if "+++" not in line] == []


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "mkdir,mkdirat"])
def test_after_a_call_has_failed_under_a_create_the_yard_answers_and_ends(
    upstream: Upstream, tmp_path: Path, call: str
) -> None:
    with Yard(tmp_path / "data", upstream.url, slots=16, bounds=BOUNDS) as yard:
        load = Load(yard, upstream)
        root = yard.data / "segments"
        with Disturbed(yard, call, "error=EIO:when=1", also="fsync,fdatasync") as disturbed:
            with pytest.raises(Interrupted, match="500"):
                load.create(3)
            assert yard.wait() == 1
        says_why(yard)
        failed = next(n for n, line in enumerate(disturbed.report) if "(INJECTED)" in line)
        # Of directories; the ledger, which has not failed, is folded at the end.
        assert not [line for line in disturbed.report[failed + 1 :] if " fsync(" in line]
        yard.start()
        assert list(root.glob("*/*")) == [], "nothing is left of it"
        works_again(load)


@pytest.mark.parametrize("when", ["it is written", "it is adopted"])
def test_a_segment_whose_sync_has_failed_is_copied_and_never_synced_again(
    upstream: Upstream, tmp_path: Path, when: str
) -> None:
    prompts = ["dead-0", "dead-1|hold:second", "dead-2|hold:third"]
    data = tmp_path / "data"
    with Yard(data, upstream.url, slots=16, bounds=BOUNDS) as yard:
        batch_id = yard.create([request(prompt) for prompt in prompts])["id"]
        poll(lambda: written_lines(yard) == 1, lambda: "no result is written")
        (segment,) = data.glob(f"segments/??/{batch_id}/r/0.*")
        if when == "it is written":
            with Disturbed(yard, "fdatasync", "error=EIO:when=1", segment):
                upstream.gate("second").open()
                assert yard.wait() == 1
            says_why(yard)
        else:
            yard.kill()
    again = tracing.TracedYard(data, upstream.url, slots=16, bounds=BOUNDS)
    if when == "it is adopted":
        again.tracing = ("-e", "trace=fdatasync", "-P", str(segment))
        again.tracing += ("-e", "inject=fdatasync:error=EIO:when=1")
        again.launch()
        assert again.wait() == 1
        says_why(again)
    again.tracing = ("-y", "-e", "trace=fdatasync")
    for gate in ("second", "third"):
        upstream.gate(gate).open()
    with again:
        again.wait_ended(batch_id)
        assert_answered(again.results(batch_id), prompts)
    synced = again.traces[-1].read_text("ascii", "replace")
    assert f"/{batch_id}/r/0." in synced
    assert segment.name not in synced
    (manifest,) = data.glob(f"segments/??/{batch_id}/manifest.json")
    assert segment.name not in manifest.read_text("utf-8")
    assert upstream.counts["dead-0"] == 1, "what was recorded is not asked again"
    assert_holds(data)


# Reading ------------------------------------------------------------------------------------------


def test_results_that_cannot_be_read_cut_the_transfer_and_nothing_else(
    upstream: Upstream, tmp_path: Path
) -> None:
    with Yard(tmp_path / "data", upstream.url, bounds=BOUNDS) as yard:
        load = Load(yard, upstream)
        bad, good = load.create(9), load.create(3)
        load.end(bad)
        load.end(good)
        (segment, *_) = (yard.data / "segments").glob(f"??/{bad.batch_id}/r/*")
        with Disturbed(yard, "preadv,preadv2", "error=EIO", segment) as disturbed:
            with pytest.raises((Interrupted, AssertionError)):
                load.end(bad)
            load.end(good)
            load.end(load.create(2))
            assert disturbed.injected
        load.check()


def test_results_that_cannot_be_read_before_the_end_of_their_batch_are_made_again(
    upstream: Upstream, tmp_path: Path
) -> None:
    prompts = [*(f"unreadable-{n}" for n in range(8)), "last|hold:late"]
    with Yard(tmp_path / "data", upstream.url, slots=16, bounds=BOUNDS) as yard:
        batch_id = yard.create([request(prompt) for prompt in prompts])["id"]
        yard.wait_progress(batch_id, lambda shown: shown["shards_done"] == 2)
        (segment,) = (yard.data / "segments").glob(f"??/{batch_id}/r/0.*")
        with Disturbed(yard, "pread64", "error=EIO", segment) as disturbed:
            upstream.gate("late").open()
            yard.wait_ended(batch_id)
            assert disturbed.injected
        assert_answered(yard.results(batch_id), prompts)
        repeated = {name for name, number in upstream.counts.items() if number > 1}
        assert repeated == {f"unreadable-{n}" for n in range(4)}
        assert "Input/output error" in yard.read_log()
        assert "Traceback" not in yard.read_log()


# A limit on the size of files ---------------------------------------------------------------------


def grow(load: Load) -> None:
    """Work until a file has grown as far as it may: then something is refused, or waits.

    Raises:
        Interrupted: it was refused, or the yard has ended.
    """
    for _ in range(200):
        made = load.create(9)

        def is_over(made: Made = made) -> bool:
            shown = load.yard.request("GET", f"{BATCHES}/{made.batch_id}", None, HEADERS)
            return shown.json()["processing_status"] == "ended" or is_waiting(load.yard)

        try:
            poll(is_over, load.yard.read_log)
        except OSError as error:
            raise Interrupted(repr(error)) from error
        if is_waiting(load.yard):
            return
    raise AssertionError("its files grow and grow")


def is_waiting(yard: Yard) -> bool:
    return "until there is room" in yard.read_log()


@pytest.mark.parametrize("size", [*range(500, 200_000, 7_919)] if ALL else [3_000])
def test_files_that_may_not_grow_lose_nothing(
    upstream: Upstream, tmp_path: Path, size: int
) -> None:
    """Writes fail in the middle: some bytes are taken, the rest is refused."""
    with Yard(tmp_path / "data", upstream.url, slots=16, bounds=BOUNDS) as yard:
        load = Load(yard, upstream)
        load.end(load.create(5))
        assert yard.process is not None
        endless = resource.RLIM_INFINITY
        resource.prlimit(yard.process.pid, resource.RLIMIT_FSIZE, (size, endless))
        with suppress(Interrupted):
            grow(load)
        if assert_ended_or_well(yard):
            resource.prlimit(yard.process.pid, resource.RLIMIT_FSIZE, (endless, endless))
            works_again(load)  # by itself
            yard.kill()
        else:
            says_why(yard)
        yard.start()
        works_again(load)
