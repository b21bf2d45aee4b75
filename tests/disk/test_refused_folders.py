"""The folder of one batch that may not be looked into, as it is put back with other rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from disk.loads import Load
from disk.tracing import Disturbed
from helpers_upstream import Upstream
from helpers_yard import BATCHES, HEADERS, QUICK, Yard, poll, request

if TYPE_CHECKING:
    from pathlib import Path

BOUNDS = QUICK | {"limits:REFUSED_WAIT_S": 0.1, "limits:KEEPER_INTERVAL_S": 0.2}

pytestmark = pytest.mark.usefixtures("_strace")


def test_an_ended_batch_whose_folder_is_refused_ends_no_yard(tmp_path: Path) -> None:
    with Upstream() as upstream, Yard(tmp_path / "data", upstream.url, bounds=BOUNDS) as yard:
        load = Load(yard, upstream)
        refused, other = load.create(3), load.create(3)
        load.end(refused)
        load.end(other)
        path = f"{BATCHES}/{refused.batch_id}"
        (folder,) = yard.data.glob(f"segments/??/{refused.batch_id}")
        with Disturbed(yard, "openat", "error=EACCES", folder, folder / "r") as disturbed:
            for _ in range(2):
                assert yard.get(f"{path}/results").status == 500
            load.end(other)
            assert yard.get(path).status == 200
            assert disturbed.injected >= 2
        load.end(refused)
        with Disturbed(yard, "openat", "error=EACCES", folder, folder / "r") as disturbed:
            assert yard.request("DELETE", path, None, HEADERS).status == 200
            assert disturbed.injected
        assert yard.get(path).status == 404
        poll(lambda: not folder.exists(), lambda: "what was left is not tried again")
        load.end(load.create(2))
        assert yard.starts == 1
        assert "Traceback" not in yard.read_log()


def test_a_folder_that_is_taken_away_while_results_are_made_is_told_and_others_go_on(
    tmp_path: Path,
) -> None:
    with Upstream() as upstream, Yard(tmp_path / "data", upstream.url, bounds=QUICK) as yard:
        batch = yard.create([request(f"taken-{n}|hold:taken") for n in range(3)])
        path = f"{BATCHES}/{batch['id']}"
        upstream.wait_calls("taken-", 3)
        (folder,) = yard.data.glob(f"segments/??/{batch['id']}")
        aside = folder.rename(tmp_path / "aside")
        upstream.gate("taken").open()
        told = yard.wait_progress(batch["id"], lambda p: p["damaged"])
        assert "requests is not there" in str(told["damaged"])
        load = Load(yard, upstream)
        load.end(load.create(2))
        yard.post(f"{path}/cancel", b"")
        yard.stop()
        aside.rename(folder)
        yard.start()
        yard.wait_ended(batch["id"])
        assert "deleted" not in yard.read_log()
