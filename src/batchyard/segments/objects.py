"""Segments as objects in a bucket: S3, Google Cloud Storage, Azure, or anything that speaks theirs.

Durable means: the store has answered a PUT. An object cannot grow, so what one attempt appends
becomes a row of objects, one for each sync, and each is an extent of the result of its own:

    <h2>/<batch>/requests                            as in a directory
    <h2>/<batch>/r/<shard>/<attempt>.<nonce>         the first part
    <h2>/<batch>/r/<shard>/<attempt>.<nonce>.<k>     the further ones, k = 1, 2, ...
    <h2>/<batch>/manifest.json

Parts are only ever created, under names that hold a random nonce; whoever has lost the shard may
add parts, but no manifest names them. The library repeats calls that failed on the way, for as long
as `OBJECTS_RETRY_S`; a repeated PUT that finds its own object there has succeeded.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from batchyard import crash, limits, segments
from batchyard.checksum import Checksums
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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

try:
    import obstore
    from obstore import store as stores
    from obstore.exceptions import AlreadyExistsError, BaseError
except ImportError as error:  # pragma: no cover - the extra is installed where it is tested
    raise ConfigError(
        "segments in an object store need the extra: pip install 'batchyard[objects]'"
    ) from error

SCHEMES = frozenset({"s3", "gs", "az"})
_PUT_PIECE_BYTES = 8 * limits.MIB
_RESULTS = "/r/"


class ObjectSegments:
    """A segment store in one bucket, below the path of its URL."""

    sync_interval_s = limits.OBJECTS_SYNC_INTERVAL_S
    syncs_at_once = limits.OBJECTS_SYNCS_AT_ONCE
    repairs_itself = True  # they keep several copies, each with a checksum

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
            client |= {"timeout": timedelta(seconds=limits.OBJECTS_LOOK_TIMEOUT_S)}
            once = {"max_retries": 0}
            self._look: Any = open_store(url, client_options=client, retry_config=once)
        except (BaseError, ValueError) as error:
            raise ConfigError(f"segments {shown(url)}: {_first_line(error)}") from None

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a whole segment; see the protocol."""
        try:
            obstore.put(self._store, _path(name), _pieces(chunks), chunk_size=_PUT_PIECE_BYTES)
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot write segment {name}: {_first_line(error)}") from error
        crash.point("put_done")

    def draft(self, name: str, spool: Path) -> ObjectDraft:
        """Begin a segment that is written while its content arrives; see the protocol."""
        return ObjectDraft(self, name, spool)

    def appender(self, name: str) -> ObjectAppender:
        """Begin a segment to append to."""
        if self._is_there(name):
            raise StoreError(f"cannot begin segment {name}: it is there already")
        return ObjectAppender(self, name)

    def create(self, name: str, data: bytes) -> None:
        """Write one part, whole, under a name that was never used.

        Raises:
            StoreError: another object has the name, or the store does not take it.
        """
        try:
            obstore.put(self._store, _path(name), data, mode="create", use_multipart=False)
        except AlreadyExistsError as error:
            # The answer to a first try may have been lost. The nonce in the name is ours alone.
            if self._read(name, 0, len(data) + 1) != data:
                raise StoreError(f"segment {name} is there already") from error
        except BaseError as error:
            raise StoreError(f"cannot write segment {name}: {_first_line(error)}") from error

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes."""
        if not length:
            return b""
        data = self._read(name, offset, length)
        if data is None:
            raise DamagedError(f"segment {name} is not there")
        if len(data) != length:
            raise DamagedError(f"segment {name} is shorter than {offset + length} bytes")
        return data

    def read_into(self, name: str, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on."""
        into[:] = self.read(name, offset, len(into))

    def size(self, name: str) -> int:
        """Return the bytes of a segment."""
        try:
            return int(obstore.head(self._store, _path(name))["size"])
        except FileNotFoundError:
            raise DamagedError(f"segment {name} is not there") from None
        except BaseError as error:
            raise self._failure(name, f"cannot find segment {name}", error) from error

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, sorted."""
        # The store lists by whole path segments: ask for the folder, and compare here.
        folder = _path(prefix).rpartition("/")[0]
        return sorted(name for name in self._list(folder) if name.startswith(prefix))

    def sync(self, name: str) -> None:
        """Look whether it is there: what can be read is durable."""
        self.size(name)

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

    def batches(self) -> list[str]:
        """Return the ids of all batches that have segments."""
        spreads = self._folders(None)
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

    def _is_there(self, name: str) -> bool:
        try:
            self.size(name)
        except DamagedError:
            return False
        return True

    def _read(self, name: str, offset: int, length: int) -> bytes | None:
        """Return up to `length` bytes; None when there is no such segment."""
        try:
            got = obstore.get_range(self._store, _path(name), start=offset, length=length)
            return bytes(got)
        except FileNotFoundError:
            return None
        except BaseError as error:
            # Out of range is an error of some stores and a short answer of others.
            if self._ends_at(name) <= offset:
                return b""
            raise self._failure(name, f"cannot read segment {name}", error) from error

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
            raise StoreError(f"cannot list {folder}: {_first_line(error)}") from error


class Backlog:
    """How many bytes wait for a sync, over all appenders: who appends waits when they are many."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._bytes = 0
        self._failure: StoreError | None = None

    def add(self, size: int) -> None:
        """Let `size` bytes wait, when there is room.

        Raises:
            StoreError: the store has failed, and nothing makes room any more.
        """
        with self._changed:
            while self._bytes > limits.UNWRITTEN_BYTES_MAX and self._failure is None:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            self._bytes += size

    def remove(self, size: int) -> None:
        """Count bytes that wait no more."""
        with self._changed:
            self._bytes -= size
            self._changed.notify_all()

    def fail(self, failure: StoreError) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()


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
