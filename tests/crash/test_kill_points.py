"""SIGKILL at every named point of the server's work: before and after each step that must hold.

The servers are forked from a process that has it loaded, which makes a start much quicker.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anthropic
import pytest

import batchyard
from batchyard.ledger.sqlite_file import note_failure
from crash.checking import assert_holds, written_lines
from crash.forking import ForkedYard, Zygote
from crash.test_random_kills import KILLS_USUAL
from helpers_upstream import DEADLINE_S, Upstream
from helpers_yard import BATCHES, HEADERS, Yard, assert_answered, poll, request

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(batchyard.__file__).parent
ALL = {
    name
    for path in PACKAGE.rglob("*.py")
    if "client" not in path.parts
    for name in re.findall(r'crash\.point\("(\w+)"\)', path.read_text(encoding="utf-8"))
}
SLOTS = 8
# Several times: the first commit creates, the later ones claim, renew, commit and end.
TURNS = {
    "ledger_before_commit": (1, 2, 3, 4, 5, 6, 8),
    "ledger_committed": (1, 2, 3, 4, 5, 6, 8),
    "call": (1, 40),
    "called": (1, 40),
    "append": (1, 3),
    "appended": (1, 3),
    "batch_named": (1, 2, 3),
    # Of the data directory, of its own name, of the ledger's file and of its log.
    "names": (1, 2, 3, 4),
    "names_synced": (1, 2, 3, 4),
    "put_written": (1, 2),
    "put_synced": (1, 2),
    "put_renamed": (1, 2),
    "put_done": (1, 2),
}
ADOPTING = ("claimed:1", "left_sync:1", "synced_unnamed:1", "left_synced:1", "adopted:1", "call:1")
DELETING = ("deleted:1", "delete_part:1", "delete_part:2")
FOLDING = ("fold_written:1", "fold_synced:1", "folded:1")
RESTORED = ("results_marked:1", "results_made:1", "results_named:1")
STARTING = ("ledger_", "opened", "names", "root_")
# Answers that come one after the other: however slow a disk is, each is appended for itself.
LATE = ("second", "third")
# These need more than one batch and its end: below, and the emulator's clock. Those of a migration
# are tried in tests/store/test_sqlite_start.py.
APART = {"adopted", "left_sync", "left_synced", "deleted", "delete_part", "archived", "migrating"}
APART |= {case.partition(":")[0] for case in (*FOLDING, *RESTORED)}
CASES = [f"{name}:{turn}" for name in sorted(ALL - APART) for turn in TURNS.get(name, (1,))]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


class Starts:
    """Starts servers on the data directory of a test, which hold in the end."""

    def __init__(self, zygote: Zygote, data: Path, upstream: Upstream) -> None:
        self.data = data
        self._zygote = zygote
        self._upstream = upstream

    def until(self, point: str) -> Yard:
        """Describe a server that kills itself at a point."""
        return self._yard({"BATCHYARD_CRASH_AT": point})

    def again(self) -> Yard:
        """Describe a server that lives."""
        return self._yard({})

    def _yard(self, environment: dict[str, str]) -> Yard:
        url = self._upstream.url
        return ForkedYard(self._zygote, self.data, url, slots=SLOTS, environment=environment)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as running:
        yield running


@pytest.fixture
def starts(zygote: Zygote, upstream: Upstream, tmp_path: Path) -> Starts:
    return Starts(zygote, tmp_path / "data", upstream)


def died(yard: Yard) -> None:
    """Wait for a yard to kill itself; what it leaves must hold."""
    process = yard.process
    if process is not None:  # else it died before it was ready
        poll(lambda: process.poll() is not None, lambda: "it lives")
        assert process.returncode == -signal.SIGKILL
        yard.kill()
    assert_holds(yard.data)


def create(yard: Yard, prompts: list[str]) -> str | None:
    """Create a batch; return its id, or None when the answer never came."""
    body = json.dumps({"requests": [request(prompt) for prompt in prompts]}).encode()
    try:
        answer = yard.request("POST", BATCHES, body, HEADERS | {"idempotency-key": "one"})
    except (OSError, http.client.HTTPException):
        return None
    assert answer.status == 200
    found: str = answer.json()["id"]
    return found


def answer_late(yard: Yard, upstream: Upstream, batch_id: str | None, at_once: int) -> None:
    """Give the late answers, each when all before it were written, as long as the yard lives."""
    for count, gate in enumerate(LATE, start=at_once):
        if batch_id is not None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                yard.wait_progress(batch_id, lambda told, n=count: told["results"] >= n)
        upstream.gate(gate).open()


@pytest.mark.parametrize("point", CASES)
def test_killed_there_it_goes_on_with_one_batch_and_one_result_each(
    starts: Starts, upstream: Upstream, point: str
) -> None:
    at_once = [f"point-{n}" for n in range(118)]
    prompts = at_once + [f"point-{gate}|hold:{gate}" for gate in LATE]
    yard = starts.until(point)
    yard.launch()
    acknowledged = None
    try:
        yard.wait_ready()
        acknowledged = create(yard, prompts)
    except AssertionError:
        assert point.startswith(STARTING), "it died before it was ready"
    answer_late(yard, upstream, acknowledged, len(at_once))
    died(yard)
    written, called = written_lines(yard), upstream.number("point-")
    with starts.again() as again:
        listed = [batch["id"] for batch in again.get(BATCHES).json()["data"]]
        assert len(listed) <= 1
        if acknowledged is not None:
            assert listed == [acknowledged], "what was answered with 200 is there"
        batch_id = create(again, prompts)  # as a client does that has had no answer
        assert batch_id is not None
        if listed:
            assert [batch_id] == listed, "the same call is the same batch"
        again.wait_ended(batch_id)
        assert_answered(again.results(batch_id), prompts)
        made = upstream.number("point-") - called
        assert made <= len(prompts) - written + SLOTS, (
            "what was written is not asked again (the last calls of the dead may be counted late)"
        )
        again.kill()
        assert_holds(starts.data)


def test_killed_while_it_adopts_it_adopts_again(starts: Starts, upstream: Upstream) -> None:
    prompts = [f"adopt-{n}" for n in range(60)] + ["adopt-last|hold:adopt"]
    with starts.again() as yard:
        batch_id = yard.create([request(prompt) for prompt in prompts])["id"]
        yard.wait_progress(batch_id, lambda progress: progress["results"] >= 60)
        yard.kill()
    assert_holds(starts.data)
    for point in ADOPTING:
        yard = starts.until(point)
        yard.launch()
        died(yard)
    upstream.gate("adopt").open()
    with starts.again() as yard:
        yard.wait_ended(batch_id)
        assert_answered(yard.results(batch_id), prompts)
        assert all(upstream.counts[f"adopt-{n}"] == 1 for n in range(60)), "nothing is paid twice"


def test_killed_while_a_log_in_doubt_is_folded_it_folds_again(
    starts: Starts, upstream: Upstream
) -> None:
    prompts = [f"fold-{n}" for n in range(20)] + ["fold-last|hold:fold"]
    with starts.again() as yard:
        batch_id = yard.create([request(prompt) for prompt in prompts])["id"]
        yard.wait_progress(batch_id, lambda progress: progress["results"] >= 20)
        yard.kill()
    note_failure(starts.data / "ledger.db", "a sync of the log")
    for point in FOLDING:
        yard = starts.until(point)
        yard.launch()
        died(yard)
        assert (starts.data / "ledger.failed").exists()
    upstream.gate("fold").open()
    with starts.again() as yard:
        yard.wait_ended(batch_id)
        assert_answered(yard.results(batch_id), prompts)


def test_killed_while_a_folder_of_results_is_made_again_it_is_made_again(
    starts: Starts, upstream: Upstream
) -> None:
    prompts = ["restored-0|hold:restored", "restored-1|hold:restored"]
    with starts.again() as yard:
        batch_id = yard.create([request(prompt) for prompt in prompts])["id"]
        upstream.wait_calls("restored-", 2)
        yard.kill()
    (results,) = starts.data.glob(f"segments/??/{batch_id}/r")
    shutil.rmtree(results)
    upstream.gate("restored").open()
    for point in RESTORED:
        yard = starts.until(point)
        yard.launch()
        died(yard)
    with starts.again() as yard:
        yard.wait_ended(batch_id)
        assert_answered(yard.results(batch_id), prompts)


@pytest.mark.parametrize("point", DELETING)
def test_killed_between_row_and_bytes_of_a_delete_nothing_is_left(
    starts: Starts, point: str
) -> None:
    yard = starts.until(point).start()
    batch_id = yard.create([request("deleted")])["id"]
    yard.wait_ended(batch_id)
    with pytest.raises((OSError, http.client.HTTPException)):
        yard.request("DELETE", f"{BATCHES}/{batch_id}")
    died(yard)
    with starts.again() as again:
        assert again.get(f"{BATCHES}/{batch_id}").status == 404
        assert again.files() == []


def test_killed_between_row_and_bytes_of_an_archiving_nothing_is_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "batchyard", "emulate", "--port", "0", "--data", str(data)]
    environment = os.environ | {"BATCHYARD_CRASH_AT": "archived:1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        params = {"model": "claude-haiku-4-5", "max_tokens": 9}
        params |= {"messages": [{"role": "user", "content": "Hello"}]}
        with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
            batch = client.messages.batches.create(requests=[{"custom_id": "a", "params": params}])
            with pytest.raises(anthropic.APIConnectionError):
                client.post("/emulator/clock", body={"advance": "30d"}, cast_to=object)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
    assert_holds(data)
    with Yard(data, "simulated:") as again:
        found = again.batch(batch.id)
        assert found["archived_at"] is not None
        assert found["results_url"] is None
        assert again.files() == []


def test_a_usual_run_kills_at_least_150_times() -> None:
    """Those of the other tests, a few each, come on top."""
    kills = {"at random moments": KILLS_USUAL, "at named points": len(CASES)}
    print(f"\nkills in a usual run: {kills}")
    assert sum(kills.values()) >= 150


def test_every_point_is_tried() -> None:
    apart = (*ADOPTING, *DELETING, *FOLDING, *RESTORED, "archived", "migrating")
    assert {case.partition(":")[0] for case in (*CASES, *apart)} == ALL
    assert os.environ.get("BATCHYARD_CRASH_AT") is None
