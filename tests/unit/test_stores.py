"""Where a yard may keep what it knows: what fits together, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchyard.errors import ConfigError
from batchyard.server import config, stores

if TYPE_CHECKING:
    from pathlib import Path

PG = "postgresql://yard:secret@db/yard"
S3 = "s3://bucket/yard"
MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
35 22 0:30 / /mnt/share rw shared:2 - nfs4 server:/x rw
36 35 8:2 / /mnt/share/local rw - xfs /dev/sdb1 rw
37 22 0:31 / /mnt/with\040space rw master:1 - fuse.sshfs me@host: rw
38 22 0:32 / /over rw - nfs server:/y rw
39 38 8:3 / /over rw - ext4 /dev/sdc1 rw
"""


@pytest.mark.parametrize("role", stores.ROLES)
def test_a_database_with_a_bucket_fits_every_role(role: str) -> None:
    assert stores.check(PG, S3, role, 1) == role


def test_without_urls_all_is_in_the_data_directory() -> None:
    assert stores.check(None, None, "all", 4) == "all"


@pytest.mark.parametrize(
    ("ledger", "segments", "role", "workers", "why"),
    [
        (None, None, "worker", 1, "--workers"),
        (None, None, "api", 1, "--workers"),
        (None, S3, "all", 1, "go together"),
        (PG, None, "all", 1, "go together"),
        (PG, S3, "all", 2, "--role worker"),
        (PG, S3, "boss", 1, "all, api and worker are allowed"),
        ("mysql://h/d", S3, "all", 1, "postgresql://user@host/database"),
        ("ledger.db", S3, "all", 1, "postgresql://user@host/database"),
        (PG, "/a/directory", "all", 1, "s3://bucket/path"),
    ],
)
def test_what_does_not_fit_is_refused_and_says_what_does(
    ledger: str | None, segments: str | None, role: str, workers: int, why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        stores.check(ledger, segments, role, workers)
    assert "secret" not in str(refused.value)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "batchyard.toml"
    file.write_text(
        f'[server]\nledger = "{PG}"\nsegments = "{S3}"\nrole = "api"\n'
        '[[upstream]]\nname = "sim"\nurl = "simulated:"\n'
    )
    loaded = config.load(file=file, environment={})
    assert (loaded.ledger, loaded.segments, loaded.role) == (PG, S3, "api")
    environment = {"BATCHYARD_ROLE": "worker", "BATCHYARD_SEGMENTS": "gs://b/p"}
    loaded = config.load(file=file, environment=environment, segments="az://c/p")
    assert (loaded.ledger, loaded.segments, loaded.role) == (PG, "az://c/p", "worker")
    assert "secret" not in repr(loaded)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/data", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/data", "xfs"),
        ("/mnt/with space/data", "fuse.sshfs"),
        ("/over/data", "ext4"),
    ],
)
def test_the_file_system_of_a_path_is_the_nearest_and_the_last_mounted(
    path: str, kind: str
) -> None:
    assert stores.file_system_of(path, MOUNTS) == kind


def test_a_data_directory_on_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounted = str(tmp_path).replace(" ", r"\040")
    there = f"9 1 0:9 / {mounted} rw - nfs4 server:/x rw\n"
    with pytest.raises(ConfigError, match=r"network file system \(nfs4\)"):
        stores.check_file_system(tmp_path, lambda: MOUNTS + there)
    stores.check_file_system(tmp_path, lambda: MOUNTS)
    stores.check_file_system(tmp_path)
