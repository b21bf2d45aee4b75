"""The last step of a batch: one manifest for all its shards, then `ended` with the counts."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batchyard import crash, limits, segments, wire
from batchyard.dispatch.adopt import damages, verify_extent
from batchyard.errors import DamagedError, SegmentRefused, StoreError
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
    """End a batch all of whose shards are done; see `end_batches`."""
    await end_batches(ledger, store, clock, [batch_id])


async def end_batches(
    ledger: Ledger,
    store: Segments,
    clock: Clock,
    batch_ids: Sequence[str],
    *,
    is_sweep: bool = False,
) -> None:
    """End batches all of whose shards are done. Safe to repeat and to run twice at once.

    The manifest is durable before `ended` is visible, so results can be read at that moment. What
    the disk has damaged since it was committed is found here, the last time that it can be helped:
    its shards are taken up again, and the batch ends when they are done. Where that was too often
    (`limits.DAMAGES_MAX`) errors are recorded instead, and nothing more is paid; but a disk that
    damages even these would be written and read without a pause, so there only sweeps go on. Small
    batches come in floods: manifests are written at the same time, and many end in one transaction.

    Args:
        ledger: of the batches.
        store: its segments.
        clock: of their ends.
        batch_ids: which.
        is_sweep: whether it is a while since these were tried last, and they are tried again: a
            store that comes back may fail then.
    """
    for start in range(0, len(batch_ids), limits.ENDS_AT_ONCE):
        group = batch_ids[start : start + limits.ENDS_AT_ONCE]
        whole = await _read_once_more(ledger, store, group, is_sweep=is_sweep)
        found = await asyncio.gather(
            *(_prepare(store, *each) for each in whole.items()), return_exceptions=True
        )
        may_fail, has_failed = is_sweep and store.comes_back, False
        for each in found:
            if isinstance(each, SegmentRefused):
                log.error("refused %s: its batch cannot end", each)  # the next sweep tries again
            elif may_fail and isinstance(each, StoreError):
                log.error("failed %s: batches cannot end now", each)
                has_failed = True
            elif isinstance(each, BaseException):
                raise each
        await _end(ledger, clock, [each for each in found if isinstance(each, Ending)])
        if has_failed:
            return  # the others would, too, and take as long


async def _read_once_more(
    ledger: Ledger, store: Segments, batch_ids: Sequence[str], *, is_sweep: bool
) -> dict[str, Sequence[ShardResult]]:
    """Return the shards of batches that can end, by batch; take up again what is damaged.

    One thread reads, whatever there is to read: others have work for the rest.
    """
    found = {batch_id: await ledger.results(batch_id) for batch_id in batch_ids}
    # Without shards it has ended: writing now would replace its manifest by an empty one.
    found = {batch_id: shards for batch_id, shards in found.items() if shards}
    if store.repairs_itself:
        return found
    damaged = await asyncio.to_thread(
        lambda: {batch_id: _damaged(store, shards) for batch_id, shards in found.items()}
    )
    for batch_id, shards in damaged.items():
        if shards is None:
            del found[batch_id]  # the next sweep tries again
        elif shards:
            again = [s.index for s in shards if is_sweep or damages(s.extents) < limits.DAMAGES_MAX]
            await ledger.reopen(batch_id, again)
            del found[batch_id]
    return found


class Ending(NamedTuple):
    """A batch whose manifest is written."""

    batch: str
    tokens: Tokens
    shards: int
    attempts: int
    """The sum of those at its shards: the ledger sees by it whether one was taken up again."""


async def _prepare(store: Segments, batch_id: str, shards: Sequence[ShardResult]) -> Ending:
    """Write the manifest of a batch."""
    await asyncio.to_thread(_write_manifest, store, batch_id, shards)
    crash.point("manifest_written")
    attempts = sum(shard.attempt for shard in shards)
    return Ending(batch_id, _sum(shards), len(shards), attempts)


async def _end(ledger: Ledger, clock: Clock, endings: Sequence[Ending]) -> None:
    if not endings:
        return
    try:
        ended = await ledger.end_all(
            [(each.batch, each.tokens) for each in endings],
            clock.now_us(),
            attempts={each.batch: each.attempts for each in endings},
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
    """Write the manifest. Blocks.

    Two processes may do that at the same time, and one of them be held up until the other has found
    damage, had its shards done again, and ended the batch. `end` refuses the late one; but its file
    must not take the place of the other's either. So its name tells how many extents are set aside,
    and the one with the most counts. Without damage there is nothing different to be written.
    """
    # An extent of no length was damaged once, and is set aside.
    extents = [
        _Extent(e.segment, e.length, e.blocks) for s in shards for e in s.extents if e.length
    ]
    set_aside = sum(not e.length for s in shards for e in s.extents)
    # Where nothing is read once more, nothing is taken up again that was done.
    name = segments.manifest_name(batch_id, 0 if store.repairs_itself else set_aside)
    store.put(name, [wire.encode(Manifest(batch_id, extents))])


def _damaged(store: Segments, shards: Sequence[ShardResult]) -> list[ShardResult] | None:
    """Return the shards whose results are not what was written; None if any are refused. Blocks."""
    found = []
    for shard in shards:
        try:
            for extent in shard.extents:
                verify_extent(store, extent)
        except DamagedError as error:
            log.error("damaged %s", error)  # noqa: TRY400 - it says all
            found.append(shard)
        except SegmentRefused as error:
            log.error("refused %s: its batch cannot end", error)  # noqa: TRY400 - it says all
            return None
    return found


def read_manifest(store: Segments, batch_id: str) -> list[Extent]:
    """Return the extents of an ended batch. Blocks.

    Raises:
        DamagedError, StoreError: it cannot be read.
    """
    name = _manifest_of(store, batch_id)
    try:
        manifest = _manifest.decode(store.read(name, 0, store.size(name)))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"the manifest {name} is damaged: {error}") from None
    return [Extent(e.segment, e.length, e.blocks) for e in manifest.extents]


def _manifest_of(store: Segments, batch_id: str) -> str:
    """Return the name of the manifest that counts; see `_write_manifest`. Blocks."""
    name = segments.manifest_name(batch_id)
    if store.repairs_itself:
        return name
    there = store.names(name.removesuffix("json"))
    set_aside = max((segments.set_aside_of(each) or 0 for each in there), default=0)
    return segments.manifest_name(batch_id, set_aside)


def _sum(shards: Sequence[ShardResult]) -> Tokens:
    return Tokens(
        input=sum(shard.tokens.input for shard in shards),
        output=sum(shard.tokens.output for shard in shards),
        cache_write=sum(shard.tokens.cache_write for shard in shards),
        cache_read=sum(shard.tokens.cache_read for shard in shards),
    )
