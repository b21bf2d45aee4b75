"""Writes meet `ENOSPC`, wherever this runs: no file system has to be mounted for it.

What the server writes itself is refused by a layer under it (`full_serve.py`), what SQLite writes
by strace. `test_full_disk.py` has the same on a real file system, where one can be mounted.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crash.checking import written_lines
from disk.loads import Interrupted, Load
from disk.test_failed_ledger import hold, shard_of, taken
from disk.tracing import Disturbed
from helpers_upstream import Upstream
from helpers_yard import BATCHES, HEADERS, QUICK, Yard, assert_answered, poll, request

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("_strace")

BOUNDS = QUICK | {
    "limits:SHARD_REQUESTS": 8,
    "limits:DISK_RESERVE_BYTES_DEFAULT": 4 << 20,
    "limits:DISK_FULL_WAIT_S": 0.05,
}


class FullYard(Yard):
    """A yard whose disk can be full."""

    @property
    def switch(self) -> Path:
        return self.data.with_name("full")

    def command(self) -> list[str]:
        python, script, *rest = super().command()
        assert python == sys.executable
        assert script.endswith("helpers_serve.py")
        program = str(Path(__file__).with_name("full_serve.py"))
        return [python, program, str(self.switch), *rest]

    @contextlib.contextmanager
    def full(self, error: str = "ENOSPC") -> Iterator[None]:
        """Leave no room for a while; what SQLite writes meets this error."""
        with Disturbed(self, "pwrite64,fallocate,mkdir", f"error={error}"):
            self.switch.touch()
            try:
                yield
            finally:
                self.switch.unlink()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def yard(tmp_path: Path, upstream: Upstream) -> Iterator[FullYard]:
    with FullYard(tmp_path / "data", upstream.url, slots=16, bounds=BOUNDS) as running:
        yield running
        assert "Traceback" not in running.read_log()


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_a_create_that_finds_no_room_is_an_overload_and_leaves_nothing(
    yard: FullYard, upstream: Upstream, error: str
) -> None:
    load = Load(yard, upstream)
    load.end(load.create(5))
    before = yard.files()
    body = {"requests": [request(f"refused-{n}") for n in range(2_000)]}
    with yard.full(error):
        for _ in range(3):
            answer = yard.post(BATCHES, body)
            assert answer.status == 529, answer.body
            assert answer.json()["error"]["type"] == "overloaded_error"
            assert int(answer.headers["retry-after"]) > 0
        assert yard.files() == before, "something is half written"
        load.look(load.made[0])
    load.run()
    load.check()
    assert upstream.number("refused") == 0
    assert yard.starts == 1


@pytest.mark.parametrize("error", ["EDQUOT", "EFBIG"])
def test_a_ledger_that_finds_no_room_under_a_quota_or_a_limit_waits_as_on_a_full_disk(
    yard: FullYard, upstream: Upstream, error: str
) -> None:
    load = Load(yard, upstream)
    load.end(load.create(5))
    with Disturbed(yard, "pwrite64", f"error={error}") as disturbed:
        for _ in range(3):
            assert yard.post(BATCHES, {"requests": [request("unwritten")]}).status == 529
        assert disturbed.injected
    load.run()
    load.check()
    assert upstream.number("unwritten") == 0
    assert yard.starts == 1


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_a_running_batch_waits_for_room_and_ends_without_a_restart(
    yard: FullYard, upstream: Upstream, error: str
) -> None:
    load = Load(yard, upstream)
    running = load.create(40, "|hold:room")
    upstream.wait_calls("load0-", 16)
    with yard.full(error):
        upstream.gate("room").open()
        upstream.wait_until(lambda: upstream.number_answered("load0-") >= 8, "answers")
        for _ in range(50):  # what cannot be written shows itself at the next renewal at the latest
            with contextlib.suppress(Interrupted):
                load.look(running)
        assert len(yard.read_log()) < 100_000, "a tight loop"
    load.end(running)
    load.check()
    counts = [upstream.counts[prompt.partition("|")[0]] for prompt in running.prompts]
    assert counts == [1] * 40, "answers that had come were thrown away"
    assert yard.starts == 1


def test_a_sync_that_fails_for_want_of_room_is_marked_with_that_of_the_ballast(
    yard: FullYard, upstream: Upstream
) -> None:
    prompts = ["unsynced-0", "unsynced-1|hold:second"]
    batch_id = yard.create([request(prompt) for prompt in prompts])["id"]
    poll(lambda: written_lines(yard) == 1, lambda: "no result is written")
    (segment,) = yard.data.glob(f"segments/??/{batch_id}/r/0.*")
    yard.switch.with_suffix(".marks").touch()
    with Disturbed(yard, "fdatasync", "error=ENOSPC:when=1", segment):
        upstream.gate("second").open()
        assert yard.wait() == 1
    assert not (yard.data / "ballast").exists()
    assert segment.parent.with_name("sync-failed").exists()
    yard.start()
    yard.wait_ended(batch_id)
    assert_answered(yard.results(batch_id), prompts)
    (manifest,) = yard.data.glob(f"segments/??/{batch_id}/manifest.json")
    assert segment.name not in manifest.read_text("utf-8"), "it is copied"


def test_the_note_that_the_ledger_has_failed_takes_the_room_of_the_ballast(
    tmp_path: Path, upstream: Upstream
) -> None:
    bounds = BOUNDS | {"limits:RENEW_INTERVAL_S": 0.2}
    with FullYard(tmp_path / "data", upstream.url, slots=16, bounds=bounds) as yard:
        batch_id = hold(yard, upstream)
        yard.switch.with_suffix(".marks").touch()
        files = [yard.data / name for name in ("ledger.db", "ledger.db-wal")]
        with Disturbed(yard, "fdatasync,fsync", "error=ENOSPC", *files) as disturbed:
            assert yard.wait() == 1
            assert disturbed.injected == 1, "no sync is repeated"
        assert not (yard.data / "ballast").exists()
        assert (yard.data / "ledger.failed").exists()
        yard.start()
        taken(yard, upstream, batch_id, 2)
        assert shard_of(yard)[2] == 0, "a shard is blamed"


def test_a_delete_that_finds_no_room_gives_up_the_ballast_and_works(
    yard: FullYard, upstream: Upstream
) -> None:
    load = Load(yard, upstream)
    old = load.create(20)
    load.end(old)
    ballast = yard.data / "ballast"
    assert ballast.exists()
    # The first write of the ledger finds none, and the ballast makes some.
    with Disturbed(yard, "pwrite64", "error=ENOSPC:when=1") as disturbed:
        answer = yard.request("DELETE", f"{BATCHES}/{old.batch_id}", None, HEADERS)
        assert disturbed.injected
    assert answer.status == 200, answer.body
    assert not ballast.exists()
    assert not any(str(old.batch_id) in name for name in yard.files())
    load.end(load.create(3))
