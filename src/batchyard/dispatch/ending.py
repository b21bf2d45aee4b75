"""The last step of a batch: one manifest for all its shards, then `ended` with the counts."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from batchyard import crash, segments, wire
from batchyard.errors import DamagedError
from batchyard.model import Extent, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.clock import Clock
    from batchyard.ledger import Ledger, ShardResult
    from batchyard.segments import Segments

log = logging.getLogger(__name__)


class _Extent(msgspec.Struct, frozen=True, array_like=True):
    segment: str
    length: int
    blocks: tuple[int, ...] = ()  # missing in files from before there were checksums


class Manifest(msgspec.Struct, frozen=True):
    """What the result of a batch consists of: the extents, in this order."""

    batch: str
    extents: list[_Extent]


_manifest = msgspec.json.Decoder(Manifest)


async def end_batch(ledger: Ledger, store: Segments, clock: Clock, batch_id: str) -> None:
    """End a batch all of whose shards are done. Safe to repeat and to run twice at once.

    The manifest is durable before `ended` is visible, so results can be read at that moment.
    """
    shards = await ledger.results(batch_id)
    if not shards:
        return  # it has ended; writing now would replace its manifest by an empty one
    extents = [_Extent(e.segment, e.length, e.blocks) for s in shards for e in s.extents]
    manifest = Manifest(batch_id, extents)
    name = segments.manifest_name(batch_id)
    await asyncio.to_thread(store.put, name, [wire.encode(manifest)])
    crash.point("manifest_written")
    try:
        ended = await ledger.end(batch_id, clock.now_us(), _sum(shards))
    except DamagedError as error:
        log.error("damaged batch=%s: %s", batch_id, error)  # noqa: TRY400 - it says all
        return
    if ended:
        log.info("ended batch=%s shards=%d", batch_id, len(shards))


def read_manifest(store: Segments, batch_id: str) -> list[Extent]:
    """Return the extents of an ended batch. Blocks.

    Raises:
        DamagedError, StoreError: it cannot be read.
    """
    name = segments.manifest_name(batch_id)
    try:
        manifest = _manifest.decode(store.read(name, 0, store.size(name)))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"the manifest {name} is damaged: {error}") from None
    return [Extent(e.segment, e.length, e.blocks) for e in manifest.extents]


def _sum(shards: Sequence[ShardResult]) -> Tokens:
    return Tokens(
        input=sum(shard.tokens.input for shard in shards),
        output=sum(shard.tokens.output for shard in shards),
        cache_write=sum(shard.tokens.cache_write for shard in shards),
        cache_read=sum(shard.tokens.cache_read for shard in shards),
    )
