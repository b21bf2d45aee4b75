"""Segments as objects in a bucket: S3, Google Cloud Storage, Azure, or anything that speaks theirs.

Durable means: the store has answered a PUT. An object cannot grow, so what one attempt appends
becomes a row of objects, one for each sync, and each is an extent of the result of its own:

    <h2>/<batch>/requests                            as in a directory
    <h2>/<batch>/r/<shard>/<attempt>.<nonce>         the first part
    <h2>/<batch>/r/<shard>/<attempt>.<nonce>.<k>     the further ones, k = 1, 2, ...
    <h2>/<batch>/manifest.json

Parts are only ever created, under names that hold a random nonce; whoever has lost the shard may
add parts, but no manifest names them. The library repeats calls that failed on the way, for as long
as `OBJECTS_RETRY_S`, but no create-only PUT that was cut after it was sent: we do. One that finds
its own object there has succeeded.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import tempfile
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from batchyard import crash, ids, limits, segments
from batchyard.checksum import Checksums
from batchyard.clock import SystemClock
from batchyard.errors import (
    ConfigError,
    DamagedError,
    DiskFull,
    SegmentRefused,
    StoreError,
    is_disk_full,
    shown,
)
from batchyard.model import Extent
from batchyard.segments.refused import Refused
from batchyard.segments.unwritten import Backlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

try:
    import obstore
    from obstore import store as stores
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        NotSupportedError,
        PermissionDeniedError,
        UnauthenticatedError,
    )
except ImportError as error:  # pragma: no cover - the extra is installed where it is tested
    raise ConfigError(
        "segments in an object store need the extra: pip install 'batchyard[objects]'"
    ) from error

SCHEMES = frozenset({"s3", "gs", "az"})
_PUT_PIECE_BYTES = 8 * limits.MIB
_RESULTS = "/r/"
_FOR_GOOD = (FileNotFoundError, NotSupportedError, PermissionDeniedError, UnauthenticatedError)
_PAUSE_S = 1.0
_DOUBTED_MAX = 10_000

T = TypeVar("T")


class ObjectSegments:
    """A segment store in one bucket, below the path of its URL."""

    sync_interval_s = limits.OBJECTS_SYNC_INTERVAL_S
    syncs_at_once = limits.OBJECTS_SYNCS_AT_ONCE
    repairs_itself = True  # they keep several copies, each with a checksum
    comes_back = True

    def __init__(self, url: str) -> None:
        """Prepare; nothing is called yet.

        Args:
            url: `s3://bucket/path`, `gs://bucket/path` or `az://container/path`. Keys, region and
                endpoint come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`), and so does
                the account that an Azure container is of (`AZURE_STORAGE_ACCOUNT_NAME`).

        Raises:
            ConfigError: it is not such a URL, or its settings do not fit.
        """
        self.backlog = Backlog()
        self._clock = SystemClock()
        self._doubted = set[str]()
        """What was refused when it was last read."""
        self._refused = Refused(self._clock.monotonic_s)
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc:
            raise ConfigError(
                f"segments {shown(url)}: a URL such as s3://bucket/path, gs://bucket/path or "
                "az://container/path is allowed"
            )
        retry: dict[str, Any] = {
            "max_retries": 1_000,
            "retry_timeout": timedelta(seconds=limits.OBJECTS_RETRY_S),
        }
        client: dict[str, Any] = {
            "timeout": timedelta(seconds=limits.OBJECTS_CALL_TIMEOUT_S),
            "connect_timeout": timedelta(seconds=limits.UPSTREAM_CONNECT_TIMEOUT_S),
            "allow_http": True,  # only who configures such an endpoint gets one
        }
        try:
            open_store: Any = stores.from_url  # its overloads know no URL of any scheme
            self._store: Any = open_store(url, client_options=client, retry_config=retry)
            soon_s = min(limits.OBJECTS_DOUBT_S, limits.OBJECTS_RETRY_S)
            retry |= {"retry_timeout": timedelta(seconds=soon_s)}
            self._soon: Any = open_store(url, client_options=client, retry_config=retry)
            client |= {"timeout": timedelta(seconds=limits.OBJECTS_LOOK_TIMEOUT_S)}
            once = {"max_retries": 0}
            self._look: Any = open_store(url, client_options=client, retry_config=once)
        except (BaseError, ValueError) as error:
            raise ConfigError(f"segments {shown(url)}: {_first_line(error)}") from None

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a whole segment; see the protocol."""
        batch_id = _batch_of(name)
        store = self._store if self._refused.of(batch_id) is None else self._soon
        try:
            obstore.put(store, _path(name), _pieces(chunks), chunk_size=_PUT_PIECE_BYTES)
        except BaseError as error:
            raise self._refusal(name, 1, error) from error
        except OSError as error:  # of the chunks
            raise StoreError(f"cannot write segment {name}: {_first_line(error)}") from error
        self._refused.clear(batch_id)
        crash.point("put_done")

    def draft(self, name: str, spool: Path) -> ObjectDraft:
        """Begin a segment that is written while its content arrives; see the protocol."""
        return ObjectDraft(self, name, spool)

    def appender(self, name: str) -> ObjectAppender:
        """Begin a segment to append to; its first part finds out if there is one of this name."""
        return ObjectAppender(self, name)

    def check_writable(self, batch_id: str, *, is_again: bool = False) -> None:
        """Look whether the bucket takes results of a batch; see the protocol.

        Only a write tells. It is made where there is a doubt: an attempt came to no end, or parts
        of the batch were refused here; then as much is written, not more often than each minute.
        """
        before = self._refused.of(batch_id)
        if before is None and (not is_again or self._refused.is_tried(batch_id)):
            return
        name, size = _trial(batch_id), 1 if before is None else before.size
        self._create(name, bytes(size), limits.OBJECTS_DOUBT_S)
        self._refused.tried(batch_id)
        self._drop(name)

    def create(self, name: str, data: bytes) -> None:
        """Write one part, whole, under a name that was never used.

        Raises:
            SegmentRefused: the store takes others.
            StoreError: another object has the name, or the store does not take it.
        """
        is_doubted = _batch_of(name) in self._refused
        self._create(name, data, limits.OBJECTS_DOUBT_S if is_doubted else limits.OBJECTS_RETRY_S)

    def _create(self, name: str, data: bytes, doubt_s: float) -> None:
        """Write one part; ask after `doubt_s` of failures whether it alone is refused."""
        began_s = self._clock.monotonic_s()
        store = self._store if doubt_s >= limits.OBJECTS_RETRY_S else self._soon
        why: Exception
        while True:
            try:
                obstore.put(store, _path(name), data, mode="create", use_multipart=False)
            except AlreadyExistsError as error:
                # The answer to a first try may have been lost, or that one may be under way. The
                # nonce in the name is ours alone.
                found, why = self._read(name, 0, len(data) + 1, waits=True), error
                if found == data:
                    return
                if found is not None:
                    raise StoreError(f"segment {name} is there already") from error
            except (BaseError, FileNotFoundError) as error:
                why = error
            else:
                return
            failing_s = self._clock.monotonic_s() - began_s
            is_over = isinstance(why, _FOR_GOOD) or failing_s >= limits.OBJECTS_RETRY_S
            if is_over or failing_s >= doubt_s:
                failure = self._refusal(name, len(data), why)
                if is_over or isinstance(failure, SegmentRefused):
                    raise failure from why
            threading.Event().wait(_PAUSE_S)

    def _refusal(self, name: str, size: int, why: Exception) -> StoreError:
        """Return what it means that a segment was not written: the store may take another one.

        As large a one, as a store that is nearly full takes small ones; later only a byte, since
        some stores keep for long what was deleted.
        """
        text, batch_id = f"cannot write segment {name}: {_first_line(why)}", _batch_of(name)
        other = _trial(f"probe_{ids.nonce()}")
        data = bytes(1 if batch_id in self._refused else size)
        try:
            store = self._look if len(data) <= limits.MIB else self._soon
            obstore.put(store, _path(other), data, use_multipart=False)
        except (BaseError, FileNotFoundError):
            return StoreError(text)
        self._drop(other)
        self._refused.note(batch_id, size, text)
        return SegmentRefused(text)

    def _drop(self, name: str) -> None:
        """Remove what was written on trial; what may not be removed is a leftover."""
        with contextlib.suppress(BaseError, FileNotFoundError):
            obstore.delete(self._look, [_path(name)])

    def check_creates(self) -> None:
        """Write one part as those of results are, and remove it; see the protocol.

        Results that cannot be written are paid for in vain. One byte finds out what it can: rights
        and create-only writes are looked at whatever is written, and what has a quota takes nothing
        when that is used up. Parts are put whole, so nothing of multipart uploads is to be proven.
        More would stay: a bucket with versions keeps it after the delete, for each start. What may
        not be removed is a leftover like others.

        Raises:
            StoreError: the store takes none, does not list it, or takes a second one under the
                same name.
        """
        batch_id = f"probe_{ids.nonce()}"
        name = segments.result_name(batch_id, 0, 1)
        try:
            self.create(name, b"1")
        except StoreError as error:
            raise StoreError(f"the bucket takes no results: {error}") from error
        try:
            # Who takes up a shard again looks for what is there of it.
            if self.names(segments.results_prefix(batch_id, 0)) != [name]:
                raise StoreError(f"the bucket does not list {name}, which was just written")
            obstore.put(self._store, _path(name), b"2", mode="create", use_multipart=False)
        except AlreadyExistsError:
            pass
        except (BaseError, FileNotFoundError) as error:
            raise StoreError(f"cannot write segment {name}: {_first_line(error)}") from error
        else:
            raise StoreError(
                "the bucket takes two objects of one name; create-only writes (If-None-Match) are "
                "needed"
            )
        finally:
            with contextlib.suppress(StoreError):
                self.delete_batch(batch_id)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes."""
        return self._exactly(name, offset, length)

    def _exactly(self, name: str, offset: int, length: int, *, waits: bool = False) -> bytes:
        if not length:
            return b""
        data = self._read(name, offset, length, waits=waits)
        if data is None:
            raise DamagedError(f"segment {name} is not there")
        if len(data) != length:
            raise DamagedError(f"segment {name} is shorter than {offset + length} bytes")
        return data

    def read_into(self, name: str, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on."""
        # That is for a client who has the first bytes: later ones are better than none.
        into[:] = self._exactly(name, offset, len(into), waits=True)

    def size(self, name: str) -> int:
        """Return the bytes of a segment."""
        return self._size(name)

    def _size(self, name: str, *, waits: bool = False) -> int:
        def size(store: Any) -> int:
            return int(obstore.head(store, _path(name))["size"])

        try:
            return self._asked(name, f"cannot find segment {name}", size, size, waits=waits)
        except FileNotFoundError:
            raise DamagedError(f"segment {name} is not there") from None

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, sorted."""
        # The store lists by whole path segments: ask for the folder, and compare here.
        folder = _path(prefix).rpartition("/")[0]
        return sorted(name for name in self._list(folder) if name.startswith(prefix))

    def sync(self, name: str) -> None:
        """Look whether it is there: what can be read is durable."""
        self._size(name, waits=True)

    def delete_batch(self, batch_id: str) -> None:
        """Remove all segments of a batch."""
        names = self._list(segments.batch_prefix(batch_id))
        try:
            if names:
                obstore.delete(self._store, [_path(name) for name in names])
        except FileNotFoundError:
            return
        except BaseError as error:
            what = f"cannot delete the segments of {batch_id}"
            raise self._failure(f"{segments.batch_prefix(batch_id)}/", what, error) from error

    def spreads(self) -> list[str]:
        """Return the folders over which batches are spread."""
        return self._folders(None)

    def batches(self, spread: str | None = None) -> list[str]:
        """Return the ids of batches that have segments; see the protocol."""
        spreads = self.spreads() if spread is None else [spread]
        return sorted(
            path.rpartition("/")[2] for spread in spreads for path in self._folders(spread)
        )

    def written_us(self, batch_id: str) -> int | None:
        """Return when the newest segment of a batch was written."""
        folder = segments.batch_prefix(batch_id)
        found = [meta["last_modified"].timestamp() for meta in self._metas(folder)]
        return round(max(found) * limits.SECOND_US) if found else None

    def _folders(self, below: str | None) -> list[str]:
        try:
            listed = obstore.list_with_delimiter(self._store, prefix=below)
        except FileNotFoundError:
            return []
        except BaseError as error:
            raise StoreError(f"cannot list batches: {_first_line(error)}") from error
        return [str(path) for path in listed["common_prefixes"]]

    def _read(self, name: str, offset: int, length: int, *, waits: bool = False) -> bytes | None:
        """Return up to `length` bytes; None when there is no such segment."""

        def part(store: Any, length: int = length) -> bytes:
            try:
                return bytes(obstore.get_range(store, _path(name), start=offset, length=length))
            except BaseError:
                # Out of range is an error of some stores and a short answer of others.
                if self._ends_at(name) <= offset:
                    return b""
                raise

        try:
            return self._asked(
                name, f"cannot read segment {name}", part, lambda store: part(store, 1), waits=waits
            )
        except FileNotFoundError:
            return None

    def _asked(
        self,
        name: str,
        what: str,
        get: Callable[[Any], T],
        peek: Callable[[Any], object],
        *,
        waits: bool,
    ) -> T:
        """Return what a call gets of one object; soon say so where that object alone is refused.

        A worker opens its shards one after the other, so what fails for a while is looked at. What
        was refused before is looked at first: an object may have hundreds of shards.

        Args:
            name: of the segment.
            what: the words for a failure.
            get: the call, to be made in a store.
            peek: one that tells as much, and soon.
            waits: whether it is tried as long as it would be if the store were away.

        Raises:
            FileNotFoundError: there is no such object.
            SegmentRefused: the store answers otherwise.
            StoreError: it does not.
        """
        if not waits and name not in self._doubted:
            with contextlib.suppress(BaseError):
                return get(self._soon)
        try:
            if not waits:
                peek(self._look)
        except BaseError as error:
            failure = self._failure(name, what, error)
            if isinstance(failure, SegmentRefused):
                if len(self._doubted) >= _DOUBTED_MAX:
                    self._doubted.clear()
                self._doubted.add(name)
                raise failure from error
        try:
            found = get(self._store)
        except BaseError as error:
            raise self._failure(name, what, error) from error
        self._doubted.discard(name)
        return found

    def _ends_at(self, name: str) -> float:
        """Return the size of a segment, infinite where it is not told; ask once."""
        try:
            return float(obstore.head(self._look, _path(name))["size"])
        except (BaseError, FileNotFoundError):
            return math.inf

    def _failure(self, name: str, what: str, error: Exception) -> StoreError:
        """Return what an error means: a store that refuses one object otherwise answers.

        Asked once, and for something else: the error came after all the tries that are made, or at
        once, as one that no further try would change. How it says so differs from store to store.
        """
        first = _first_line(error)
        text = f"{what}: {first.partition(' - ')[2] or first}"  # without the call and its address
        try:
            obstore.list_with_delimiter(self._look, prefix=name.rpartition("/")[0])
        except (BaseError, FileNotFoundError):
            return StoreError(text)
        return SegmentRefused(text)

    def _list(self, folder: str) -> list[str]:
        return [_name(meta["path"]) for meta in self._metas(folder)]

    def _metas(self, folder: str) -> list[Any]:
        try:
            return [meta for chunk in obstore.list(self._store, prefix=folder) for meta in chunk]
        except FileNotFoundError:
            return []
        except BaseError as error:
            raise self._failure(folder, f"cannot list {folder}", error) from error


class ObjectAppender:
    """What one attempt appends: gathered in memory, an object for each sync."""

    def __init__(self, store: ObjectSegments, name: str) -> None:
        self.name = name
        self._store = store
        self._waiting: list[bytes] = []
        self._extents: list[Extent] = []

    def append(self, chunks: Sequence[bytes]) -> None:
        """Keep `chunks` for the next sync."""
        crash.point("append")
        self._store.backlog.add(sum(map(len, chunks)))
        self._waiting += chunks

    def extents(self) -> tuple[Extent, ...]:
        """Return all that was synced, with its checksums."""
        return tuple(self._extents)

    def sync(self) -> None:
        """Write what has gathered as the next part."""
        crash.point("sync")
        waiting, self._waiting = self._waiting, []  # another thread may append meanwhile
        data = b"".join(waiting)
        if data:
            count = len(self._extents)
            name = f"{self.name}.{count}" if count else self.name
            try:
                self._store.create(name, data)
            except SegmentRefused:
                # The shard is given back, but only closed when nobody waits in `append` any more.
                left, self._waiting = self._waiting, []
                self._store.backlog.remove(len(data) + sum(map(len, left)))
                raise
            except StoreError as error:
                self._store.backlog.fail(error)
                raise
            self._store.backlog.remove(len(data))
            checksums = Checksums()
            checksums.add(data)
            self._extents.append(Extent(name, len(data), checksums.blocks))
        crash.point("synced")

    def close(self) -> None:
        """Forget what was not synced."""
        self._store.backlog.remove(sum(map(len, self._waiting)))
        self._waiting.clear()

    def remove(self) -> None:
        """Do nothing: parts that were written take no room of ours."""


class ObjectDraft:
    """A segment that is gathered in a file without a name, and put whole."""

    def __init__(self, store: ObjectSegments, name: str, spool: Path) -> None:
        self._store = store
        self._name = name
        try:
            self._file = tempfile.TemporaryFile(dir=spool, buffering=0)  # noqa: SIM115 - `abandon`
        except OSError as error:
            raise _spool_error(error) from error
        self._view: memoryview | None = None

    def write(self, data: bytes) -> None:
        """Write at the end; see the protocol."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _spool_error(error) from error

    def view(self) -> memoryview:
        """Return all that was written; see the protocol."""
        if self._view is None:
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._view = memoryview(mapped)
        return self._view

    def settle(self) -> None:
        """Do nothing: it is put whole."""

    def commit(self) -> None:
        """Put it; see the protocol."""
        whole = self.view()
        step = limits.DISK_CHUNK_BYTES
        chunks = (bytes(whole[at : at + step]) for at in range(0, len(whole), step))
        self._store.put(self._name, chunks)

    def abandon(self) -> None:
        """Close the file, which is gone then; see the protocol."""
        self._file.close()


def _spool_error(error: OSError) -> StoreError:
    kind = DiskFull if is_disk_full(error) else StoreError
    return kind(f"cannot spool a segment: {error.strerror}")


def _path(name: str) -> str:
    """Return the path of a segment: results of a shard lie in a folder of their own."""
    head, slash, tail = name.partition(_RESULTS)
    return f"{head}{slash}{tail.replace('.', '/', 1)}"


def _name(path: str) -> str:
    """Return the name of the segment at a path."""
    head, slash, tail = path.partition(_RESULTS)
    return f"{head}{slash}{tail.replace('/', '.', 1)}"


def _batch_of(name: str) -> str:
    """Return the batch that a segment is of."""
    return name.split("/")[1]


def _trial(batch_id: str) -> str:
    """Return the name of an object that is written on trial among the results of a batch."""
    return f"{segments.batch_prefix(batch_id)}/r/probe.{ids.nonce()}"


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks in pieces that are worth a call each."""
    waiting: list[bytes] = []
    size = 0
    for chunk in chunks:
        waiting.append(bytes(chunk))
        size += len(chunk)
        if size >= _PUT_PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
