"""Workers as actors of a real Ray cluster of two nodes, with real stores and a counted upstream.

What proves that nothing is lost and nothing doubled: every request has one answer, its own, and the
upstream, which counts, was called again only for what was in flight when something was killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.clock import SystemClock
from batchyard.ledger.backlog import BacklogReader
from helpers_cluster import START_S, Launcher, RayCluster, run, status
from helpers_many import Member
from helpers_upstream import Upstream
from helpers_workers import is_alive
from helpers_yard import BATCHES, assert_answered, poll, request
from store.making import postgres, s3

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.timeout(2 * START_S)


class Api(Member):
    """An API in front of two upstreams; they are one server."""

    def __init__(self, root: Path, upstream: str, shared: Mapping[str, str]) -> None:
        super().__init__(root, "api", "api", upstream, shared)
        # A database on a busy machine is not away.
        self._bounds = {**(self._bounds or {}), "limits:LEDGER_AWAY_WAIT_S": 30.0}

    def command(self) -> list[str]:
        command = super().command()
        file = Path(command[command.index("--config") + 1])
        file.write_text(_upstreams(self._upstream))
        return command


def _upstreams(url: str) -> str:
    upstream = f'[[upstream]]\nurl = "{url}"\nslots = 16\n'
    return f'{upstream}name = "gpu"\nmodels = ["gpu-*"]\n{upstream}name = "up"\n'


class World:
    """An API with its stores and an upstream, which stay, and a Ray cluster, which does not.

    There is one launcher at a time; tests that need the same one find it as another has left it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._number = 0
        self._cluster: RayCluster | None = None
        self._lost: list[RayCluster] = []
        self._kind = ""
        self._launcher: Launcher | None = None
        self.upstream = Upstream().__enter__()
        self.shared: Mapping[str, str] = s3().environment | {
            "BATCHYARD_LEDGER": postgres().create("ray"),
            "BATCHYARD_SEGMENTS": s3().url("ray"),
        }
        self.api = Api(root, self.upstream.url, self.shared).start()

    @property
    def cluster(self) -> RayCluster:
        """The Ray cluster, a new one if a test has killed the head."""
        if self._cluster is None:
            self._cluster = RayCluster(self._folder())
        return self._cluster

    def _folder(self) -> Path:
        self._number += 1
        folder = self._root / str(self._number)
        folder.mkdir()
        return folder

    def lose_head(self) -> None:
        """Kill the head, and forget the cluster."""
        cluster, self._cluster = self.cluster, None
        self._lost.append(cluster)
        cluster.do("kill_head")

    def pair(self) -> Launcher:
        """Return the launcher of two workers."""
        return self._launch("pair", self.cluster.address, "min = 2\nmax = 2\n")

    def client(self) -> Launcher:
        """Return the launcher over the client port, of workers for each two requests."""
        address = f"ray://127.0.0.1:{self.cluster.client_port}"
        gpu = '[[cluster.group]]\nname = "gpu"\nupstreams = ["gpu"]\nmax = 1\ngpus = 1\n'
        bounds = "min = 0\nmax = 3\nrequests_per_worker = 2\n"
        return self._launch("client", address, bounds + gpu)

    def local(self) -> Launcher:
        """Return the launcher of one worker on a cluster of its own."""
        return self._launch("local", "local", "min = 1\nmax = 1\n")

    def _launch(self, kind: str, address: str, cluster: str) -> Launcher:
        launcher = self._launcher
        if launcher is not None:
            if self._kind == kind and launcher.is_running:
                return launcher
            launcher.__exit__()
        config = f"{_upstreams(self.upstream.url)}[cluster]\nscale_down_after = 0\n{cluster}"
        launcher = Launcher(self._folder(), self.shared, config, "--address", address)
        self._kind, self._launcher = kind, launcher.__enter__()
        return self._launcher

    def held(self, gate: str, number: int = 8, model: str = "scripted") -> tuple[str, list[str]]:
        """Create a batch of which every other call waits for the gate of its name."""
        prompts = [f"{gate}{n}|hold:{gate}" if n % 2 else f"{gate}{n}" for n in range(number)]
        batch = self.api.create([request(prompt, model=model) for prompt in prompts])
        return batch["id"], prompts

    def wait_held(self, prompts: list[str]) -> None:
        """Wait until all calls have come, and the others are answered."""
        counts = self.upstream.counts
        self.upstream.wait_until(lambda: all(counts[_name(p)] for p in prompts), f"{prompts}")

    def calls(self, prompts: list[str]) -> list[int]:
        """Return how often the upstream was called for each, which it counts."""
        return [self.upstream.counts[_name(prompt)] for prompt in prompts]

    def taken(self, number: int = 1) -> dict[str, list[str]]:
        """Wait until the ledger knows that so many workers hold something; return the pools."""

        async def read() -> dict[str, list[str]]:
            reader = BacklogReader(self.shared["BATCHYARD_LEDGER"], SystemClock())
            try:
                found: dict[str, list[str]] = {}
                for each in (await reader.read()).taken:
                    found.setdefault(each.owner, []).append(each.pool)
                return found if len(found) >= number else {}
            finally:
                await reader.close()

        return poll(lambda: asyncio.run(read()), lambda: "no worker holds anything")

    def holding(self) -> list[dict[str, Any]]:
        """Wait until a worker holds something; return what `cluster status` says of all."""
        self.taken()
        workers: list[dict[str, Any]] = status(self.cluster.address, self.shared)["workers"]
        return workers

    def refused(self) -> str:
        """Start a second launcher; return what it says as it ends."""
        second = run(
            "up", "--address", self.cluster.address, "--upstream", f"up={self.upstream.url}",
            shared=self.shared | {"BATCHYARD_TEST_BOUNDS": '{"cluster.up:_OTHERS_MAX_S": 1.0}'},
        )  # fmt: skip
        assert second.returncode == 2
        return second.stderr

    def assert_ended(self, batch_id: str, prompts: list[str]) -> None:
        self.api.wait_ended(batch_id)
        assert_answered(self.api.results(batch_id), prompts)

    def close(self) -> None:
        if self._launcher is not None:
            self._launcher.__exit__()
        for cluster in [*self._lost, *([self._cluster] if self._cluster else [])]:
            cluster.__exit__()
        self.api.kill()
        self.upstream.__exit__(None, None, None)


def _name(prompt: str) -> str:
    return prompt.partition("|")[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    opened = World(tmp_path_factory.mktemp("ray"))
    yield opened
    opened.close()


def test_a_group_takes_the_work_of_its_upstreams_where_there_is_a_gpu(world: World) -> None:
    launcher = world.client()
    batches = [world.held("o", 4), world.held("p", 4, model="gpu-small")]
    for _, prompts in batches:
        world.wait_held(prompts)
    found = {owner.rpartition("-")[0]: pools for owner, pools in world.taken(2).items()}
    assert found == {"gpu": ["gpu/gpu-small"], "workers": ["up/scripted"]}
    for gate, (batch_id, prompts) in zip("op", batches, strict=True):
        world.upstream.gate(gate).open()
        world.assert_ended(batch_id, prompts)
    launcher.wait_working(0)


def test_workers_come_with_the_work_and_leave_when_it_is_done(world: World) -> None:
    launcher = world.client()
    assert launcher.working() == set()
    batches = [world.held(f"g{n}x", 4) for n in range(4)]
    launcher.wait_working(3)
    for number in range(4):
        world.upstream.gate(f"g{number}x").open()
    for batch_id, prompts in batches:
        world.assert_ended(batch_id, prompts)
    launcher.wait_working(0)
    for _, prompts in batches:
        assert world.calls(prompts) == [1] * len(prompts), "a worker that leaves costs no call"


def test_a_yard_is_kept_by_one_launcher_and_reached_over_the_client_port(world: World) -> None:
    launcher = world.client()
    assert "is on this Ray cluster already, with 0 workers" in world.refused()
    batch_id, prompts = world.held("c", 2)
    world.wait_held(prompts)
    assert "is on this Ray cluster already, with 1 workers" in world.refused()
    world.upstream.gate("c").open()
    world.assert_ended(batch_id, prompts)
    launcher.signal(signal.SIGTERM)
    assert launcher.wait() == 0


def test_a_launcher_that_waits_for_the_one_before_it_ends_in_order_on_sigterm(
    world: World, tmp_path: Path
) -> None:
    world.pair().wait_working(2)
    config = _upstreams(world.upstream.url)
    second = Launcher(tmp_path, world.shared, config, "--address", world.cluster.address)
    second.launch()
    try:
        poll(lambda: "waiting for the end of" in second.read_log(), second.read_log)
        second.signal(signal.SIGTERM)
        assert second.wait() == 0, second.read_log()
    finally:
        second.__exit__()


def test_workers_are_spread_over_the_nodes_and_work_and_let_their_calls_end_on_sigterm(
    world: World,
) -> None:
    launcher = world.pair()
    names = launcher.wait_working(2)
    batch_id, prompts = world.held("s")
    world.wait_held(prompts)
    workers = world.holding()
    assert {worker["name"] for worker in workers} == names
    assert sorted(worker["node"] for worker in workers) == world.cluster.nodes
    assert [w["work"][0]["pool"] for w in workers if w["work"]] == ["up/scripted"]
    launcher.signal(signal.SIGTERM)
    poll(lambda: "let their calls end" in launcher.read_log(), launcher.read_log)
    world.upstream.gate("s").open()
    assert launcher.wait() == 0
    assert world.calls(prompts) == [1] * len(prompts), "calls in flight were given up"
    world.pair()
    world.assert_ended(batch_id, prompts)
    assert world.calls(prompts) == [1] * len(prompts)


@pytest.mark.parametrize("what", ["node", "actor"])  # first, while each is on a node of its own
def test_what_was_on_an_actor_or_a_node_that_is_killed_goes_on_elsewhere(
    world: World, what: str
) -> None:
    launcher = world.pair()
    before = launcher.wait_working(2)
    batch_id, prompts = world.held(what)
    world.wait_held(prompts)
    workers = world.holding()
    holder = next(worker for worker in workers if worker["work"])
    what_is_shared = "node" if what == "node" else "name"
    killed = {w["name"] for w in workers if w[what_is_shared] == holder[what_is_shared]}
    assert len(killed) == 1
    if what == "actor":
        os.kill(holder["pid"], signal.SIGKILL)
    else:
        world.cluster.do("kill_node", node=holder["node"])
    after = launcher.wait_working(2, but=sorted(killed))
    assert after >= before - killed, "the other one was left alone"
    world.upstream.gate(what).open()
    world.assert_ended(batch_id, prompts)
    assert max(world.calls(prompts)) == 2, "it was killed with calls in flight"


def test_a_launcher_that_is_killed_takes_its_workers_along_and_the_next_one_goes_on(
    world: World,
) -> None:
    launcher = world.pair()
    launcher.wait_working(2)
    batch_id, prompts = world.held("k")
    world.wait_held(prompts)
    workers = world.holding()
    launcher.signal(signal.SIGKILL)
    assert launcher.wait() == -signal.SIGKILL
    for worker in workers:
        poll(lambda: not is_alive(worker["pid"]), lambda: f"{worker} goes on")  # noqa: B023
    world.upstream.gate("k").open()
    world.pair()
    world.assert_ended(batch_id, prompts)
    assert max(world.calls(prompts)) == 2, "it was killed with calls in flight"


def test_the_head_is_killed_and_a_new_cluster_goes_on_with_what_was_left(world: World) -> None:
    launcher = world.pair()
    launcher.wait_working(2)
    batch_id, prompts = world.held("h", 12)
    world.wait_held(prompts)
    workers = world.holding()
    world.lose_head()
    assert launcher.wait() != 0, "a launcher without a cluster must not look alive"
    # Their calls end, and then they do: nobody is left who could tell them to.
    world.upstream.gate("h").open()
    for worker in workers:
        poll(lambda: not is_alive(worker["pid"]), lambda: f"{worker} goes on")  # noqa: B023
    world.local()
    world.assert_ended(batch_id, prompts)
    assert world.calls(prompts) == [1] * len(prompts), "calls in flight were given up"


def test_a_local_cluster_ends_with_ctrl_c_and_its_workers_let_their_calls_end(
    world: World,
) -> None:
    launcher = world.local()
    batch_id, prompts = world.held("l", 4)
    world.wait_held(prompts)
    launcher.signal(signal.SIGINT, group=True)
    poll(lambda: "let their calls end" in launcher.read_log(), launcher.read_log)
    world.upstream.gate("l").open()
    assert launcher.wait() == 0, launcher.read_log()
    assert all(world.upstream.answered[_name(prompt)] for prompt in prompts)
    assert world.calls(prompts) == [1] * len(prompts)
    world.api.post(f"{BATCHES}/{batch_id}/cancel", {})
