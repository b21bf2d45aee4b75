"""The section `[cluster]`, and `BATCHYARD_ONLY`: what is taken, and what is refused and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchyard.errors import ConfigError
from batchyard.server import config

if TYPE_CHECKING:
    from pathlib import Path

UPSTREAMS = """
[[upstream]]
name = "claude"
url = "https://api.anthropic.com"
models = ["claude-*"]
[[upstream]]
name = "llama"
url = "vllm:/models/llama?tensor_parallel_size=2"
models = ["llama*"]
[[upstream]]
name = "other"
url = "http://127.0.0.1:8000"
"""
GROUP_G = '[[cluster.group]]\nname = "g"\nupstreams = ["llama"]\n'
SHARED = {"BATCHYARD_LEDGER": "postgresql://db/yard", "BATCHYARD_SEGMENTS": "s3://bucket/yard"}


def load(
    tmp_path: Path, section: str = "", role: str = "worker", **variables: str
) -> config.Config:
    file = tmp_path / "batchyard.toml"
    file.write_text(UPSTREAMS + section)
    named = {f"BATCHYARD_{name}": value for name, value in variables.items()}
    return config.load(file=file, environment=SHARED | named, role=role)


def test_without_groups_all_upstreams_are_of_one(tmp_path: Path) -> None:
    (group,) = load(tmp_path, "[cluster]\nmax = 7\n").groups
    assert (group.name, group.workers_min, group.workers_max) == ("workers", 1, 7)
    assert group.upstreams == ("claude", "llama", "other")
    assert group.gpus == 2, "a model that is held in the process needs its GPUs in every worker"


def test_a_group_has_its_own_numbers_and_the_rest_is_a_group_too(tmp_path: Path) -> None:
    section = """
[cluster]
max = 7
requests_per_worker = 500
[[cluster.group]]
name = "gpu"
upstreams = ["llama"]
min = 0
cpus = 4
"""
    gpu, rest = load(tmp_path, section).groups
    assert (gpu.name, gpu.workers_min, gpu.workers_max, gpu.cpus, gpu.gpus) == ("gpu", 0, 7, 4, 2)
    assert gpu.requests_per_worker == rest.requests_per_worker == 500
    assert (rest.name, rest.upstreams, rest.gpus) == ("workers", ("claude", "other"), 0)


def test_the_environment_is_over_the_section_and_below_a_group_of_its_own(tmp_path: Path) -> None:
    section = '[[cluster.group]]\nname = "gpu"\nupstreams = ["llama"]\nmax = 2\n'
    gpu, rest = load(tmp_path, section, CLUSTER_MIN="2", CLUSTER_MAX="20").groups
    assert (gpu.workers_min, gpu.workers_max) == (2, 2)
    assert (rest.workers_min, rest.workers_max) == (2, 20)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("[cluster]\nmin = 5\nmax = 4\n", "min 5, max 4"),
        ("[cluster]\nmin = -1\n", "min -1"),
        ("[cluster]\nmin = 0\nmax = 0\n", "max 0"),
        ("[cluster]\nworkers = 3\n", "workers"),
        ("[cluster]\nrequests_per_worker = 0\n", "requests_per_worker"),
        ("[cluster]\nscale_down_after = -1\n", "scale_down_after"),
        ("[cluster]\ncpus = 1.5\n", "cpus 1.5"),
        ('[[cluster.group]]\nname = "G"\nupstreams = ["llama"]\n', "name of 1 to 32"),
        ('[[cluster.group]]\nname = "workers"\nupstreams = ["llama"]\n', "all other upstreams"),
        ('[[cluster.group]]\nname = "g"\nupstreams = []\n', "upstreams are needed"),
        ('[[cluster.group]]\nname = "g"\nupstreams = ["x"]\n', "claude, llama, other are"),
        ('[[cluster.group]]\nname = "g"\nupstreams = ["llama"]\ngpus = -1\n', "gpus -1"),
        (
            GROUP_G + GROUP_G.replace('"g"', '"h"'),
            "in group g already",
        ),
        (
            GROUP_G + GROUP_G.replace("llama", "other"),
            "there twice",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(
    tmp_path: Path, section: str, why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, section)
    assert why in str(refused.value)


def test_a_number_in_the_environment_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="BATCHYARD_CLUSTER_MAX many: a whole number"):
        load(tmp_path, CLUSTER_MAX="many")


def test_a_worker_can_be_for_some_upstreams_only(tmp_path: Path) -> None:
    assert load(tmp_path).only is None
    assert load(tmp_path, ONLY="llama other").only == {"llama", "other"}


def test_a_worker_for_an_upstream_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llamas is not configured; claude, llama, other are"):
        load(tmp_path, ONLY="llamas")


def test_an_api_knows_all_upstreams(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="BATCHYARD_ONLY is for role worker, and role api"):
        load(tmp_path, role="api", ONLY="llama")
