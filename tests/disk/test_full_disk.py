"""The disk is full: a small file system in memory, filled to the last byte, under a real server.

Creates are refused whole; what is running keeps what it has recorded. The file system is mounted
for each test, which takes root and the right to. `test_no_room.py` has the same promises without
it, everywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

import pytest

from disk.loads import Interrupted, Load
from helpers_upstream import Upstream
from helpers_yard import BATCHES, HEADERS, QUICK, Yard, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BYTES = 12 << 20
RESERVE_BYTES = 4 << 20
BOUNDS = QUICK | {
    "limits:SHARD_REQUESTS": 8,
    "limits:DISK_RESERVE_BYTES_DEFAULT": RESERVE_BYTES,
    "limits:DISK_FULL_WAIT_S": 0.05,
    "limits:SPOOL_PIECE_BYTES": 64 << 10,
}


class Disk:
    """A file system that can be filled and freed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes, in blocks."""
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            with suppress(OSError):
                while self.free_bytes() > leave or not leave:
                    os.write(descriptor, bytes(4_096))
        finally:
            os.close(descriptor)
        assert self.free_bytes() <= leave

    def free_bytes(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={BYTES},mode=0700", "tmpfs", str(root)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def yard(disk: Disk, upstream: Upstream) -> Iterator[Yard]:
    """Return a running yard on the small disk, its log elsewhere."""
    yard = Yard(disk.root / "data", upstream.url, slots=16, bounds=BOUNDS)
    yard.log = disk.root.with_name("yard.log")
    with yard as running:
        yield running


def body(name: str, number: int, padding: int = 0) -> dict[str, object]:
    return {"requests": [request(f"{name}-{n}", metadata="x" * padding) for n in range(number)]}


def test_a_create_on_a_full_disk_is_refused_and_leaves_nothing(
    disk: Disk, yard: Yard, upstream: Upstream
) -> None:
    load = Load(yard, upstream)
    load.end(load.create(5))
    before = yard.files()
    disk.fill()
    for _ in range(5):
        answer = yard.post(BATCHES, body("refused", 2_000))
        assert answer.status in {500, 529}, answer.body
        assert answer.json()["type"] == "error"
    assert yard.files() == before, "something is half written"
    assert len(yard.read_log()) < 100_000, "a tight loop"
    disk.free()
    load.run()
    load.check()
    assert upstream.number("refused") == 0


def test_a_full_disk_is_an_overload_to_come_back_after(disk: Disk, yard: Yard) -> None:
    disk.fill()
    answer = yard.post(BATCHES, body("refused", 2_000))
    assert answer.status == 529, answer.body
    assert answer.json()["error"]["type"] == "overloaded_error"
    assert int(answer.headers["retry-after"]) > 0
    assert "Traceback" not in yard.read_log()


def test_creates_at_once_leave_the_reserve_alone(disk: Disk, yard: Yard) -> None:
    """Each alone would fit, and all are under way before the first is whole."""
    data = [json.dumps(body(f"at-once{n}", 5, 200_000)).encode() for n in range(8)]
    room = disk.free_bytes() - RESERVE_BYTES
    assert 2 * 3 * len(data[0]) < room < 8 * len(data[0])
    lowest = room
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(yard.connect())) for _ in data]
        for connection, sent in zip(connections, data, strict=True):
            connection.putrequest("POST", BATCHES)
            for name, value in (HEADERS | {"content-length": str(len(sent))}).items():
                connection.putheader(name, value)
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.endheaders(sent[:-1])
        for _ in range(20):
            yard.get(BATCHES)
            lowest = min(lowest, disk.free_bytes() - RESERVE_BYTES)
        for connection in connections:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(b"}")
        statuses = Counter(connection.getresponse().status for connection in connections)
    assert lowest >= 0, statuses
    assert statuses == {200: 2, 529: 6}
    assert yard.post(BATCHES, body("alone", 5, 200_000)).status == 200, "room was not given back"


def test_a_body_of_unknown_length_is_refused_before_it_takes_from_the_reserve(
    disk: Disk, yard: Yard
) -> None:
    found: list[int] = []

    def chunks() -> Iterator[bytes]:
        yield json.dumps(body("chunked", 1)).encode()[:-1] + b', "x": "'
        for _ in range(BYTES >> 16):
            yield b"x" * (64 << 10)
            yard.get(BATCHES)
            found.append(disk.free_bytes())

    answer = yard.request("POST", BATCHES, chunks())
    assert answer.status == 529, answer.body
    assert min(found) >= RESERVE_BYTES
    assert yard.files() == []


def test_below_the_reserve_a_repeat_is_answered_and_a_new_batch_refused_before_its_body(
    disk: Disk, yard: Yard
) -> None:
    first, again = (HEADERS | {"idempotency-key": "one"} for _ in range(2))
    again["x-stainless-retry-count"] = "1"
    batch = yard.post(BATCHES, body("repeated", 3), first).json()
    disk.fill(leave=RESERVE_BYTES - (1 << 20))
    for headers in (first, again):
        assert yard.post(BATCHES, body("repeated", 3), headers).json()["id"] == batch["id"]
    with closing(yard.connect()) as connection:
        connection.putrequest("POST", BATCHES)
        for name, value in (HEADERS | {"content-length": "900", "idempotency-key": "two"}).items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 529, "and its body was not waited for"
    assert yard.post(BATCHES, body("new", 3)).status == 529
    disk.free()
    assert yard.post(BATCHES, body("new", 3)).status == 200


def test_what_runs_when_the_disk_fills_is_recovered_when_there_is_room(
    disk: Disk, yard: Yard, upstream: Upstream
) -> None:
    """By a start at the latest: results that were synced are not asked for again."""
    load = Load(yard, upstream)
    done = load.create(30)
    load.end(done)
    running = load.create(40, "|hold:room")
    upstream.wait_calls("load1-", 16)
    disk.fill()
    upstream.gate("room").open()
    try:
        upstream.wait_until(lambda: upstream.number_answered("load1-") >= 8, "answers")
        disk.free()
        load.end(running)
    except Interrupted:
        assert yard.wait() == 1
        assert "stopped, the store failed" in yard.read_log()
        yard.start()
        load.end(running)
    assert len(yard.read_log()) < 100_000, "a tight loop"
    load.check()
    assert all(upstream.counts[prompt] == 1 for prompt in done.prompts)


def test_a_running_batch_waits_for_room_and_ends_without_a_restart(
    disk: Disk, yard: Yard, upstream: Upstream
) -> None:
    load = Load(yard, upstream)
    running = load.create(40, "|hold:room")
    upstream.wait_calls("load0-", 16)
    disk.fill()
    upstream.gate("room").open()
    upstream.wait_until(lambda: upstream.number_answered("load0-") >= 8, "answers")
    # What cannot be written shows itself at the next renewal at the latest.
    for _ in range(50):
        with suppress(Interrupted):
            load.look(running)
    disk.free()
    load.end(running)
    load.check()
    counts = [upstream.counts[prompt.partition("|")[0]] for prompt in running.prompts]
    assert counts == [1] * 40, "answers that had come were thrown away"


def test_a_yard_that_was_killed_starts_on_a_full_disk_and_deletes(
    disk: Disk, yard: Yard, upstream: Upstream
) -> None:
    load = Load(yard, upstream)
    old = load.create(2_000)
    load.end(old)
    running = load.create(30, "|hold:room")
    upstream.wait_calls("load1-", 16)
    yard.kill()
    disk.fill()
    yard.start()
    assert not (yard.data / "ballast").exists()
    assert (yard.data / "server.json").exists()
    load.look(old)
    assert yard.request("DELETE", f"{BATCHES}/{old.batch_id}", None, HEADERS).status == 200
    assert not any(str(old.batch_id) in name for name in yard.files())
    disk.free()
    upstream.gate("room").open()
    load.end(running)


def test_a_yard_whose_lock_a_power_cut_has_emptied_starts_on_a_full_disk(
    disk: Disk, yard: Yard, upstream: Upstream
) -> None:
    load = Load(yard, upstream)
    load.end(load.create(5))
    yard.kill()
    (yard.data / "lock").write_bytes(b"")
    disk.fill()
    yard.start()
    assert yard.process is not None
    assert (yard.data / "lock").read_text() == str(yard.process.pid)
    assert not (yard.data / "ballast").exists()
    load.look(load.made[0])


def test_deleting_works_on_a_full_disk_and_makes_room(
    disk: Disk, yard: Yard, upstream: Upstream
) -> None:
    load = Load(yard, upstream)
    old = load.create(2_000)
    load.end(old)
    disk.fill()
    assert yard.request("DELETE", f"{BATCHES}/{old.batch_id}", None, HEADERS).status == 200
    assert os.statvfs(disk.root).f_bavail > 0
    assert not any(str(old.batch_id) in name for name in yard.files())
    disk.free()
    load.end(load.create(3))
