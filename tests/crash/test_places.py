"""What a yard writes is its owner's alone, and no text of a user is part of a name."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from helpers_yard import Yard, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_upstream import Upstream

MARK = "MaRk"


def test_files_are_0600_directories_0700_and_names_are_ours(
    upstream: Upstream, tmp_path: Path
) -> None:
    before = os.umask(0)  # as careless as a machine can be
    try:
        with Yard(tmp_path / "data", upstream.url) as yard:
            headers = {"idempotency-key": MARK, "anthropic-workspace-id": f"wrkspc_{MARK}"}
            requests = [request(f"{MARK}-{n}", model=f"{MARK}/../../{n}") for n in range(3)]
            ended = yard.create(requests, **headers)
            held = yard.create([request(f"{MARK}-held|hold:no")])
            upstream.wait_calls(f"{MARK}-held", 1)
            assert ended["id"] != held["id"]
            paths = [yard.data, *yard.data.rglob("*")]
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
            wrong = [
                (path, oct(mode))
                for path, mode in modes.items()
                if mode != (0o700 if path.is_dir() else 0o600)
            ]
    finally:
        os.umask(before)
    assert wrong == []
    assert len(paths) > 10
    assert [path for path in paths if MARK.lower() in str(path.relative_to(tmp_path)).lower()] == []
