"""The folder of one batch that may not be looked into, as it is put back with other rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from disk.loads import Load
from disk.tracing import Disturbed
from helpers_upstream import Upstream
from helpers_yard import BATCHES, HEADERS, QUICK, Yard

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_strace")


def test_an_ended_batch_whose_folder_is_refused_ends_no_yard(tmp_path: Path) -> None:
    with Upstream() as upstream, Yard(tmp_path / "data", upstream.url, bounds=QUICK) as yard:
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
            assert yard.request("DELETE", path, None, HEADERS).status == 500
            assert disturbed.injected
        load.end(load.create(2))
        assert yard.starts == 1
        assert "Traceback" not in yard.read_log()
        yard.stop()
        yard.start()
        assert not folder.exists(), "what is left over is removed"
