"""How many shards a worker claims at a time: as its slots need, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits
from batchyard.ledger.sqlite import SqliteLedger
from sim.caching import CacheWorld

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batchyard.ledger import Claim


def requests(number: int) -> list[dict[str, Any]]:
    message = {"role": "user", "content": "Yes?"}
    return [{"model": "m", "max_tokens": 9, "messages": [message]} for _ in range(number)]


@pytest.mark.parametrize(
    ("slots", "batches", "most"),
    [(4, 1, 1), (40, 1, 5), (40, 2, 3)],
    ids=["few slots", "many", "many for two"],
)
def test_with_many_slots_several_shards_are_claimed_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, slots: int, batches: int, most: int
) -> None:
    """Of each batch as many as its part of the slots holds, and one more."""
    monkeypatch.setattr(limits, "SHARD_REQUESTS", 10)
    monkeypatch.setattr(limits, "CLAIM_AHEAD_S", 1e-9)
    claimed: list[int] = []
    real = SqliteLedger.claim

    async def told(self: SqliteLedger, *args: Any, **named: Any) -> Sequence[Claim]:
        claims = await real(self, *args, **named)
        if named.get("turn") is not None:
            assert len({claim.batch for claim in claims}) <= 1
            claimed.append(len(claims))
        return claims

    monkeypatch.setattr(SqliteLedger, "claim", told)

    async def story() -> None:
        world = CacheWorld(root, slots=slots, latency=1.0)
        made = [await world.create(requests(12 * limits.SHARD_REQUESTS)) for _ in range(batches)]
        await world.end(*made)
        assert all(world.kinds(each) == {"succeeded": each.requests} for each in made)
        await world.close()

    asyncio.run(story())
    assert max(claimed) == most
    assert sum(claimed) <= batches * 12
