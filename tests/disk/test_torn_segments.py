"""Segments are cut at any byte, or a bit of them flips: never is a wrong byte served or sent.

What is cut or flipped costs the batch that it belongs to, at most, and it is named. The other
batches go on. `BATCHYARD_TORN_STEP=1`, as in `make power`, tries every byte.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from disk.loads import Load, Made
from disk.recovery import judge, recover, synced_lines
from disk.volume import Cut, write_tree
from helpers_upstream import Upstream
from helpers_yard import BATCHES, QUICK, Yard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from disk.story import Story

STEP = int(os.environ.get("BATCHYARD_TORN_STEP", "0"))
PLACES = 40
"""How many places of a file are tried without BATCHYARD_TORN_STEP."""
LONG = pytest.mark.timeout(7_200 if STEP else 900)
LAST_S = 20.0
"""Simulated seconds: a shard that is left alone never ends."""


def places(length: int) -> range:
    return range(0, length, STEP or max(1, length // PLACES))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


# What is served -----------------------------------------------------------------------------------


@dataclass
class Served:
    """A running yard with two batches that have ended."""

    yard: Yard
    bad: Made
    good: Made

    def file(self, pattern: str) -> Path:
        (found, *_) = sorted(
            (self.yard.data / "segments").glob(f"??/{self.bad.batch_id}/{pattern}")
        )
        return found

    def results(self, made: Made) -> bytes | None:
        """Return what a client gets, None when it sees that it is not all."""
        try:
            answer = self.yard.get(f"{BATCHES}/{made.batch_id}/results")
        except (http.client.HTTPException, OSError):
            return None
        assert answer.status in {200, 500}, answer.body
        return answer.body if answer.status == 200 else None

    def wrong(self, path: Path, changed: Callable[[bytes, int], bytes]) -> list[int]:
        """Change a file at many places, one after the other; return where that went unnoticed."""
        whole = path.read_bytes()
        wrong = []
        try:
            for place in places(len(whole)):
                path.write_bytes(changed(whole, place))
                served = self.results(self.bad)
                if served is not None and served != self.bad.results:
                    wrong.append(place)
                assert self.results(self.good) == self.good.results
        finally:
            path.write_bytes(whole)
        assert self.results(self.bad) == self.bad.results
        return wrong


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Upstream() as upstream:
        data = tmp_path_factory.mktemp("served") / "data"
        with Yard(data, upstream.url, bounds=QUICK | {"limits:SHARD_REQUESTS": 4}) as yard:
            load = Load(yard, upstream)
            bad, good = load.create(9), load.create(3)
            load.end(bad)
            load.end(good)
            yield Served(yard, bad, good)
            assert "defect" not in yard.read_log(), yard.read_log()
            assert str(bad.batch_id) in yard.read_log(), "what is damaged is not named"


@LONG
@pytest.mark.parametrize("pattern", ["r/1.*", "manifest.json"])
def test_a_cut_file_is_never_served_as_if_it_were_whole(served: Served, pattern: str) -> None:
    assert served.wrong(served.file(pattern), lambda data, place: data[:place]) == []


@LONG
@pytest.mark.parametrize("pattern", ["r/1.*", "manifest.json"])
def test_a_flipped_bit_is_never_served(served: Served, pattern: str) -> None:
    assert served.wrong(served.file(pattern), flipped) == []


# What is taken over -------------------------------------------------------------------------------


@dataclass
class Left:
    """What a kill left, in the middle of a batch."""

    story: Story
    tree: dict[str, bytes | None]
    moment: int
    batch_id: str
    room: Path
    ended: int = 0
    """How many starts could end the batch."""

    def files(self, part: str) -> list[str]:
        """Return the files of the batch, those of its results longest first."""
        found = [p for p, d in self.tree.items() if f"/{self.batch_id}/{part}" in p and d]
        return sorted(found, key=lambda path: -len(self.tree[path] or b""))

    def committed(self) -> list[str]:
        """Return those of its results that the ledger names."""
        image = self.room / "ledger"
        write_tree(self.tree, image)
        try:
            with contextlib.closing(sqlite3.connect(image / "data" / "ledger.db")) as db:
                named = str(db.execute("SELECT manifest FROM shards").fetchall())
        finally:
            shutil.rmtree(image)
        return [path for path in self.files("r/") if path.rpartition("/")[2] in named]

    def start(self, path: str, data: bytes | None, *, canceled: bool = False) -> list[str]:
        """Start with other bytes in one file; return what is wrong, but for a batch refused.

        Args:
            path: of the file.
            data: its bytes; None when it is gone.
            canceled: whether the batch has been canceled before.
        """
        tree = {k: v for k, v in self.tree.items() if k != path}
        if data is not None:
            tree[path] = data
        image = self.room / "image"
        write_tree(tree, image)
        if canceled:
            with contextlib.closing(sqlite3.connect(image / "data" / "ledger.db")) as db, db:
                db.execute(
                    "UPDATE batches SET cancel_us = created_us WHERE id = ?", [self.batch_id]
                )
        try:
            recovered = recover(image / "data", LAST_S)
        finally:
            shutil.rmtree(image)
        batch = self.story.batches[self.batch_id]
        foreign = recovered.called - {
            prompt for each in self.story.batches.values() for prompt in each.prompts.values()
        }
        wrong = [f"{prompt!r} was sent, which nobody asked for" for prompt in foreign]
        self.ended += recovered.broken.pop(batch.id, None) is None
        return wrong + judge(
            recovered,
            self.story.expected(self.moment),
            self.story.batches,
            synced_lines({k: v for k, v in tree.items() if self.batch_id not in k}),
        )


@pytest.fixture
def left(told: Story, memory: Path) -> Left:
    """Return the disk at the end of the first life, whose second batch is half done."""
    moment = told.recording.moments[1]
    base = told.recording.base
    cut = Cut(moment, "kept", random.Random(0), certain=lambda node: node is base)
    return Left(told, cut.tree(base), moment, list(told.batches)[1], memory)


@LONG
def test_a_cut_result_is_taken_up_to_its_last_whole_line(left: Left) -> None:
    paths = left.files("r/")
    assert len(paths) > 1
    for path in paths:
        whole = left.tree[path]
        assert whole is not None
        for place in places(len(whole)):
            assert left.start(path, whole[:place]) == [], f"{path} cut to {place}"


@LONG
def test_a_flipped_bit_in_a_committed_result_is_never_served_and_what_it_cost_is_made_again(
    left: Left,
) -> None:
    paths = left.committed()
    assert paths
    wrong = []
    starts = 0
    for path in paths:
        whole = left.tree[path]
        assert whole is not None
        for place in places(len(whole)):
            wrong += left.start(path, flipped(whole, place))
            starts += 1
    assert wrong == []
    assert left.ended == starts, "a batch stays open for ever"


@LONG
def test_a_committed_result_that_is_cut_or_gone_is_made_again(left: Left) -> None:
    paths = left.committed()
    assert paths
    starts = 0
    for path in paths:
        whole = left.tree[path]
        assert whole is not None
        for data in (None, *(whole[:place] for place in places(len(whole)))):
            assert left.start(path, data) == [], f"{path} cut to {data!r}"
            starts += 1
    assert left.ended == starts, "a batch stays open for ever"


@LONG
def test_a_flipped_bit_in_a_line_that_no_row_names_yet_leaves_one_whole_line_each(
    left: Left,
) -> None:
    """There is no checksum of such a line, and its text may be another; but whatever a start takes
    over are whole lines of known requests.
    """
    paths = set(left.files("r/")) - set(left.committed())
    assert paths
    for path in paths:
        whole = left.tree[path]
        assert whole is not None
        for place in places(len(whole)):
            wrong = left.start(path, flipped(whole, place))
            worse = [fault for fault in wrong if "does not parse" in fault or "instead of" in fault]
            assert worse == [], f"{path} with another bit at {place}"


@LONG
def test_a_cut_requests_segment_costs_its_own_batch_only(left: Left) -> None:
    (path,) = left.files("requests")
    whole = left.tree[path]
    assert whole is not None
    for place in places(len(whole)):
        assert left.start(path, whole[:place]) == [], f"cut to {place}"


@LONG
def test_a_flipped_bit_in_a_request_is_never_sent(left: Left) -> None:
    (path,) = left.files("requests")
    whole = left.tree[path]
    assert whole is not None
    wrong = []
    for place in places(len(whole)):
        wrong += left.start(path, flipped(whole, place))
    assert wrong == []


@LONG
def test_a_batch_with_damaged_requests_is_named(
    left: Left, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = left.files("requests")
    with contextlib.suppress(AssertionError):
        left.start(path, b"")
    assert f"damaged shard={left.batch_id}/" in caplog.text


@LONG
def test_a_canceled_batch_with_a_flipped_bit_in_its_requests_ends_with_their_own_ids(
    left: Left,
) -> None:
    """Or not at all, when the bit is in an id or a length: nobody can be told then whose it was."""
    (path,) = left.files("requests")
    whole = left.tree[path]
    assert whole is not None
    tried = places(len(whole))
    wrong = []
    for place in tried:
        wrong += left.start(path, flipped(whole, place), canceled=True)
    assert [fault for fault in wrong if not fault.endswith(" is canceled")] == []
    assert left.ended > len(tried) / 2, "most bytes are params"
