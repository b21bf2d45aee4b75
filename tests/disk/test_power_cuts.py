"""The power is cut at every moment of a recorded life of a real server, and the rest is judged.

The recording has every byte that the server wrote and every sync (`tracing.py`); an image holds
what may be on the disk after a cut (`volume.py`); it is opened by the real code, worked to the end
and held against what clients had been told by then (`recovery.py`).

    make power

takes all moments and several recordings; `BATCHYARD_POWER_CUTS=all` and
`BATCHYARD_POWER_RECORDINGS` are what it sets, `BATCHYARD_POWER_SEED` repeats the chances.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from batchyard.errors import BatchyardError
from disk import story as stories
from disk.recovery import judge, recover, synced_lines
from disk.volume import FATES, Cut, Directory, Fate, File, no_node, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from disk.story import Story
    from disk.volume import Node

CUTS = os.environ.get("BATCHYARD_POWER_CUTS", "120")
"""How many moments, or `all`; each in every way in which bytes can be lost."""
RECORDINGS = int(os.environ.get("BATCHYARD_POWER_RECORDINGS", "1"))
SEED = int(os.environ.get("BATCHYARD_POWER_SEED", "20261122"))


@dataclass
class Sweep:
    """Cuts through one story."""

    story: Story
    room: Path
    seed: int = SEED
    ignored: Callable[[Node], bool] = no_node
    certain: Callable[[Node], bool] | None = None
    """By default the data directory was there before: see the test of that."""
    images: int = 0
    faults: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def cut(self, moment: int, fate: Fate) -> None:
        """Cut the power once and judge what is left."""
        self.images += 1
        base = self.story.recording.base
        cut = Cut(
            moment,
            fate,
            random.Random(f"{self.seed} {moment} {fate}"),
            self.ignored,
            self.certain or (lambda node: node is base),
        )
        image = self.room / f"image{self.images}"
        write_tree(cut.tree(base), image)
        try:
            recovered = recover(image / "data")
        except (AssertionError, BatchyardError, OSError, ExceptionGroup) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        else:
            # What survives even when all is lost that can be: nobody may be asked for it again.
            sure = Cut(moment, "lost", random.Random(0), self.ignored, cut.certain).tree(base)
            wrong = judge(
                recovered, self.story.expected(moment), self.story.batches, synced_lines(sure)
            )
            wrong += recovered.unsound
        finally:
            shutil.rmtree(image)
        self.faults += [f"seed={self.seed} moment={moment} fate={fate}: {text}" for text in wrong]
        self.kinds.update(fate for _ in wrong[:1])

    def run(self, moments: Iterable[int], fates: Iterable[Fate] = FATES) -> None:
        fates = list(fates)
        for moment in moments:
            for fate in fates:
                self.cut(moment, fate)


def some(story: Story, number: str, seed: int) -> list[int]:
    """Return moments of a story: all, or a sample that always has the last of each life."""
    cuts = story.cuts()
    if number == "all" or int(number) >= len(cuts):
        return cuts
    ends = {max(cut for cut in cuts if cut <= end) for end in story.recording.moments[1:]}
    return sorted(ends | set(random.Random(seed).sample(cuts, int(number))))


def test_the_recorded_story_has_all_that_can_be_torn(told: Story) -> None:
    """Otherwise the cuts would prove less than they say."""
    names = [file.born for file in files(told.recording.base)]
    results = [name.partition("/r/")[2] for name in names if "/r/" in name]
    attempts = {name.split(".")[1] for name in results if not name.startswith(".probe.")}
    assert attempts == {"1", "2"}, "a later attempt has adopted"
    calls = Counter((call.name, call.on.rpartition("/")[2]) for call in told.recording.calls)
    assert calls["pwrite64", "ledger.db"] > 10, "log was moved to the ledger more than once"
    assert calls["ftruncate", "ledger.db-wal"] or calls["unlink", ""], "the log was ended"
    assert {call.name for call in told.recording.calls} > {"fsync", "rename", "unlinkat", "rmdir"}
    requests = [f for f in files(told.recording.base) if "/.requests." in f.born]
    assert any(len(f.writes) > 1 for f in requests), "a requests segment has several writes"
    assert {t.method for t in told.told} == {"GET", "POST", "DELETE"}


def files(directory: Directory) -> Iterator[File]:
    """Yield every file that ever was."""
    for change in directory.changes:
        if isinstance(change.node, Directory):
            yield from files(change.node)
        elif change.node is not None:
            yield change.node


@pytest.mark.timeout(7_200 if CUTS == "all" else 900)
def test_nothing_acknowledged_is_lost_at_any_power_cut(
    told: Story, memory: Path, tmp_path: Path
) -> None:
    images = moments = 0
    for number in range(RECORDINGS):
        seed = SEED + number
        place = tmp_path / f"{number}"
        place.mkdir()
        story = told if number == 0 else stories.tell(place)
        sweep = Sweep(story, memory, seed)
        cuts = some(story, CUTS, seed)
        sweep.run(cuts)
        assert sweep.faults == [], "\n".join(sweep.faults[:20])
        images += sweep.images
        moments += len(cuts)
    figures = {"seed": SEED, "recordings": RECORDINGS, "moments": moments, "images": images}
    print(f"\npower figures: {figures | {'lost': 0, 'inconsistent': 0}}")


def test_a_new_data_directory_does_not_vanish(told: Story, memory: Path) -> None:
    sweep = Sweep(told, memory, certain=no_node)
    sweep.cut(told.cuts()[-1], "lost")
    assert sweep.faults == []


# Sabotage: the harness must notice what is missing ------------------------------------------------


def is_ledger(node: Node) -> bool:
    return node.born.startswith("ledger.db")


def is_log(node: Node) -> bool:
    return node.born == "ledger.db-wal"


def is_result(node: Node) -> bool:
    return isinstance(node, File) and "/r/" in node.born


def is_requests(node: Node) -> bool:
    return isinstance(node, File) and "/.requests." in node.born


def is_manifest(node: Node) -> bool:
    return isinstance(node, File) and "/.manifest.json." in node.born


def is_results_directory(node: Node) -> bool:
    return isinstance(node, Directory) and node.born.endswith("/r")


def is_directory(node: Node) -> bool:
    return isinstance(node, Directory)


@pytest.mark.parametrize(
    "ignored",
    [
        is_ledger,
        is_log,
        is_result,
        is_requests,
        is_manifest,
        is_results_directory,
        is_directory,
    ],
)
def test_a_sync_that_were_missing_would_be_noticed(
    told: Story, memory: Path, ignored: Callable[[Node], bool]
) -> None:
    sweep = Sweep(told, memory, ignored=ignored)
    for moment in some(told, "40", SEED):
        sweep.run([moment], ["lost", "some"])
        if sweep.faults:
            return
    raise AssertionError(f"{sweep.images} cuts without these syncs, and nothing was noticed")


@pytest.mark.usefixtures("_strace")
def test_a_ledger_that_does_not_sync_its_commits_would_be_noticed(
    memory: Path, tmp_path: Path
) -> None:
    """`synchronous = NORMAL` stays consistent, and loses what was acknowledged."""
    story = stories.tell(tmp_path, synchronous="NORMAL")
    sweep = Sweep(story, memory)
    for moment in some(story, "60", SEED):
        sweep.run([moment], ["lost"])
    assert any("was acknowledged and is lost" in fault for fault in sweep.faults), sweep.faults
    print(f"\nsynchronous=NORMAL: {len(sweep.faults)} losses in {sweep.images} images")
