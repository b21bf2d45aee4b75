"""SIGKILL in the middle of a batch, at chosen moments, and what the next start makes of it.

The upstream answers a number of calls and holds the rest, so the moment is exact without a clock.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from crash.checking import assert_holds, kill, written_lines
from helpers_upstream import Exchange, Upstream, follow_prompt
from helpers_yard import BATCHES, Yard, answer_text, assert_answered, poll, request

if TYPE_CHECKING:
    from pathlib import Path

SLOTS = 16


class Budget:
    """Lets the upstream answer so many calls and hold the others, until it is raised."""

    def __init__(self, answers: float) -> None:
        self.left = answers

    async def __call__(self, exchange: Exchange) -> None:
        if self.left <= 0:
            await exchange.upstream.gate("for ever").wait()
        self.left -= 1
        await follow_prompt(exchange)


def prompts_of(prefix: str, number: int) -> list[str]:
    return [f"{prefix}-{n:05}" for n in range(number)]


def repeated(upstream: Upstream) -> int:
    """Return how many calls were made again."""
    return sum(number - 1 for number in upstream.counts.values())


@pytest.mark.parametrize("answers", [0, 1, 17, 499, 500, 501, 983, 984, 999])
def test_a_batch_goes_on_where_the_kill_left_it(tmp_path: Path, answers: int) -> None:
    """Two shards; killed when `answers` results are written and up to 16 calls are in flight."""
    prompts = prompts_of("kill", 1_000)
    budget = Budget(answers)
    in_flight = min(SLOTS, len(prompts) - answers)
    with (
        Upstream(budget) as upstream,
        Yard(tmp_path / "data", upstream.url, slots=SLOTS) as yard,
    ):
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls("kill-", answers + in_flight)
        poll(lambda: written_lines(yard) == answers, lambda: f"{written_lines(yard)} lines")
        kill(yard)
        budget.left = float("inf")

        yard.start()
        assert yard.batch(batch["id"])["created_at"] == batch["created_at"]
        ended = yard.wait_ended(batch["id"])

        assert ended["request_counts"]["succeeded"] == len(prompts)
        assert_answered(yard.results(batch["id"]), prompts)
        assert repeated(upstream) == in_flight, "more was asked again than was in flight"
        assert "Traceback" not in yard.read_log()
        kill(yard)


def test_a_batch_survives_one_kill_after_another(tmp_path: Path) -> None:
    """Each life of the server answers some more; what is done stays done."""
    prompts = prompts_of("lives", 1_200)
    kills = 12
    lives = [(0, 1, 90, 131)[life % 4] for life in range(kills)]
    budget = Budget(lives[0])
    with (
        Upstream(budget) as upstream,
        Yard(tmp_path / "data", upstream.url, slots=SLOTS) as yard,
    ):
        batch = yard.create([request(prompt) for prompt in prompts])
        lines = 0
        for answers, following in pairwise([*lives, float("inf")]):
            lines += answers
            poll(lambda: written_lines(yard) == lines, lambda: f"{written_lines(yard)} of {lines}")  # noqa: B023
            upstream.wait_until(
                lambda: sum(upstream.in_flight.values()) == SLOTS, "all slots are in use"
            )
            kill(yard)
            upstream.wait_until(lambda: not upstream.in_flight, "the connections are gone")
            budget.left = following  # before its first call comes: one that is held stays so
            yard.start()
        kill(yard)
        yard.start()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
        assert repeated(upstream) <= (kills + 1) * SLOTS
        kill(yard)


def test_results_stay_the_same_after_a_kill(yard: Yard) -> None:
    batch = yard.create([request(prompt) for prompt in prompts_of("same", 700)])
    yard.wait_ended(batch["id"])
    path = f"{BATCHES}/{batch['id']}/results"
    before = yard.get(path).body
    kill(yard)
    yard.start()
    assert yard.get(path).body == before
    deleted = yard.request("DELETE", f"{BATCHES}/{batch['id']}")
    assert deleted.status == 200
    kill(yard)
    yard.start()
    assert yard.get(f"{BATCHES}/{batch['id']}").status == 404
    assert yard.files() == []


def test_a_canceled_batch_stays_canceled_after_a_kill(yard: Yard, upstream: Upstream) -> None:
    """Requests in flight at the kill were never answered, so they are canceled too."""
    batch = yard.create([request(f"{name}|hold:no") for name in prompts_of("gone", 900)])
    upstream.wait_calls("gone-", SLOTS)
    canceled = yard.post(f"{BATCHES}/{batch['id']}/cancel", b"").json()
    kill(yard)
    yard.start()
    ended = yard.wait_ended(batch["id"])
    assert ended["cancel_initiated_at"] == canceled["cancel_initiated_at"]
    assert ended["request_counts"]["canceled"] == 900
    assert list(yard.results(batch["id"]).values()) == [{"type": "canceled"}] * 900
    assert upstream.number("gone-") == SLOTS


def test_many_open_batches_do_not_delay_the_start(yard: Yard, upstream: Upstream) -> None:
    """The server answers while all the work is still to be taken over: it is gated here."""
    batches = [
        yard.create([request(f"many-{b}-{n}|hold:many") for n in range(20)])["id"]
        for b in range(40)
    ]
    upstream.wait_calls("many-", SLOTS)
    kill(yard)
    yard.start()
    listed = [batch["id"] for batch in yard.get(f"{BATCHES}?limit=1000").json()["data"]]
    assert listed == batches[::-1]
    upstream.gate("many").open()
    for number, batch_id in enumerate(batches):
        yard.wait_ended(batch_id)
        assert len(yard.results(batch_id)) == 20, number
    assert repeated(upstream) <= 2 * SLOTS


# Torn tails -----------------------------------------------------------------------------------


def unnamed_segments(yard: Yard) -> list[Path]:
    """Return the result segments that neither a manifest nor the ledger names yet."""
    named: set[str] = set()
    root = yard.data / "segments"
    for manifest in root.glob("??/*/manifest.json"):
        named |= {name for name, _ in json.loads(manifest.read_bytes())["extents"]}
    with closing(sqlite3.connect(yard.data / "ledger.db")) as ledger:
        for (extents,) in ledger.execute("SELECT manifest FROM shards"):
            named |= {name for name, *_ in json.loads(extents)}
    found = (path for path in root.glob("??/*/r/[0-9]*") if path.stat().st_size)
    return sorted(path for path in found if str(path.relative_to(root)) not in named)


TEARS = {
    "garbage": lambda data, rng: data + rng.randbytes(200),
    "zeros": lambda data, _: data + bytes(4_096),
    "half a line": lambda data, _: data + data[: data.find(b"\n") // 2],
    "a line again": lambda data, _: data + data[: data.find(b"\n") + 1],
    "an empty line": lambda data, _: data + b"\n",
    "a line without its end": lambda data, _: data[:-1],
    "some bytes": lambda data, rng: data[: -rng.randrange(1, 600)],
    "most bytes": lambda data, rng: data[: rng.randrange(1, 600)],
    "everything": lambda _data, _: b"",
    "a page of zeros inside": lambda data, _: (
        data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    ),
    "a damaged byte inside": lambda data, rng: (
        data[: (at := rng.randrange(len(data)))] + b"\x00" + data[at + 1 :]
    ),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_tail_costs_only_what_it_tore(tmp_path: Path, tear: str) -> None:
    """What a power cut may do to a segment that was not synced: its tail is asked for again."""
    rng = random.Random(tear)
    prompts = prompts_of("torn", 700)
    budget = Budget(300)
    with (
        Upstream(budget) as upstream,
        Yard(tmp_path / "data", upstream.url, slots=SLOTS) as yard,
    ):
        batch = yard.create([request(prompt) for prompt in prompts])
        poll(lambda: written_lines(yard) == 300, lambda: f"{written_lines(yard)} lines")
        kill(yard)
        segments = unnamed_segments(yard)
        assert segments
        for segment in segments:
            segment.write_bytes(TEARS[tear](segment.read_bytes(), rng))
        assert_holds(yard.data)
        budget.left = float("inf")
        yard.start()
        ended = yard.wait_ended(batch["id"])
        assert ended["request_counts"]["succeeded"] == len(prompts)
        assert_answered(yard.results(batch["id"]), prompts)
        assert "Traceback" not in yard.read_log()
        kill(yard)


def test_a_segment_is_torn_at_every_life(tmp_path: Path) -> None:
    """A kill and a tear, again and again: adoption is built on adoption."""
    rng = random.Random(20_261_121)
    prompts = prompts_of("again", 700)  # more than are answered before the last kill
    budget = Budget(60)
    with (
        Upstream(budget) as upstream,
        Yard(tmp_path / "data", upstream.url, slots=SLOTS) as yard,
    ):
        batch = yard.create([request(prompt) for prompt in prompts])
        for _ in range(8):
            upstream.wait_until(lambda: budget.left <= 0, "the budget is used up")
            kill(yard)
            for segment in unnamed_segments(yard):
                data = segment.read_bytes()
                kept = data[: rng.randrange(len(data) + 1)]
                segment.write_bytes(kept + rng.choice([b"", b"\n", b"{", rng.randbytes(50)]))
            assert_holds(yard.data)
            budget.left = rng.randrange(10, 80)
            yard.start()
        budget.left = float("inf")
        kill(yard)
        yard.start()
        yard.wait_ended(batch["id"])
        results = yard.results(batch["id"])
        assert Counter(answer_text(result) for result in results.values()).most_common(1)[0][1] == 1
        assert_answered(results, prompts)
        assert "Traceback" not in yard.read_log()
        kill(yard)


def test_a_segment_of_a_late_worker_is_not_taken_twice(tmp_path: Path) -> None:
    """Another attempt has left the same answers, or some of them, or some that are new."""
    prompts = prompts_of("late", 300)
    budget = Budget(100)
    with (
        Upstream(budget) as upstream,
        Yard(tmp_path / "data", upstream.url, slots=SLOTS) as yard,
    ):
        batch = yard.create([request(prompt) for prompt in prompts])
        poll(lambda: written_lines(yard) == 100, lambda: f"{written_lines(yard)} lines")
        kill(yard)
        (segment,) = unnamed_segments(yard)
        lines = segment.read_bytes().splitlines(keepends=True)
        segment.write_bytes(b"".join(lines[:60]))
        attempt = segment.with_name("0.1.ffffffffffffffff")
        attempt.write_bytes(b"".join(lines[40:]))
        assert_holds(yard.data)
        budget.left = float("inf")
        yard.start()
        ended = yard.wait_ended(batch["id"])
        assert ended["request_counts"]["succeeded"] == len(prompts)
        assert_answered(yard.results(batch["id"]), prompts)
        assert "Traceback" not in yard.read_log()
        kill(yard)
