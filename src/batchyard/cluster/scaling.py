"""How many workers a group should have, from the work that is open. Pure.

A worker is added for every so many unanswered requests, but never more than there are shards: a
shard is the work of one worker. One leaves only when fewer have been enough for a while, so that
the end of one batch and the start of the next do not end workers and start them again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from batchyard.ledger.open_work import Waiting

if TYPE_CHECKING:
    from batchyard.dispatch.routes import Routes
    from batchyard.ledger.open_work import Backlog
    from batchyard.server.groups import Group


def useful(groups: tuple[Group, ...], backlog: Backlog, routes: Routes) -> dict[str, int]:
    """Return how many workers of each group have something to do, by its name.

    What no upstream takes is done by the last group, in which one worker is enough for it.
    """
    group_of = {name: group.name for group in groups for name in group.upstreams}
    requests = dict.fromkeys((group.name for group in groups), 0)
    shards = dict(requests)
    endless = set()
    for work in (*backlog.waiting, *backlog.taken):
        upstream = routes.upstream_of_pool(work.pool)
        if upstream is None:
            requests[groups[-1].name] += 1
            shards[groups[-1].name] += 1
            continue
        name = group_of[upstream]
        requests[name] += work.requests
        shards[name] += work.shards
        if isinstance(work, Waiting) and work.is_more:
            endless.add(name)
    return {
        group.name: group.workers_max
        if group.name in endless
        else min(-(-requests[group.name] // group.requests_per_worker), shards[group.name])
        for group in groups
    }


class Scaler:
    """How many workers a group should have."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._peaks: deque[tuple[float, int]] = deque()
        """Moments and numbers: ever smaller ones, each the highest since its moment."""

    def wanted(self, useful: int, now_s: float) -> int:
        """Return how many workers there should be now.

        Args:
            useful: that have something to do.
            now_s: monotonic time.
        """
        group, peaks = self._group, self._peaks
        count = max(group.workers_min, min(useful, group.workers_max))
        while peaks and peaks[-1][1] <= count:
            peaks.pop()
        peaks.append((now_s, count))
        while peaks[0][0] < now_s - group.scale_down_after_s:
            peaks.popleft()
        return peaks[0][1]
