"""Joining over `ray://` where the process that Ray starts for a client dies of its start."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers_cluster import PYTHON, START_S, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(2 * START_S)

JOIN = """
import logging, sys
from batchyard.cluster import engine
logging.basicConfig(format="%(name)s %(message)s")
print(engine.connect(sys.argv[1], "yard"))
engine.disconnect()
"""


class Cluster:
    """What speaks as a Ray cluster does and refuses so many clients; see `refusing.py`."""

    def __init__(self, refused: int) -> None:
        script = Path(__file__).with_name("refusing.py")
        self._process = subprocess.Popen(
            [str(PYTHON), str(script), str(refused)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment({}),
        )  # fmt: skip
        assert self._process.stdout is not None
        self.address = f"ray://127.0.0.1:{int(self._process.stdout.readline())}"

    def join(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PYTHON), "-c", JOIN, self.address],
            capture_output=True, text=True, timeout=START_S, env=environment({}), check=False,
        )  # fmt: skip

    def close(self) -> list[str]:
        """End it; return what it has done with each client."""
        found, _ = self._process.communicate(timeout=START_S)
        return found.split()


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    opened = Cluster(request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_a_cluster_that_could_not_serve_us_is_joined_again(cluster: Cluster) -> None:
    done = cluster.join()
    assert done.stdout.strip() == cluster.address, done.stderr
    tries = [line for line in done.stderr.splitlines() if "could not join" in line]
    assert [f"{left} tries left" in line for left, line in zip((3, 2, 1), tries, strict=True)] == [
        True, True, True,
    ]  # fmt: skip
    assert cluster.close() == ["refused"] * 3 + ["taken"]


@pytest.mark.parametrize("cluster", [9], indirect=True)
def test_a_cluster_that_never_serves_us_is_left_after_four_tries_with_the_reason(
    cluster: Cluster,
) -> None:
    done = cluster.join()
    assert (
        f"ConfigError: Ray cluster {cluster.address}: RuntimeError: Starting failed. See some.err; "
        "allowed are auto, local, host:port and ray://host:port"
    ) in done.stderr
    assert cluster.close() == ["refused"] * 4
