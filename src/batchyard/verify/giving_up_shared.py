"""Take a batch out of stores that many machines share, while their processes go on.

As on one machine (`giving_up`), with two differences. Nobody can keep the workers away: so the
batch must have been canceled or expired for longer than any call of it can last, each of its shards
that is not done must be lost, and the rows go in one transaction, after which whoever still holds a
shard has lost it. And a bucket is no place for what nobody knows: its segments are copied to a
local directory first, and removed there as leftovers of a batch that is gone.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from typing import TYPE_CHECKING

from batchyard import limits, segments
from batchyard.disk import sync_names
from batchyard.errors import ConfigError, DamagedError, SegmentRefused, StoreError
from batchyard.segments.requests import read_ids
from batchyard.verify.files import GIVEN_UP
from batchyard.verify.rows import is_batch_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batchyard.ledger.left import Left, LeftBatches, LeftShard
    from batchyard.segments import Segments

_PIECE_BYTES = 8 * limits.MIB
_OTHERS = 20


async def give_up_shared(
    batches: LeftBatches, store: Segments, data: Path, batch_id: str, now_us: int
) -> Path:
    """Take a batch out; safe to repeat when it was cut short.

    Args:
        batches: of the ledger.
        store: its segments.
        data: below which they are kept.
        batch_id: of a batch that was canceled or has expired, and whose requests are lost.
        now_us: microseconds since 1970, UTC.

    Returns:
        Where its segments are now.

    Raises:
        ConfigError: the batch may not be given up.
        Overloaded, StoreError: a store failed, or the disk; nothing was taken out.
    """
    if not is_batch_id(batch_id):
        raise ConfigError("a batch is given up by its id, msgbatch_…")
    left = await batches.find(batch_id)
    if left is None:
        raise ConfigError(f"there is no open batch {batch_id}")
    _check_void(left, batch_id, now_us)
    others = await batches.others(batch_id, _OTHERS)
    target = data / GIVEN_UP / batch_id
    try:
        await asyncio.to_thread(_check_lost, store, batch_id, left.shards, others)
        await asyncio.to_thread(_keep, store, batch_id, target)
    except SegmentRefused as error:
        raise ConfigError(
            f"{error}: what the store refuses may be there; give access to it, or delete that "
            "object first"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot keep {batch_id} in {target}: {error}") from error
    if not await batches.take_out(batch_id, len(left.shards), now_us):
        raise ConfigError(f"a worker is about to end {batch_id}, or a part of it: try again")
    return target


def _check_void(left: Left, batch_id: str, now_us: int) -> None:
    """Check that no call of a batch can be in flight."""
    since_us = min(left.expires_us, left.expires_us if left.cancel_us is None else left.cancel_us)
    if since_us > now_us:
        raise ConfigError(f"{batch_id} may still be repaired: cancel it first, or let it expire")
    wait_us = since_us + limits.GIVE_UP_AFTER_US - now_us
    if wait_us > 0:
        seconds = -(-wait_us // limits.SECOND_US)
        raise ConfigError(f"workers may still end calls of {batch_id}: try again in {seconds} s")


def _check_lost(
    store: Segments, batch_id: str, shards: Sequence[LeftShard], others: Sequence[str]
) -> None:
    """Check that of no shard the ids can be told. Blocks.

    Raises:
        ConfigError: they can, or the segments may be those of another ledger.
        SegmentRefused, StoreError: that cannot be known.
    """
    if others and not any(store.names(f"{segments.batch_prefix(each)}/") for each in others):
        raise ConfigError(
            "no batch of this ledger has anything in these segments: is it their URL?"
        )
    there = [each.shard for each in shards if not _is_lost(store, batch_id, each)]
    if there or not shards:
        raise ConfigError(
            f"the requests of {batch_id} are there: it will end by itself"
            if len(there) == len(shards)
            else f"the requests of {len(there)} of {len(shards)} open shards of {batch_id} are "
            "there: wait until workers have ended these"
        )


def _is_lost(store: Segments, batch_id: str, shard: LeftShard) -> bool:
    """Whether nobody can tell whose results a shard lacks: as a worker finds that."""
    try:
        data = store.read(segments.requests_name(batch_id), shard.offset, shard.length)
        is_whole = shard.crc is None or zlib.crc32(data) == shard.crc
        return len(read_ids(data, is_whole=is_whole)) != shard.requests
    except DamagedError:
        return True


def _keep(store: Segments, batch_id: str, target: Path) -> None:
    """Copy all segments of a batch to a directory, durably. Blocks."""
    prefix = f"{segments.batch_prefix(batch_id)}/"
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    folders = {target, target.parent, target.parent.parent}
    for name in store.names(prefix):
        path = target / name.removeprefix(prefix)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        folders.add(path.parent)
        size = store.size(name)
        with path.open("wb") as file:
            for offset in range(0, size, _PIECE_BYTES):
                file.write(store.read(name, offset, min(_PIECE_BYTES, size - offset)))
            file.flush()
            os.fsync(file.fileno())
    for folder in folders:
        sync_names(folder)
