"""Check one batch: its rows against its requests and its results, byte by byte."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from batchyard import limits, segments, wire
from batchyard.dispatch import ending
from batchyard.errors import DamagedError, StoreError, shown
from batchyard.segments.directory import DirectorySegments
from batchyard.verify import reading, requests, results, rows
from batchyard.verify.findings import Reporter, Rule
from batchyard.verify.rows import DONE, BatchRow, ShardRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from batchyard.model import Counts, Extent, Tokens
    from batchyard.verify.files import BatchFiles

_MANIFEST_BYTES_MAX = 64 * limits.MIB
_NAMED = 3
_DAMAGE = frozenset({Rule.EXTENT_SHORT, Rule.RESULT_CHECKSUM, Rule.UNREADABLE})
"""What a yard finds by itself of the results that its rows name, and makes again."""


class _Header(msgspec.Struct):
    batch: str


class BatchCheck:
    """The check of one batch."""

    def __init__(self, root: Path, row: BatchRow, files: BatchFiles, report: Reporter) -> None:
        """Begin.

        Args:
            root: of the segments.
            row: of the batch.
            files: its segments, listed.
            report: where findings go.
        """
        self._root = root
        self._row = row
        self._files = files
        self._report = report
        self.is_lost = False
        """Whether it is open and can never end."""
        self.is_redone = False
        """Whether it is open, and results of it are damaged."""
        self._damages = 0
        self._ids: set[str] = set()
        self._named: set[str] = set()
        """Result segments that a row or the manifest names, by the last part of their names."""

    def open(self, shards: Sequence[ShardRow]) -> None:
        """Check a batch that has not ended."""
        for shard in shards:
            for rule, text in rows.shard_problems(shard, self._row):
                self._add(rule, text, shard=shard.idx)
        self._fences({shard.idx: shard.attempt for shard in shards})
        if self._files.manifest is not None and any(shard.state != DONE for shard in shards):
            self._add(
                Rule.MANIFEST_EARLY,
                "there is a manifest, and not all shards are done",
                segment=segments.manifest_name(self._row.id, self._files.manifest),
            )
        self._report.summary.shards += len(shards)
        name = segments.requests_name(self._row.id)
        try:
            with reading.opened(self._root / name) as file:
                for rule, text in rows.cover_problems(shards, self._row.requests, file.size):
                    self._add(rule, text)
                for shard in shards:
                    found = self._requests(file, shard.off, shard.len, shard)
                    self._shard(shard, found)
        except StoreError as error:
            is_gone = isinstance(error, DamagedError)
            rule = Rule.REQUESTS_MISSING if is_gone else Rule.UNREADABLE
            self._add(rule, str(error), segment=name)
            for shard in shards:
                self._shard(shard, None)
        self._unnamed({shard.idx for shard in shards if shard.state != DONE})

    def ended(self, shards: Sequence[ShardRow]) -> None:
        """Check a batch that has ended and is not archived."""
        row = self._row
        if shards:
            self._add(Rule.BATCH_STATE, f"it has ended, and {len(shards)} shards are left")
        name = segments.requests_name(row.id)
        ids: set[str] | None = None
        try:
            with reading.opened(self._root / name) as file:
                found = self._requests(file, 0, file.size, None)
                ids = None if found is None else found.ids
        except DamagedError as error:
            self._add(Rule.REQUESTS_MISSING, str(error), segment=name)
        except StoreError as error:
            self._add(Rule.UNREADABLE, str(error), segment=name)
        extents = self._manifest()
        if extents is not None:
            covered = results.Covered(ids)
            for extent in extents:
                self._extent(extent, covered, None)
            self._compare(covered, row.counts, _tokens(row.tokens), row.requests, None)
            self._unnamed(set())

    # Requests ------------------------------------------------------------------------------------

    def _requests(
        self, file: reading.File, offset: int, length: int, shard: ShardRow | None
    ) -> _Requests | None:
        """Check the requests of a shard, or all of them; return them, None when broken."""
        name = segments.requests_name(self._row.id)
        index = None if shard is None else shard.idx
        expected = self._row.requests if shard is None else shard.n
        checksum = None if shard is None else shard.crc
        blocks = _Summed(file.blocks(offset, length))
        found = _Requests()
        try:
            for record in requests.records(blocks, length):
                self._record(record, offset, index)
                found.ids.add(record.custom_id)
                found.number += 1
                found.is_proven = found.is_proven and record.is_proven
            self._report.summary.requests += found.number
            if found.number != expected:
                text = f"{found.number} requests, its row says {expected}"
                self._add(Rule.REQUESTS_COUNT, text, shard=index, segment=name)
        except requests.BrokenRecord as error:
            text = "from here on it is no request"
            at = offset + error.offset
            self._add(Rule.REQUESTS_DAMAGED, text, shard=index, segment=name, offset=at)
            return None
        except DamagedError as error:
            self._add(Rule.REQUESTS_DAMAGED, str(error), shard=index, segment=name, offset=offset)
            return None
        except StoreError as error:
            self._add(Rule.UNREADABLE, str(error), shard=index, segment=name, offset=offset)
            return None
        if checksum not in {None, blocks.crc}:
            self._add(
                Rule.REQUESTS_CHECKSUM,
                f"the {length} bytes of the shard are not those that were accepted",
                shard=index,
                segment=name,
                offset=offset,
            )
        else:
            found.is_proven = True
        return found

    def _record(self, record: requests.Record, start: int, shard: int | None) -> None:
        name = segments.requests_name(self._row.id)
        at = start + record.offset
        if not wire.is_custom_id(record.custom_id):
            text = f"{shown(record.custom_id)} cannot be a custom_id"
            self._add(Rule.REQUESTS_ID, text, shard=shard, segment=name, offset=at)
        elif record.custom_id in self._ids:
            text = f"there are two requests {record.custom_id}"
            self._add(Rule.REQUESTS_ID, text, shard=shard, segment=name, offset=at)
        self._ids.add(record.custom_id)
        problem = requests.params_problem(record.params)
        if problem is not None:
            text = f"the params of {shown(record.custom_id)}: {problem}"
            self._add(Rule.REQUESTS_PARAMS, text, shard=shard, segment=name, offset=at)

    # Results -------------------------------------------------------------------------------------

    def _shard(self, shard: ShardRow, found: _Requests | None) -> None:
        """Check the extents that the row of a shard names."""
        before = self._damages
        self._extents_of(shard, None if found is None else found.ids)
        is_whole = self._damages == before
        if shard.state != DONE or not is_whole:  # then a yard needs its requests
            is_told = found is not None and found.is_proven and found.number == shard.n
            self.is_lost = self.is_lost or not is_told
            self.is_redone = self.is_redone or not is_whole

    def _extents_of(self, shard: ShardRow, ids: set[str] | None) -> None:
        covered = results.Covered(ids)
        try:
            extents = rows.read_extents(shard.manifest)
        except ValueError as error:
            self._add(Rule.SHARD_ROW, f"its extents cannot be read: {error}", shard=shard.idx)
            self._named |= {name for name in self._files.results if _shard_of(name) == shard.idx}
            return
        for extent in extents:
            self._extent(extent, covered, shard)
        if shard.state == DONE:
            tokens = _tokens(shard.tokens)
            self._compare(covered, shard.counts, tokens, shard.n, shard.idx)
        else:
            self._pending(shard, covered)

    def _manifest(self) -> Sequence[Extent] | None:
        """Return the extents of a batch that has ended, None when they cannot be read."""
        name = segments.manifest_name(self._row.id, self._files.manifest or 0)
        try:
            batch, extents = self._read_manifest(name)
        except DamagedError as error:
            is_there = self._files.manifest is not None
            rule = Rule.MANIFEST_DAMAGED if is_there else Rule.MANIFEST_MISSING
            self._add(rule, str(error), segment=name)
            return None
        except StoreError as error:
            self._add(Rule.UNREADABLE, str(error), segment=name)
            return None
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError) as error:
            self._add(Rule.MANIFEST_DAMAGED, str(error), segment=name)
            return None
        if batch != self._row.id:
            self._add(Rule.MANIFEST_DAMAGED, f"it is of batch {shown(batch)}", segment=name)
        return extents

    def _read_manifest(self, name: str) -> tuple[str, Sequence[Extent]]:
        """Return the batch that a manifest names, and its extents."""
        with reading.opened(self._root / name) as file:
            if file.size > _MANIFEST_BYTES_MAX:
                raise DamagedError(f"it has {file.size} bytes")
            data = b"".join(file.blocks(0, file.size))
        batch = msgspec.json.decode(data, type=_Header).batch
        extents = ending.read_manifest(DirectorySegments(self._root), self._row.id)
        return batch, rows.checked_extents(extents)

    def _extent(self, extent: Extent, covered: results.Covered, shard: ShardRow | None) -> None:
        """Check one extent of a shard, or of the whole batch."""
        index = None if shard is None else shard.idx
        problem = self._name_problem(extent.segment, shard)
        if problem is not None:
            self._add(Rule.EXTENT_NAME, f"{shown(extent.segment)} {problem}", shard=index)
            return
        self._named.add(extent.segment.rpartition("/")[2])
        if not extent.length:
            text = "the disk had damaged it: what was whole was copied, the rest is made again"
            self._add(Rule.SET_ASIDE, text, shard=index, segment=extent.segment)
            return
        try:
            with reading.opened(self._root / extent.segment) as file:
                length = min(extent.length, file.size)
                if length < extent.length:
                    text = f"it has {file.size} bytes, {extent.length} are part of the result"
                    self._add(Rule.EXTENT_SHORT, text, shard=index, segment=extent.segment)
                blocks = self._checked(file.blocks(0, length), extent, index)
                self._lines(blocks, extent.segment, covered, index)
        except DamagedError as error:
            self._add(Rule.EXTENT_SHORT, str(error), shard=index, segment=extent.segment)
        except StoreError as error:
            self._add(Rule.UNREADABLE, str(error), shard=index, segment=extent.segment)

    def _name_problem(self, name: str, shard: ShardRow | None) -> str | None:
        parent, _, last = name.rpartition("/")
        found = results.attempt_of(last)
        if parent != f"{segments.batch_prefix(self._row.id)}/r" or found is None:
            return "is no result segment of this batch"
        if last in self._named:
            return "is part of the result twice"
        if shard is None:
            return None
        of_shard, attempt = found
        if of_shard != shard.idx:
            return "is of another shard"
        if attempt > shard.attempt:
            return f"is of a later attempt than number {shard.attempt}"
        return None

    def _checked(
        self, blocks: Iterator[bytes], extent: Extent, shard: int | None
    ) -> Iterator[bytes]:
        """Yield blocks, comparing each with its checksum where there is one."""
        checksums = rows.blocks_of(extent)
        expected = -(-extent.length // reading.BLOCK_BYTES)
        if checksums and len(checksums) != expected:
            text = f"{len(checksums)} checksums, there must be {expected}"
            self._add(Rule.RESULT_CHECKSUM, text, shard=shard, segment=extent.segment)
            checksums = ()
        for number, block in enumerate(blocks):
            if checksums and zlib.crc32(block) != checksums[number]:
                self._add(
                    Rule.RESULT_CHECKSUM,
                    f"{len(block)} bytes are not those that were written",
                    shard=shard,
                    segment=extent.segment,
                    offset=number * reading.BLOCK_BYTES,
                )
            yield block

    def _lines(
        self, blocks: Iterator[bytes], name: str, covered: results.Covered, shard: int | None
    ) -> None:
        for line in results.lines(blocks):
            self._report.summary.results += 1
            try:
                read = results.read_line(line)
            except ValueError as error:
                text = f"no result line: {error}"
                self._add(Rule.RESULT_DAMAGED, text, shard=shard, segment=name, offset=line.offset)
                continue
            problem = covered.take(read)
            if problem == "twice":
                text = f"another result of {shown(read[0])}"
                self._add(Rule.RESULT_TWICE, text, shard=shard, segment=name, offset=line.offset)
            elif problem == "unknown":
                text = f"there is no request {shown(read[0])}"
                self._add(Rule.RESULT_UNKNOWN, text, shard=shard, segment=name, offset=line.offset)

    def _compare(
        self,
        covered: results.Covered,
        counts: Counts,
        tokens: Tokens | None,
        requests: int,
        shard: int | None,
    ) -> None:
        """Compare what was found with what a row says."""
        missing = covered.missing
        if missing:
            text = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
            self._add(Rule.RESULT_MISSING, f"{len(missing)} without: {text}", shard=shard)
        if covered.lines != requests or covered.counts != counts:
            self._add(
                Rule.RESULT_COUNTS,
                f"{requests} requests, {_named(counts)} in its row; found {_named(covered.counts)}",
                shard=shard,
            )
        if tokens is not None and covered.tokens != tokens:
            text = f"{_summed(tokens)} in its row; found {_summed(covered.tokens)}"
            self._add(Rule.RESULT_TOKENS, text, shard=shard)

    def _fences(self, attempts: dict[int, int]) -> None:
        """Look for results of attempts that the rows know nothing of: a claim is durable first."""
        for last in sorted(self._files.results):
            found = results.attempt_of(last)
            if found is not None and found[1] > attempts.get(found[0], found[1]):
                self._add(
                    Rule.SHARD_STATE,
                    f"it is of a later attempt than the row's number {attempts[found[0]]}",
                    shard=found[0],
                    segment=f"{segments.batch_prefix(self._row.id)}/r/{last}",
                )

    # What no row names ---------------------------------------------------------------------------

    def _pending(self, shard: ShardRow, covered: results.Covered) -> None:
        """Say how much of what earlier attempts have left cannot be adopted."""
        for last in sorted(self._files.results - self._named):
            if _shard_of(last) != shard.idx:
                continue
            name = f"{segments.batch_prefix(self._row.id)}/r/{last}"
            try:
                with reading.opened(self._root / name) as file:
                    end = _adoptable(file.blocks(0, file.size), covered.expected)
                    size = file.size
            except StoreError as error:
                self._add(Rule.UNREADABLE, str(error), shard=shard.idx, segment=name)
                continue
            if end < size:
                self._add(
                    Rule.UNFINISHED,
                    f"{size - end} bytes at its end are no results; what they were is run again",
                    shard=shard.idx,
                    segment=name,
                    offset=end,
                )

    def _unnamed(self, running: set[int]) -> None:
        """Name the result segments that are part of no result and will not be adopted."""
        for last in sorted(self._files.results - self._named):
            if _shard_of(last) not in running:
                self._add(
                    Rule.LEFTOVER,
                    "of an attempt that lost its shard; it goes with its batch",
                    segment=f"{segments.batch_prefix(self._row.id)}/r/{last}",
                )

    def _add(
        self,
        rule: Rule,
        text: str,
        *,
        shard: int | None = None,
        segment: str | None = None,
        offset: int | None = None,
    ) -> None:
        self._damages += rule in _DAMAGE
        self._report.add(
            rule, text, batch=self._row.id, shard=shard, segment=segment, offset=offset
        )


@dataclass(slots=True)
class _Requests:
    """The requests of a shard, or of a batch, that could be told apart."""

    ids: set[str] = field(default_factory=set)
    number: int = 0
    is_proven: bool = True
    """Whether whose they are is certain, by their own checksums or that of the shard."""


class _Summed:
    """Blocks, and the CRC-32 of those that were read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.crc = 0

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self.crc = zlib.crc32(block, self.crc)
            yield block


def _adoptable(blocks: Iterator[bytes], expected: AbstractSet[str] | None) -> int:
    """Return how many bytes from the start are whole results of different, known requests."""
    covered = results.Covered(expected)
    end = 0
    for line in results.lines(blocks):
        try:
            if covered.take(results.read_line(line)) is not None:
                return end
        except ValueError:
            return end
        end = line.offset + len(line.data) + 1
    return end


def _shard_of(name: str) -> int | None:
    """Return the shard of a result segment, by the last part of its name."""
    found = results.attempt_of(name)
    return None if found is None else found[0]


def _tokens(text: str) -> Tokens | None:
    """Return the sums of a column; None when they cannot be read, which was found already."""
    try:
        return rows.read_tokens(text)
    except ValueError:
        return None


def _named(counts: Counts) -> str:
    return (
        f"{counts.succeeded} succeeded, {counts.errored} errored, {counts.canceled} canceled, "
        f"{counts.expired} expired"
    )


def _summed(tokens: Tokens) -> str:
    return (
        f"{tokens.input} input, {tokens.output} output, {tokens.cache_write} cache write and "
        f"{tokens.cache_read} cache read tokens"
    )
