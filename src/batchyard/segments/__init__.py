"""Segments: named, immutable or append-only runs of bytes.

Layout of a batch, where `<h2>` are two digits of a hash that spread the names:

    <h2>/<batch>/requests        written once: the requests in dispatch order (see `requests.py`)
    <h2>/<batch>/r/<shard>.<attempt>.<nonce>   appended to by one attempt of one worker only
    <h2>/<batch>/manifest.json   written once, at the end; `manifest.<n>.json` where n extents had
                                 been set aside until then, since they were damaged: the most count
    <h2>/<batch>/sync-failed     a mark: results that were not committed are copied; `syncing.py`

In an object store, which cannot append, a result segment is a row of objects: see `objects.py`.
Nothing is ever rewritten, and only what a full disk has cut short is truncated away. Names are made
here from ids that we minted; no text of a user is part of a name. All methods block: callers use a
thread.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Protocol

from batchyard import ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from batchyard.model import Extent


def batch_prefix(batch_id: str) -> str:
    """Return the name under which all segments of a batch live."""
    return f"{hashlib.sha256(batch_id.encode()).hexdigest()[:2]}/{batch_id}"


def requests_name(batch_id: str) -> str:
    """Return the name of the requests segment."""
    return f"{batch_prefix(batch_id)}/requests"


_MANIFEST = re.compile(r"(?:.*/)?manifest(?:\.([1-9][0-9]{0,8}))?\.json")


def manifest_name(batch_id: str, set_aside: int = 0) -> str:
    """Return the name of a manifest.

    Args:
        batch_id: of the batch.
        set_aside: how many extents of it had been damaged, and set aside, until then.
    """
    number = f".{set_aside}" if set_aside else ""
    return f"{batch_prefix(batch_id)}/manifest{number}.json"


def set_aside_of(name: str) -> int | None:
    """Return the number in the name of a manifest; None if it is no such name."""
    found = _MANIFEST.fullmatch(name)
    return None if found is None else int(found[1] or 0)


def results_prefix(batch_id: str, shard: int) -> str:
    """Return what the names of all result segments of a shard begin with."""
    return f"{batch_prefix(batch_id)}/r/{shard}."


def result_name(batch_id: str, shard: int, attempt: int) -> str:
    """Return a new name for a result segment that one attempt at a shard writes."""
    return f"{results_prefix(batch_id, shard)}{attempt}.{ids.nonce()}"


def attempt_of(name: str) -> int:
    """Return which attempt has written a result segment."""
    return int(name.rpartition("/")[2].split(".")[1])


class Appender(Protocol):
    """The one writer of one result segment."""

    name: str

    def append(self, chunks: Sequence[bytes]) -> None:
        """Write `chunks` at the end. Not yet durable.

        Raises:
            DiskFull: nothing was written; it may be tried again.
            SegmentsGone: as `sync`, or the segment is not what it was.
        """

    def extents(self) -> tuple[Extent, ...]:
        """Return all that was appended and synced, with its checksums; no extent is empty."""

    def sync(self) -> None:
        """Make everything that was appended durable, the segment's name included.

        Raises:
            SegmentsGone: the batch was deleted: only one that has lost its shard may meet that.
        """

    def close(self) -> None:
        """Let go of it. Does not sync."""

    def remove(self) -> None:
        """Remove what was appended, where that takes room: no row names it. `close` follows."""


class Draft(Protocol):
    """A segment that is being written. It does not exist before it is committed."""

    def write(self, data: bytes) -> None:
        """Write at the end."""

    def view(self) -> memoryview:
        """Return all that was written, mapped into memory; nothing may be written afterwards."""

    def settle(self) -> None:
        """Begin to make durable what was written, and return at once."""

    def commit(self) -> None:
        """Give it its name; it appears at once and durable, or not at all."""

    def abandon(self) -> None:
        """Let go of it, and of what was written unless it was committed. May be called twice."""


class Segments(Protocol):
    """The interface of a segment store. Every method may raise StoreError.

    Those on segments of one batch may raise SegmentRefused.
    """

    sync_interval_s: float
    """How long a result may stay unsynced: what a sync costs decides."""
    syncs_at_once: int
    """How many appenders are worth syncing at the same time."""
    repairs_itself: bool
    """Whether the store finds and repairs damage by itself, so that nothing is read back for it."""
    comes_back: bool
    """Whether what failed may be tried again: nothing is in doubt, as it is after a failed sync."""

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a whole segment under a new name; it appears at once and durable, or not at all."""

    def draft(self, name: str, spool: Path) -> Draft:
        """Begin a segment that is written while its content arrives, under a new name.

        Args:
            name: of the segment.
            spool: folder for a store that can take it only whole.
        """

    def appender(self, name: str) -> Appender:
        """Begin a segment to append to, under a name that was never used.

        Raises:
            SegmentsGone: as `Appender.sync`.
        """

    def check_writable(self, batch_id: str, *, is_again: bool = False) -> None:
        """Look, before anything is paid for, whether results of a batch may be written.

        Args:
            batch_id: of the batch.
            is_again: whether an earlier attempt at it came to no end: then a look may cost more.

        Raises:
            SegmentRefused: they may not, as far as that can be told.
        """

    def check_creates(self) -> None:
        """Raise where no results could be written: whoever works asks before it claims anything."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes.

        Raises:
            DamagedError: the segment is not there, or shorter, or its disk cannot read it.
        """

    def read_into(self, name: str, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on; raises as `read` does."""

    def size(self, name: str) -> int:
        """Return the bytes of a segment."""

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, which ends in a `.` or `/`, sorted.

        Raises:
            DamagedError: the disk cannot read where they are listed.
        """

    def sync(self, name: str) -> None:
        """Make a segment durable that another process wrote and left.

        Raises:
            DeadSegment: a sync of it, or of its name, has failed before: it may be copied.
        """

    def delete_batch(self, batch_id: str) -> None:
        """Remove all segments of a batch. A transfer that is under way is cut."""

    def spreads(self) -> list[str]:
        """Return the names of the folders over which batches are spread: 256 at the most."""

    def batches(self, spread: str | None = None) -> list[str]:
        """Return the ids of the batches that have segments: of all, or of those in one folder."""

    def written_us(self, batch_id: str) -> int | None:
        """Return when the newest segment of a batch was written last; None when it has none."""
