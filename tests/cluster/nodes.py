"""A Ray cluster of a head and two nodes on this machine, run by the environment that has Ray.

Reads one JSON command a line from standard input, answers one JSON line each. It ends with its
standard input, and the cluster with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.cluster_utils import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable

logging.disable(logging.ERROR)


class Nodes:
    """The cluster, and what a test does to it."""

    def __init__(self, *, client_port: int, cpus: int) -> None:
        # The head has no CPUs, so that no worker goes down with it but by its death. What only
        # costs time here, logs to a driver and an autoscaler, is left out.
        head = {
            "num_cpus": 0,
            "include_dashboard": False,
            "include_log_monitor": False,
            "no_monitor": True,
            "ray_client_server_port": client_port,
        }
        self._cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self._cpus = cpus
        self._nodes: dict[str, Any] = {}
        for _ in range(2):
            self.add()

    def hello(self) -> dict[str, object]:
        return {"address": self._cluster.address, "nodes": sorted(self._nodes)}

    def add(self) -> dict[str, object]:
        node = _patiently(lambda: self._cluster.add_node(num_cpus=self._cpus, num_gpus=1))
        self._nodes[node.node_id] = node
        return self.hello()

    def kill_node(self, node: str) -> dict[str, object]:
        """Kill a node and all workers on it, as when its machine goes."""
        _kill_all(self._nodes.pop(node))
        return self.hello()

    def kill_head(self) -> dict[str, object]:
        """Kill the processes of the head: the control plane is gone."""
        _kill_all(self._cluster.head_node)
        return {}

    def stop(self) -> None:
        for node in (self._cluster.head_node, *self._nodes.values()):
            if node is not None:
                _kill_all(node)


def _patiently(start: Callable[[], Any]) -> Any:
    """Start something, once more where Ray's 30 s for it were not enough on a busy machine."""
    for left in (3, 2, 1, 0):
        before = set(_children(os.getpid()))
        try:
            return start()
        except Exception:
            if not left:
                raise
            for pid in set(_children(os.getpid())) - before:
                for each in (*_children(pid), pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(each, signal.SIGKILL)
    raise AssertionError


def _kill_all(node: Any) -> None:
    """Kill the processes of a node, its workers first: they would notice, but not at once."""
    for infos in node.all_processes.values():
        for info in infos:
            for pid in (*_children(info.process.pid), info.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            info.process.wait()


def _children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in listed.split()]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray prints
    nodes = Nodes(**json.loads(sys.argv[1]))
    try:
        print(json.dumps(nodes.hello()), file=answers, flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            answer = getattr(nodes, command.pop("do"))(**command)
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        nodes.stop()


if __name__ == "__main__":
    main()
