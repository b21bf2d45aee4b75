"""One run, killed several times against a real server, and what must be true when it has ended.

What the server holds is the measure: it is asked for its batches and their results, and the files
of the run are compared with that.
"""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchyard import price, wire
from batchyard.client.running.folder import Files
from batchyard.client.running.tags import plain
from client.commands import batchyard

if TYPE_CHECKING:
    import random
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from client.link import Link

MODEL = "claude-opus-4-8"
DOCUMENTS = 12
KILLS_MAX = 4
UNREACHABLE = 3  # four faults of one call in a row: "the same command tries again"
MOMENT_MAX_S = 0.8  # a life without a kill takes about that long
POINTS = (
    "before_bodies", "before_run_event", "before_intent", "after_intent", "after_intent:2",
    "create_answered", "create_answered:2", "created_unrecorded", "created_unrecorded:2",
    "created_recorded", "created_recorded:3", "results_chunk", "results_chunk:2",
    "results_before_rename", "downloaded_recorded", "downloaded_recorded:2",
    "report_before_rename:2", "report_written:2", "report_written:9", "outcomes_written",
    "outcomes_written:3", "collected_recorded:2", "collected_recorded:3", "before_extension",
    "extension_bodies", "before_extended_event", "extended", "extended:2", "tables_written",
    "receipt_written",
)  # fmt: skip
_ROUND = re.compile(r"(.+?)(?:_R(\d+))?$")


@dataclass
class Life:
    """A run over documents of its own, against the server behind `link`."""

    path: Path
    link: Link
    draw: random.Random
    between: Callable[[], None] = lambda: None
    """Called after each kill, for what befalls the server meanwhile."""

    def __post_init__(self) -> None:
        (self.path / "docs").mkdir(parents=True)
        for number in range(DOCUMENTS):
            (self.path / "docs" / f"n{number:02}.md").write_text(f"text of {number}")
        (self.path / "p.j2").write_text(f"Life {self.draw.getrandbits(40)}: about {{{{ text }}}}")
        self.out = self.path / "reports"
        self._story: list[str] = []
        self._before = {batch["id"] for batch in self._listed()}

    def live(self) -> int:
        """Kill the run several times, let it end, and check what there is; return the kills."""
        try:
            return self._lived()
        except AssertionError:
            print("\n".join(["what happened:", *self._story, *self._told()]))
            raise

    def _lived(self) -> int:
        kills = 0
        for _ in range(self.draw.randrange(1, KILLS_MAX + 1)):
            if self.draw.random() < 0.5:
                done = self._run(BATCHYARD_CRASH_AT=self.draw.choice(POINTS))
            else:
                moment = self.draw.uniform(0.0, MOMENT_MAX_S)
                done = self._run(BATCHYARD_TEST_ALARM=str(moment))
            killed = done.returncode in {-signal.SIGKILL, -signal.SIGALRM}
            assert killed or done.returncode in {0, UNREACHABLE}, done.stdout + done.stderr
            kills += killed
            self.between()
        done = self._run()
        if done.returncode == UNREACHABLE:
            self.link.follow({})
            done = self._run()
        assert done.returncode == 0, done.stdout + done.stderr
        self.check()
        return kills

    def _run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        done = batchyard(
            "run", str(self.path / "docs"), "--prompt", str(self.path / "p.j2"), "--model", MODEL,
            "--max-tokens", "400", "--out", str(self.out), "--base-url", self.link.url, "--yes",
            "--sample", "0", "--shard-size", "5", "--format", "md", "--format", "jsonl",
            ANTHROPIC_API_KEY="k", BATCHYARD_TEST_HURRY="50", **environment,
        )  # fmt: skip
        self._story.append(f"{environment} {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def _told(self) -> list[str]:
        """Return what the journal says, and the batches of this life that the server has."""
        lines = Files(self.out).journal.read_text().splitlines()
        return [*lines, *(str(each) for each in self._listed() if each["id"] not in self._before)]

    def check(self) -> None:
        """Compare the files of the run with what the server holds.

        One kept batch for each shard and no other; no request twice; the report of each document
        is the answer that came last, whole; every answer is in the bill, once.
        """
        state = Files(self.out).read_state()
        kept = [shard.batch for shard in state.shards if shard.batch]
        listed = [batch["id"] for batch in self._listed() if batch["id"] not in self._before]
        assert sorted(kept) == sorted(listed), "a batch that no shard keeps, or a shard without"
        results = [line for batch in listed for line in self._results(batch)]
        ids = [line["custom_id"] for line in results]
        assert len({plain(each) for each in ids}) == len(ids), "a request was sent twice"
        last = {}
        for line in sorted(results, key=_round):
            last[_document(line)] = line["result"]
        texts = {name: result["message"]["content"][0]["text"] for name, result in last.items()}
        assert {p.name: p.read_text() for p in self.out.glob("*.md")} == {
            f"n{number:02}.md": texts[f"n{number:02}_Dmd"] + "\n" for number in range(DOCUMENTS)
        }
        receipt = json.loads((self.out / "receipt.json").read_text())
        assert (receipt["documents"], receipt["saved"]) == (DOCUMENTS, DOCUMENTS)
        assert receipt["requests"] == len(ids)
        assert receipt["list_batch_micros"] == sum(_micros(line) for line in results)
        table = [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]
        assert [row["key"] for row in table] == [f"n{n:02}.md" for n in range(DOCUMENTS)]
        assert (self.out / "errors.jsonl").read_text() == ""
        left = [p.name for p in self.out.rglob("*") if p.name.endswith(".partial")]
        assert left == [], left

    # The server, past the link's faults ---------------------------------------------------------

    def _listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = json.loads(self._get(f"?limit=100{after}"))
            found += page["data"]
            if not page["has_more"]:
                return found
            after = f"&after_id={page['last_id']}"

    def _results(self, batch: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._get(f"/{batch}/results").splitlines()]

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.link.target}/v1/messages/batches{path}",
            headers={"x-api-key": "k", "anthropic-version": "2023-06-01"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            data: bytes = answer.read()
            return data


def _document(line: dict[str, Any]) -> str:
    found = _ROUND.fullmatch(plain(line["custom_id"]))
    assert found is not None
    return found[1]


def _round(line: dict[str, Any]) -> int:
    found = _ROUND.fullmatch(plain(line["custom_id"]))
    assert found is not None
    return int(found[2] or 0)


def _micros(line: dict[str, Any]) -> int:
    result = line["result"]
    if result["type"] != "succeeded":
        return 0
    usage = price.read_usage(wire.encode(result["message"]["usage"]))
    cost = price.cost_micros(MODEL, usage, "batch")
    assert cost is not None
    return cost
