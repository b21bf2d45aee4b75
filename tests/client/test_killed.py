"""The command is killed at every point that matters, and given again."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from client.commands import batchyard
from client.fake_api import FakeApi

POINTS = [
    "before_bodies",
    "before_run_event",
    "before_intent",
    "after_intent",
    "create_answered",
    "created_unrecorded",
    "created_recorded",
    "results_chunk",
    "results_before_rename",
    "downloaded_recorded",
    "report_before_rename:2",
    "report_written:2",
    "outcomes_written",
    "receipt_written",
]


def run(path: Path, server: FakeApi, crash_at: str = "") -> subprocess.CompletedProcess[str]:
    return batchyard(
        "run", str(path / "docs"), "--prompt", str(path / "p.j2"), "--model", "claude-opus-4-8",
        "--max-tokens", "50", "--out", str(path / "reports"), "--base-url", server.url, "--yes",
        ANTHROPIC_API_KEY="k", BATCHYARD_CRASH_AT=crash_at,
    )  # fmt: skip


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for name in ("a.md", "b.md", "sub/c.md"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    return tmp_path


# Without idempotency keys, a call that was never made is known only after the grace period, which
# is two real minutes here; `test_pipeline` has that case with a clock of its own.
CASES = [(point, is_yard) for point in POINTS for is_yard in (True, False)]
CASES.remove(("after_intent", False))


@pytest.mark.parametrize(("point", "is_yard"), CASES)
def test_a_killed_run_goes_on_with_one_batch_and_whole_reports(
    documents: Path, server: FakeApi, point: str, is_yard: bool
):
    server.is_yard, server.polls = is_yard, 0
    server.now = server.now.now(server.now.tzinfo)

    killed = run(documents, server, crash_at=point)
    again = run(documents, server)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 0, again.stderr
    assert len(server.batches) == 1
    out = documents / "reports"
    assert {p.name: p.read_text() for p in out.rglob("*.md")} == {
        "a.md": "Report on a_Dmd.\n",
        "b.md": "Report on b_Dmd.\n",
        "c.md": "Report on sub_-c_Dmd.\n",
    }
    assert json.loads((out / "receipt.json").read_text())["saved"] == 3
    assert [p for p in out.rglob("*") if p.name.endswith(".partial")] == []
    assert again.stdout.splitlines()[-1].startswith("paid ")
