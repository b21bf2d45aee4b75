"""What one more round by hand would send, and what it may cost: before anybody is asked.

Reads the files of a run, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import wire
from batchyard.client.results import again
from batchyard.client.running import budget, rounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchyard.client.running.folder import Files
    from batchyard.client.running.journal import State
    from batchyard.model import Billing


@dataclass(frozen=True, slots=True)
class Offer:
    """The next round: how many documents of each class, and its ceiling in micro-dollars.

    `prices` are the shares of the classes that were charged before. Amounts are None when a price
    is not known.
    """

    again: Mapping[str, int]
    micros: int | None
    prices: Mapping[str, int | None]


def make(files: Files, state: State, billing: Billing, also: frozenset[str] = frozenset()) -> Offer:
    """Return what a round would send.

    Args:
        files: of the run.
        state: of a run whose shards are all collected.
        billing: how its server charges.
        also: classes that are otherwise not sent again.

    Raises:
        ValueError: a file of the run is not what it was.
    """
    config = state.config
    assert config is not None

    def ceiling(params: bytes) -> int | None:
        return budget.ceiling(wire.decode(params), billing)

    found = rounds.gather(
        files,
        state,
        again.Settings(betas=config.betas),
        requests_max=config.shard_requests,
        also=also,
        bound=rounds.Bound(ceiling),
    )
    total = found.micros
    if total is not None and found.left_micros is not None:
        total += found.left_micros
    elif found.left:
        total = None
    kinds = {kind: found.again.get(kind, 0) + found.left.get(kind, 0)
             for kind in sorted({*found.again, *found.left})}  # fmt: skip
    return Offer(kinds, total, found.left_prices)
