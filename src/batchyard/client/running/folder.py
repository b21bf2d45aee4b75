"""The output folder of a run: its files, its lock, its journal.

One process at a time works on a run; any number may read it.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time
from typing import TYPE_CHECKING, Self

import msgspec

from batchyard import crash, ids, wire
from batchyard.client.problems import JournalError, RunInUse, Unwritable
from batchyard.client.results.outputs import STATE_DIR
from batchyard.client.running import durable, folding, journal
from batchyard.client.running.tags import plain, tagged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from batchyard.client.planning.plan import Plan
    from batchyard.client.planning.plan import Shard as PlanShard
    from batchyard.client.running.journal import Why
    from batchyard.clock import Clock

_LOCK_ATTEMPTS, _LOCK_INTERVAL_S = 20, 0.02


class DocumentEntry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One line of `documents.jsonl`. Documents that share a request have the same `custom_id`.

    `request` is a hash of the rendered parameters; empty for a repetition, which has those of the
    first try or what was made of them.
    """

    custom_id: str
    key: str
    sha256: str
    output: str
    shard: int
    request: str = ""


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
        return folding.read(durable.whole_lines(self.journal))

    def read_documents(self, shards: int | None = None) -> Iterator[DocumentEntry]:
        """Yield the documents of each shard, in the order of the shards.

        A document that was sent again stands in several; the last counts.

        Args:
            shards: how many the state has; read from the journal if None. An extension that a
                crash kept from happening may have left entries of more, which do not count.

        Raises:
            JournalError: the list is damaged.
        """
        if shards is None:
            shards = len(self.read_state().shards)
        for _, entry in self._entries(shards):
            yield entry

    def spans(self, shards: int) -> dict[int, tuple[int, int]]:
        """Return where in `documents.jsonl` the entries of each shard stand, in bytes.

        Raises:
            JournalError: the list is damaged.
        """
        found: dict[int, tuple[int, int]] = {}
        start = 0
        for end, entry in self._entries(shards):
            found[entry.shard] = (found.get(entry.shard, (start, 0))[0], end)
            start = end
        return found

    def read_span(self, span: tuple[int, int]) -> list[DocumentEntry]:
        """Return the entries that stand there."""
        with self.documents.open("rb") as file:
            file.seek(span[0])
            return [_entry.decode(line) for line in file.read(span[1] - span[0]).splitlines()]

    def documents_end(self, shards: int) -> int:
        """Return the bytes of `documents.jsonl` up to the last entry of the first `shards`."""
        return max((end for end, _ in self._entries(shards)), default=0)

    def _entries(self, shards: int) -> Iterator[tuple[int, DocumentEntry]]:
        end = 0
        with self.documents.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = _entry.decode(line)
                except msgspec.DecodeError as error:
                    if not line.endswith(b"\n"):
                        return  # torn: of an extension that did not happen
                    raise JournalError(f"{self.documents}:{number}: {error}") from None
                if entry.shard >= shards or not line.endswith(b"\n"):
                    return
                end += len(line)
                yield end, entry

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


def sent_params(body: Path, custom_id: str) -> bytes | None:
    """Return the parameters of a request in a create body, whatever mark its id has there."""
    with body.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for entry in wire.split(memoryview(view)):
        if plain(entry.custom_id) == plain(custom_id):
            return bytes(entry.params)
    return None


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
        for pattern in ("candidate-*", "preview/*.partial"):  # of a process that was killed
            for left in files.state.glob(pattern):
                left.unlink(missing_ok=True)
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
        state = folding.apply(self.state, event)
        try:
            self._log.append(journal.encode(event))
        except OSError as error:
            reason = error.strerror or error
            raise Unwritable(f"{self.files.journal} cannot be written: {reason}") from None
        self.state = state

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def start(
    writer: Journal,
    plan: Plan,
    config: journal.Config,
    *,
    reasons: Sequence[Why | None] | None = None,
    documents: int | None = None,
    approved: tuple[int, int] | None = None,
    terms: journal.Terms | None = None,
    saving: journal.Saving | None = None,
) -> None:
    """Put a plan on disk and begin the run with it.

    Args:
        writer: of a journal without a run.
        plan: what is to be sent.
        config: what was asked for.
        reasons: why each shard is there, if not all are simply the first.
        documents: how many the run has, if not as many as requests.
        approved: ceilings that were shown, as in `journal.Started`.
        terms: what it may do; None for what holds without them.
        saving: how its answers are written; None for one text file for each document.
    """
    files, marked = writer.files, [tagged(shard) for shard in plan.shards]
    crash.point("before_bodies")
    for shard in marked:
        durable.write(files.requests(shard.index), shard.body())
    durable.write(files.documents, _document_lines(marked, 0))
    crash.point("before_run_event")
    whys = reasons or [None] * len(marked)
    shards = tuple(_planned(s, why) for s, why in zip(marked, whys, strict=True))
    writer.record(
        journal.Started(
            run=ids.nonce(), config=config, shards=shards, documents=documents,
            approved=approved, terms=terms, saving=saving, format=journal.FORMAT,
        )
    )  # fmt: skip


def extend(  # noqa: PLR0913 - what an extension is, by keyword
    writer: Journal,
    shards: Sequence[PlanShard],
    why: Why,
    *,
    round_: int,
    replaces: Sequence[int] = (),
    again: Mapping[str, int] | None = None,
    documents: int | None = None,
    by_hand: bool = False,
    config: journal.Config | None = None,
    approved: tuple[int, int] | None = None,
    reasons: Sequence[Why | None] | None = None,
) -> range:
    """Append shards to a run; return their indexes. Safe to be killed in, at any point.

    Bodies and entries are durable before the event that makes them part of the run. What an
    extension that did not happen left behind is cut off or written over.

    Args:
        writer: of a run that has started.
        shards: what is to be sent; their own indexes do not matter.
        why: the reason, for all of them.
        round_: how many times the documents are sent again; 0 for the first time.
        replaces: shards, not sent yet, whose documents are all in `shards`.
        again: by class, the last outcomes of documents in `shards`, which no longer count.
        documents: how many the run has now; None for as many as before.
        by_hand: a person asked for it.
        config: what was asked for from now on; None for as before.
        approved: what the run may cost now, as in `journal.Extended`; None for as before.
        reasons: why each shard is there, where that is not `why`.

    Raises:
        JournalError: a shard that is to be replaced may have been sent.
        OSError: the disk does not take it.
    """
    files, first = writer.files, len(writer.state.shards)
    shards = [tagged(shard) for shard in shards]
    crash.point("before_extension")
    for index, shard in enumerate(shards, first):
        durable.write(files.requests(index), shard.body())
    for index in replaces:
        durable.write(files.outcomes(index), [])
    crash.point("extension_bodies")
    durable.append(files.documents, files.documents_end(first), _document_lines(shards, first))
    whys = reasons or [None] * len(shards)
    planned = tuple(_planned(s, each) for s, each in zip(shards, whys, strict=True))
    crash.point("before_extended_event")
    writer.record(
        journal.Extended(
            round=round_, why=why, shards=planned,
            replaces=tuple(replaces), again=dict(again or {}), documents=documents,
            by_hand=by_hand, config=config, approved=approved,
        )
    )  # fmt: skip
    crash.point("extended")
    return range(first, first + len(shards))


def _planned(shard: PlanShard, why: Why | None) -> journal.PlannedShard:
    return journal.PlannedShard(
        requests=len(shard.requests), bytes=shard.size, sha256=shard.sha256, why=why
    )


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


def _document_lines(shards: Sequence[PlanShard], first: int) -> Iterable[bytes]:
    for index, shard in enumerate(shards, first):
        for request in shard.requests:
            for each in request.documents():
                entry = DocumentEntry(
                    request.custom_id, each.key, each.sha256, each.output, index, request.digest
                )
                yield wire.encode(entry) + b"\n"
