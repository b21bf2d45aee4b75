"""The last step of a batch: one manifest for all its shards, then `ended` with the counts."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batchyard import crash, limits, segments, wire
from batchyard.dispatch.adopt import verify_extent
from batchyard.errors import DamagedError
from batchyard.model import Extent, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.clock import Clock
    from batchyard.ledger import Ledger, ShardResult
    from batchyard.segments import Segments

log = logging.getLogger(__name__)

_QUICK_S = 1.0


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
    """End a batch all of whose shards are done; see `end_batches`."""
    await end_batches(ledger, store, clock, [batch_id])


async def end_batches(
    ledger: Ledger, store: Segments, clock: Clock, batch_ids: Sequence[str]
) -> None:
    """End batches all of whose shards are done. Safe to repeat and to run twice at once.

    The manifest is durable before `ended` is visible, so results can be read at that moment. What
    the disk has damaged since it was committed is found here, the last time that it can be helped:
    its shards are taken up again, and the batch ends when they are done. Small batches come in
    floods: manifests are written at the same time, and many end in one transaction.
    """
    for start in range(0, len(batch_ids), limits.ENDS_AT_ONCE):
        group = batch_ids[start : start + limits.ENDS_AT_ONCE]
        whole = await _read_once_more(ledger, store, clock, group)
        found = await asyncio.gather(
            *(_prepare(store, *each) for each in whole.items()), return_exceptions=True
        )
        for each in found:
            if isinstance(each, BaseException):
                raise each
        await _end(ledger, clock, [each for each in found if isinstance(each, Ending)])


async def _read_once_more(
    ledger: Ledger, store: Segments, clock: Clock, batch_ids: Sequence[str]
) -> dict[str, Sequence[ShardResult]]:
    """Return the shards of batches that can end, by batch; take up again what is damaged.

    One thread reads, whatever there is to read: others have work for the rest.
    """
    found = {batch_id: await ledger.results(batch_id) for batch_id in batch_ids}
    # Without shards it has ended: writing now would replace its manifest by an empty one.
    found = {batch_id: shards for batch_id, shards in found.items() if shards}
    if store.repairs_itself:
        return found
    began_s = clock.monotonic_s()
    damaged = await asyncio.to_thread(
        lambda: {batch_id: _damaged(store, shards) for batch_id, shards in found.items()}
    )
    for batch_id, indexes in damaged.items():
        if indexes:
            await ledger.reopen(batch_id, indexes)
            del found[batch_id]
    if clock.monotonic_s() - began_s < _QUICK_S:
        return found
    # Meanwhile another process may have found damage, and done its shards anew.
    return {b: shards for b, shards in found.items() if await ledger.results(b) == shards}


class Ending(NamedTuple):
    """A batch whose manifest is written."""

    batch: str
    tokens: Tokens
    shards: int


async def _prepare(store: Segments, batch_id: str, shards: Sequence[ShardResult]) -> Ending:
    """Write the manifest of a batch."""
    await asyncio.to_thread(_write_manifest, store, batch_id, shards)
    crash.point("manifest_written")
    return Ending(batch_id, _sum(shards), len(shards))


async def _end(ledger: Ledger, clock: Clock, endings: Sequence[Ending]) -> None:
    if not endings:
        return
    try:
        ended = await ledger.end_all(
            [(each.batch, each.tokens) for each in endings], clock.now_us()
        )
    except DamagedError as error:
        if len(endings) == 1:
            log.error("damaged batch=%s: %s", endings[0].batch, error)  # noqa: TRY400 - it says all
        else:  # none has ended; the others can
            for each in endings:
                await _end(ledger, clock, [each])
        return
    for each in endings:
        if each.batch in ended:
            log.info("ended batch=%s shards=%d", each.batch, each.shards)


def _write_manifest(store: Segments, batch_id: str, shards: Sequence[ShardResult]) -> None:
    """Write the manifest. Blocks."""
    # An extent of no length was damaged once, and is set aside.
    extents = [
        _Extent(e.segment, e.length, e.blocks) for s in shards for e in s.extents if e.length
    ]
    name = segments.manifest_name(batch_id)
    store.put(name, [wire.encode(Manifest(batch_id, extents))])


def _damaged(store: Segments, shards: Sequence[ShardResult]) -> list[int]:
    """Return the indexes of the shards whose results are not what was written. Blocks."""
    found = []
    for shard in shards:
        try:
            for extent in shard.extents:
                verify_extent(store, extent)
        except DamagedError as error:
            log.error("damaged %s", error)  # noqa: TRY400 - it says all
            found.append(shard.index)
    return found


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
