"""The output folder of a run: its files, its lock, its journal.

One process at a time works on a run; any number may read it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from typing import TYPE_CHECKING, Self

import msgspec

from batchyard import crash, ids, wire
from batchyard.client import durable, journal
from batchyard.client.outputs import STATE_DIR
from batchyard.client.problems import JournalError, RunInUse, Unwritable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from batchyard.client.plan import Plan
    from batchyard.clock import Clock

_LOCK_ATTEMPTS, _LOCK_INTERVAL_S = 20, 0.02


class DocumentEntry(msgspec.Struct, frozen=True, gc=False):
    """One line of `documents.jsonl`."""

    custom_id: str
    key: str
    sha256: str
    output: str
    shard: int


_entry = msgspec.json.Decoder(DocumentEntry)


class Files:
    """The names in `OUT/.batchyard/`, and reading them. Needs no lock."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.state = out / STATE_DIR
        self.journal = self.state / "journal.jsonl"
        self.documents = self.state / "documents.jsonl"
        self.cancel = self.state / "cancel"
        self.log = self.state / "run.log"
        self.yard = self.state / "yard"
        self.yard_log = self.state / "yard.log"

    def requests(self, shard: int) -> Path:
        """Return the path of a create body."""
        return self.state / f"requests-{shard:03}.json"

    def results(self, shard: int) -> Path:
        """Return the path of results as received."""
        return self.state / f"results-{shard:03}.jsonl"

    def outcomes(self, shard: int) -> Path:
        """Return the path of what became of the documents of a shard."""
        return self.state / f"outcomes-{shard:03}.jsonl"

    def read_state(self) -> journal.State:
        """Return what the journal says now; an empty state when there is none.

        Raises:
            JournalError: it is damaged.
        """
        return journal.read(durable.whole_lines(self.journal))

    def read_documents(self) -> Iterator[DocumentEntry]:
        """Yield the documents of the run.

        Raises:
            JournalError: the list is damaged.
        """
        with self.documents.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield _entry.decode(line)
                except msgspec.DecodeError as error:
                    raise JournalError(f"{self.documents}:{number}: {error}") from None

    def is_running(self) -> bool:
        """Whether a process works on the run right now. Looking keeps no other from looking."""
        fd = _open_folder(self.out)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)


class Lock:
    """The right to work on a run, held on the output folder itself.

    Raises:
        RunInUse: on entering, when another process holds it and keeps it.
    """

    def __init__(self, out: Path, *, pause: Callable[[float], object] = time.sleep) -> None:
        self._out = out
        self._pause = pause
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = _open_folder(self._out)
        for _ in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Who only looks whether the run is worked on holds it for a moment.
                self._pause(_LOCK_INTERVAL_S)
            else:
                return self
        os.close(self._fd)
        raise RunInUse(
            f"another process works on {self._out}; `batchyard status {self._out}` shows how "
            "far it is"
        )

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class Journal:
    """The journal, open for writing by the holder of the lock; keeps the state up to date."""

    def __init__(self, files: Files, clock: Clock) -> None:
        files.state.mkdir(parents=True, exist_ok=True)
        self.files = files
        self.state = files.read_state()
        self._clock = clock
        self._log = durable.Log(files.journal)

    def record(self, event: journal.Event) -> None:
        """Append an event with the time of now; on return it is durable and part of the state.

        Raises:
            JournalError: it cannot follow.
            Unwritable: the disk refuses it.
        """
        event = msgspec.structs.replace(event, at=self._clock.now_us())
        state = journal.apply(self.state, event)
        try:
            self._log.append(journal.encode(event))
        except OSError as error:
            reason = error.strerror or error
            raise Unwritable(f"{self.files.journal} cannot be written: {reason}") from None
        self.state = state

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def start(writer: Journal, plan: Plan, config: journal.Config) -> None:
    """Put a plan on disk and begin the run with it."""
    files = writer.files
    crash.point("before_bodies")
    for shard in plan.shards:
        durable.write(files.requests(shard.index), shard.body())
    durable.write(files.documents, _document_lines(plan))
    crash.point("before_run_event")
    shards = tuple(
        journal.PlannedShard(requests=len(s.requests), bytes=s.size, sha256=s.sha256)
        for s in plan.shards
    )
    writer.record(journal.Started(run=ids.nonce(), config=config, shards=shards))


def set_aside(files: Files) -> Path:
    """Move the state of an earlier run away, to `.batchyard.1` or the next free number."""
    number = 1
    while (target := files.out / f"{STATE_DIR}.{number}").exists():
        number += 1
    files.state.rename(target)
    durable.sync_directory(files.out)
    return target


def idempotency_key(run: str, shard: int, generation: int) -> str:
    """Return the key under which a server knows one attempt to create a batch."""
    return hashlib.sha256(f"{run}/{shard}/{generation}".encode()).hexdigest()[:40]


def _document_lines(plan: Plan) -> Iterable[bytes]:
    for shard in plan.shards:
        for request in shard.requests:
            entry = DocumentEntry(
                request.custom_id, request.key, request.sha256, request.output, shard.index
            )
            yield wire.encode(entry) + b"\n"
