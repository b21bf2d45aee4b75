"""A disk that damages results again and again: what that may cost, in virtual time."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import checksum, limits, segments
from batchyard.dispatch import adopt as adopting
from batchyard.dispatch.ending import read_manifest
from batchyard.dispatch.keeper import Keeper
from batchyard.model import Counts
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.writing import FileAppender
from batchyard.upstream import Reply
from store.working import Working, until
from store.yards import message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.ledger import Ledger
    from batchyard.upstream import Call, Outcome

pytestmark = pytest.mark.anyio

MOST = limits.DAMAGES_MAX


class Answering:
    """Answers at once, and keeps count."""

    name = "up"
    billing = "simulated"
    fetches_urls = True
    unset_key = None

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    async def send(self, call: Call) -> Outcome:
        self.calls[call.custom_id] = self.calls.get(call.custom_id, 0) + 1
        return Reply(200, message(call.custom_id))


class Scratching(DirectorySegments):
    """Damages the end of each segment of results that holds certain bytes, so many times."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root
        self.holding = b""
        self.left = 0

    def appender(self, name: str) -> FileAppender:
        return _Scratched(self, name)


class _Scratched(FileAppender):
    def __init__(self, store: Scratching, name: str) -> None:
        super().__init__(store.root, name, store.syncs, None, store.files)
        self._store = store

    def close(self) -> None:
        super().close()
        path = self._store.root / self.name
        data = path.read_bytes()
        if data and self._store.holding in data and self._store.left:
            self._store.left -= 1
            path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])


class Bad(Working):
    """A worker on a bad disk, with one batch of two requests."""

    def __init__(self, ledger: Ledger, root: Path) -> None:
        self.disk, self.upstream = Scratching(root), Answering()
        super().__init__(ledger, self.disk, self.upstream, requests=2, slots=1)
        self.keeper = Keeper(ledger, self.store, self.clock, owner=self.worker.owner)

    async def step(self) -> None:
        """Let a second pass, and all that it brings."""
        await self.clock.advance(limits.IDLE_POLL_S)
        for _ in range(3):  # what is done in threads
            await asyncio.sleep(0.002)
            await self.clock.advance(limits.FLUSH_INTERVAL_S)

    async def until(self, what: Callable[[], Any]) -> None:
        await until(what, self.step)

    async def attempts(self) -> int:
        """Return which attempt has written last, of those that the row names."""
        (shard,) = await self.ledger.results(self.batch.id)
        return max(segments.attempt_of(extent.segment) for extent in shard.extents)

    async def is_finished(self) -> bool:
        return list(await self.ledger.finished()) == [self.batch.id]

    async def has_ended(self) -> bool:
        found = await self.ledger.get("w", self.batch.id)
        assert found is not None
        return found.status == "ended"

    async def results(self) -> dict[str, Any]:
        extents = read_manifest(self.store, self.batch.id)
        data = b"".join(self.store.read(e.segment, 0, e.length) for e in extents)
        lines = [json.loads(line) for line in data.splitlines()]
        assert len(lines) == 2
        return {line["custom_id"]: line["result"] for line in lines}


async def test_a_disk_that_damages_all_results_is_paid_for_a_few_times_and_never_spins(
    ledger: Ledger, tmp_path: Path
) -> None:
    bad = Bad(ledger, tmp_path / "s")
    bad.disk.left = 1_000
    await bad.create()
    async with bad.running():
        await bad.until(lambda: _is(bad, attempt=MOST + 1))
        assert bad.upstream.calls == {"r0": MOST, "r1": MOST}
        for _ in range(30):  # its errors were damaged too: until a sweep, that is left alone
            await bad.step()
        assert await bad.attempts() == MOST + 1
        assert not await bad.has_ended(), "nobody could read its results"
        await bad.keeper.sweep()
        assert not await bad.is_finished()
        await bad.until(lambda: _is(bad, attempt=MOST + 2))
        bad.disk.left = 0
        for _ in range(3):
            await bad.step()
        assert not await bad.has_ended()
        await bad.keeper.sweep()
        await bad.until(bad.has_ended)
        for each in (await bad.results()).values():
            assert each["type"] == "errored"
            error = each["error"]["error"]
            assert error["type"] == "api_error"
            assert "times the disk of the server damaged results" in error["message"]
        assert bad.upstream.calls == {"r0": MOST, "r1": MOST}
        account = await bad.worker.account(bad.batch.id)
        assert account is not None
        assert "end as errored" in account.damaged[0]


async def _is(bad: Bad, *, attempt: int) -> bool:
    is_reached = await bad.is_finished() and await bad.attempts() == attempt
    return is_reached and bad.worker.is_quiet(0)  # its segment is closed, and read once more


async def test_what_can_still_be_read_is_kept_when_the_rest_is_given_up(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (checksum, adopting):
        monkeypatch.setattr(module, "BLOCK_BYTES", 64)  # a line is several blocks
    bad = Bad(ledger, tmp_path / "s")
    bad.disk.holding, bad.disk.left = b'"r1"', MOST
    await bad.create()
    async with bad.running():
        await bad.until(bad.has_ended)
        found = await bad.results()
        assert (found["r0"]["type"], found["r1"]["type"]) == ("succeeded", "errored")
        assert bad.upstream.calls == {"r0": 1, "r1": MOST}
        assert bad.disk.left == 0


async def test_one_damage_less_and_all_is_made_again(ledger: Ledger, tmp_path: Path) -> None:
    bad = Bad(ledger, tmp_path / "s")
    bad.disk.left = MOST - 1
    await bad.create()
    async with bad.running():
        await bad.until(bad.has_ended)
        ended = await ledger.get("w", bad.batch.id)
        assert ended is not None
        assert ended.counts == Counts(succeeded=2)
        assert bad.upstream.calls == {"r0": MOST, "r1": MOST}
