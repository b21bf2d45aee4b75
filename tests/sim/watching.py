"""What must be true of the ledger after every step, whatever happened, by looking at its rows.

Knows what was there at the last look, so that it sees what may never change: an end, a committed
result, the number of an attempt, what an attempt has adopted.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

from batchyard.result import read_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READY, RUNNING, DONE = 0, 1, 2
COUNTS = ("succeeded", "errored", "canceled", "expired")
FIXED = ("seq", "workspace", "requests", "version", "created_us", "expires_us")

Row = dict[str, Any]


class Watch:
    """Looks at one ledger, again and again."""

    def __init__(
        self, ledger: Path, read: Callable[[str, int], bytes], synced: Callable[[str], int]
    ) -> None:
        """Begin.

        Args:
            ledger: its file.
            read: the first bytes of a segment.
            synced: how many bytes of a segment survive a power cut.
        """
        self._ledger = ledger
        self._read = read
        self._synced = synced
        self._batches: dict[str, Row] = {}
        self._shards: dict[tuple[str, int], Row] = {}
        self._ids: dict[tuple[str, int], frozenset[str]] = {}
        self.deleted: set[str] = set()
        """Batches that may be gone."""
        self.looks = 0

    def look(self) -> None:
        """Look at everything.

        Raises:
            AssertionError: something is not as it must be.
        """
        self.looks += 1
        batches, shards = self._rows()
        for batch_id, old in self._batches.items():
            if batch_id not in batches:
                assert batch_id in self.deleted, f"{batch_id} is gone"
                assert old["ended_us"] is not None, f"{batch_id} is gone before it had ended"
        for batch_id, row in batches.items():
            assert batch_id not in self.deleted, f"{batch_id} is back after its deletion"
            self._batch(row, self._batches.get(batch_id))
        for (batch_id, _), old in self._shards.items():
            if batch_id in batches and batches[batch_id]["ended_us"] is None:
                assert (batch_id, old["idx"]) in shards, "a shard of an open batch is gone"
        taken: dict[str, set[str]] = {}
        for (batch_id, index), row in shards.items():
            assert batches[batch_id]["ended_us"] is None, "an ended batch has shards"
            self._shard(row, self._shards.get((batch_id, index)))
            self._results(row, taken.setdefault(batch_id, set()))
        self._batches, self._shards = batches, shards

    def _rows(self) -> tuple[dict[str, Row], dict[tuple[str, int], Row]]:
        """Return batches by id, and shards by batch and index."""
        db = sqlite3.connect(f"file:{self._ledger}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(db):
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")  # both tables as of one moment
            batches = {row["id"]: dict(row) for row in db.execute("SELECT * FROM batches")}
            found = map(dict, db.execute("SELECT * FROM shards ORDER BY batch, idx"))
            return batches, {(row["batch"], row["idx"]): row for row in found}

    def _batch(self, row: Row, old: Row | None) -> None:
        name = row["id"]
        total = sum(row[kind] for kind in COUNTS)
        if row["ended_us"] is None:
            assert total == 0, f"{name} shows counts before it has ended"
        else:
            assert total == row["requests"], f"{name} has {total} of {row['requests']} results"
        times = [row["created_us"], row["cancel_us"], row["ended_us"], row["archived_us"]]
        told = [time for time in times if time is not None]
        assert told == sorted(told), f"the times of {name} are out of order"
        if old is None:
            return
        assert all(row[key] == old[key] for key in FIXED), f"{name} is another batch"
        if old["cancel_us"] is not None:
            assert row["cancel_us"] == old["cancel_us"], f"{name} was canceled twice"
        if old["ended_us"] is not None:
            frozen = {key: value for key, value in old.items() if key != "archived_us"}
            assert frozen.items() <= row.items(), f"{name} changed after its end"

    def _shard(self, row: Row, old: Row | None) -> None:
        name = f"{row['batch']}/{row['idx']}"
        assert (row["owner"] is not None) == (row["state"] == RUNNING) or row["state"] == DONE, name
        if old is None:
            return
        if old["state"] == DONE:
            assert row == old, f"the result of {name} changed after its commit"
        assert row["attempt"] >= old["attempt"], f"{name} went back to an earlier attempt"
        if row["state"] == RUNNING and row["owner"] != old["owner"]:
            assert row["attempt"] > old["attempt"], f"{name} has a new owner and the old attempt"
        before, after = json.loads(old["manifest"]), json.loads(row["manifest"])
        assert after[: len(before)] == before, f"{name} gave up what was adopted"

    def _results(self, row: Row, taken: set[str]) -> None:
        """Check the extents that a row names; `taken` are ids of its batch that are in others."""
        name = f"{row['batch']}/{row['idx']}"
        lines = 0
        for segment, length, *_ in json.loads(row["manifest"]):
            attempt = int(segment.rpartition("/")[2].split(".")[1])
            assert attempt <= row["attempt"], f"{name} has results of an attempt that never was"
            assert self._synced(segment) >= length, (
                f"{name} names {length} bytes of {segment}, of which {self._synced(segment)} "
                "survive a power cut"
            )
            ids = self._lines(segment, length)
            assert taken.isdisjoint(ids), f"{name} has two results of {sorted(taken & ids)}"
            taken |= ids
            lines += len(ids)
        if row["state"] == DONE:
            assert lines == row["n"] == sum(row[kind] for kind in COUNTS), f"{name} is not whole"

    def _lines(self, segment: str, length: int) -> frozenset[str]:
        """Return the ids in the first bytes of a segment, which do not change once named."""
        found = self._ids.get((segment, length))
        if found is None:
            ids = [read_line(line)[0] for line in self._read(segment, length).split(b"\n")[:-1]]
            found = self._ids[segment, length] = frozenset(ids)
            assert len(found) == len(ids), f"{segment} has two results of one request"
        return found
