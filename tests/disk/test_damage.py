"""The disk damages files of a batch that has not ended: a real server says so, and gets by."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from crash.checking import errors_in
from helpers_upstream import DEADLINE_S, Upstream
from helpers_yard import BATCHES, KEY, QUICK, Yard, assert_answered, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PER_SHARD = 4
PROMPTS = [f"d-{n}" for n in range(3 * PER_SHARD - 1)]
LAST = "d-last|hold:late"
BOUNDS = QUICK | {"limits:SHARD_REQUESTS": PER_SHARD}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def yard(upstream: Upstream, tmp_path: Path) -> Iterator[Yard]:
    with Yard(tmp_path / "data", upstream.url, slots=16, bounds=BOUNDS) as running:
        yield running
        upstream.gate("late").open()
        assert running.stop() == 0
    log = running.read_log()
    assert "Traceback" not in log, log
    assert "defect" not in log, log


def begin(yard: Yard) -> str:
    """Create a batch of three shards; the last request of the third has no answer yet."""
    batch_id: str = yard.create([request(prompt) for prompt in [*PROMPTS, LAST]])["id"]
    yard.wait_progress(batch_id, lambda shown: shown["shards_done"] == 2 and shown["results"] == 11)
    return batch_id


def files(yard: Yard, batch_id: str, part: str) -> list[Path]:
    return sorted((yard.data / "segments").glob(f"??/{batch_id}/{part}"))


def flip(path: Path, at: float) -> None:
    """Flip a bit at some part of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(bytes(data))


def end(yard: Yard, upstream: Upstream, batch_id: str) -> list[dict[str, Any]]:
    """Let a batch end, with all its answers; return what was told of damage."""
    upstream.gate("late").open()
    yard.wait_ended(batch_id)
    assert_answered(yard.results(batch_id), [*PROMPTS, LAST])
    told: list[dict[str, Any]] = yard.progress(batch_id)["damaged"]
    return told


def command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "batchyard", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={"ANTHROPIC_API_KEY": KEY, "PATH": "/usr/bin:/bin"},
        check=False,
    )
    return done.stdout + done.stderr


def test_results_of_done_shards_that_are_flipped_or_gone_are_made_again_before_the_end(
    yard: Yard, upstream: Upstream
) -> None:
    batch_id = begin(yard)
    yard.kill()
    flip(files(yard, batch_id, "r/0.1.*")[0], 0.5)
    files(yard, batch_id, "r/1.1.*")[0].unlink()
    said = command("check", str(yard.data))
    assert f"results of {batch_id} are damaged, and it has not ended" in said
    assert "--give-up" not in said
    yard.start()
    told = end(yard, upstream, batch_id)
    assert [each["shard"] for each in told] == [0, 1]
    assert all("0 of them could be kept, the others are made again" in d["detail"] for d in told)
    counts = {prompt: upstream.counts[prompt] for prompt in PROMPTS}
    assert counts == {p: 2 if n < 2 * PER_SHARD else 1 for n, p in enumerate(PROMPTS)}
    said = command("status", "--why", batch_id, "--base-url", yard.url)
    assert "damaged, shard 0: results of it were damaged on the disk" in said
    yard.kill()
    assert errors_in(yard.data) == []
    yard.start()
    assert_answered(yard.results(batch_id), [*PROMPTS, LAST])


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_results_that_an_earlier_attempt_left_are_made_again_when_they_are_damaged(
    yard: Yard, upstream: Upstream, how: str
) -> None:
    batch_id = begin(yard)
    yard.kill()
    yard.start()  # freezes what the first attempt at the third shard has left
    yard.wait_progress(batch_id, lambda shown: shown["in_flight"] == 1)
    upstream.wait_until(lambda: upstream.counts["d-last"] == 2, "the last request is sent again")
    yard.kill()
    (path,) = files(yard, batch_id, "r/2.1.*")
    if how == "flipped":
        flip(path, 0.5)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    yard.start()
    (told,) = end(yard, upstream, batch_id)
    assert told["shard"] == 2
    counts = [upstream.counts[prompt] for prompt in PROMPTS]
    assert counts == [1] * 2 * PER_SHARD + [2] * (PER_SHARD - 1)
    yard.kill()
    assert errors_in(yard.data) == []
    yard.start()


def test_a_canceled_batch_ends_though_results_of_it_are_damaged(
    yard: Yard, upstream: Upstream
) -> None:
    batch_id = begin(yard)
    yard.kill()
    files(yard, batch_id, "r/0.1.*")[0].unlink()
    yard.start()
    yard.post(f"{BATCHES}/{batch_id}/cancel", b"")
    upstream.gate("late").open()
    counts = yard.wait_ended(batch_id)["request_counts"]
    # What the disk has lost has no result any more; nothing is sent for a canceled batch.
    assert (counts["succeeded"], counts["canceled"]) == (2 * PER_SHARD - 1, PER_SHARD + 1)
    assert len(yard.results(batch_id)) == 3 * PER_SHARD


@pytest.mark.parametrize(
    ("at", "what"),
    [(0.001, "nobody can tell whose results are missing"), (0.04, "they are not sent")],
    ids=["an id", "params"],
)
def test_damaged_requests_are_named_where_people_ask(
    yard: Yard, upstream: Upstream, at: float, what: str
) -> None:
    batch_id = begin(yard)
    yard.kill()
    (path,) = files(yard, batch_id, "requests")
    data = path.read_bytes()
    third = data.index(b"d-8 ")
    changed = bytearray(data)
    changed[third + int(len(data) * at)] ^= 4
    path.write_bytes(bytes(changed))
    yard.start()
    yard.wait_progress(batch_id, lambda shown: bool(shown["damaged"]))
    (told,) = yard.progress(batch_id)["damaged"]
    assert told["shard"] == 2
    assert what in told["detail"]
    assert what in command("status", "--why", batch_id, "--base-url", yard.url)
    assert upstream.counts["d-last"] == 1, "it was sent before the damage, and not since"
