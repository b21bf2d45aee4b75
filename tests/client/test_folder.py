"""The lock of a run: who works on it keeps others away, who only looks does not."""

import fcntl
import os
from pathlib import Path

import pytest

from batchyard.client.problems import RunInUse
from batchyard.client.running.folder import Files, Lock


def test_whoever_looks_sees_who_works_and_is_seen_by_nobody(tmp_path: Path):
    files = Files(tmp_path)

    assert not files.is_running()
    with Lock(tmp_path):
        assert files.is_running()
    assert not files.is_running()


def test_two_who_look_at_once_do_not_take_each_other_for_a_worker(tmp_path: Path):
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)

    assert not Files(tmp_path).is_running()
    os.close(looking)


def test_a_run_that_starts_while_somebody_looks_is_not_refused(tmp_path: Path):
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)

    with Lock(tmp_path, pause=lambda _: os.close(looking)):
        assert Files(tmp_path).is_running()


def test_a_run_that_another_process_keeps_is_refused_after_a_bounded_number_of_looks(
    tmp_path: Path,
):
    waits: list[float] = []

    with Lock(tmp_path), pytest.raises(RunInUse), Lock(tmp_path, pause=waits.append):
        pass

    assert sum(waits) < 1
