"""The last word on every document of a run, or what was sent, in another form and later.

Rows and requests are made one after the other, so that a run of any size fits.
"""

from __future__ import annotations

import mmap
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from batchyard import wire
from batchyard.client.problems import InputError
from batchyard.client.results import closing as ending
from batchyard.client.results import finals, formats, receipt
from batchyard.client.results.columns import Reader
from batchyard.client.running import durable
from batchyard.client.running.journal import Phase
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchyard.client.results.collect import Outcome
    from batchyard.client.results.finals import Repeats
    from batchyard.client.results.formats import Row, Target
    from batchyard.client.running.folder import Files
    from batchyard.client.running.journal import Shard, State

TABLES = tuple(formats.NAMES)


def format_of(wanted: str | None, target: Path | None) -> str:
    """Return the format to write: the one that is named, that of the file's ending, or `jsonl`.

    Raises:
        InputError: there is no such format, or the ending of the file is that of none.
    """
    ending_ = "" if target is None else target.suffix.removeprefix(".").lower()
    if wanted is None and ending_ not in {"", "ndjson", *TABLES}:
        raise InputError(
            f"{target}: its ending is that of no format; .{', .'.join(TABLES)} is, or --format "
            "names one"
        )
    each = wanted or (ending_ if ending_ in TABLES else "jsonl")
    if each not in TABLES:
        raise InputError(f"--format is {shown(each)}; it is {', '.join(TABLES)}")
    return each


def write(files: Files, state: State, each: str, target: Target) -> int:
    """Write the row of every document that has an outcome; return how many.

    Args:
        files: of the run, which may still be under way.
        state: what its journal says.
        each: one of `TABLES`.
        target: a path, which appears when the file is whole, or an open stream.

    Raises:
        InputError: the format needs an extra that is not installed.
        JournalError: a file of the run is not what it was.
    """
    count = 0
    with ExitStack() as stack:
        columns = stack.enter_context(Reader(files.state))
        writer = stack.enter_context(closing(formats.writer(each, target, columns.kinds)))
        for row in rows(files, state, columns):
            writer.add(row)
            count += 1
        writer.finish()
    return count


def rows(files: Files, state: State, columns: Reader) -> Iterator[Row]:
    """Yield the row of every document that has an outcome, in the order of the inputs.

    Raises:
        JournalError: a file of the run is not what it was.
    """
    assert state.config is not None
    requested = state.config.model
    found = finals.repeats(files, state)

    def charge(shard: int, outcome: Outcome) -> int | None:
        return receipt.charged(outcome, requested, state.shards[shard].billing)

    spent = _spent_before(files, state, found) if found.where else {}
    with formats.Answers(files) as answers:
        made = ending.Rows(files, state, answers, columns, charge, spent)
        for final in finals.finals(files, state, found):
            yield made.row(final)


def _spent_before(files: Files, state: State, found: Repeats) -> dict[str, int | None]:
    """Return what the earlier tries of documents were charged, by key."""
    assert state.config is not None
    spent: dict[str, int | None] = {}
    for index, outcome in receipt.all_outcomes(files, state):
        if not found.is_last(index, outcome.key):
            cost = receipt.charged(outcome, state.config.model, state.shards[index].billing)
            before = spent.get(outcome.key, 0)
            spent[outcome.key] = None if cost is None or before is None else before + cost
    return spent


def write_requests(files: Files, state: State, target: Target) -> int:
    """Write the requests of a run, a line each as in a create call; return how many.

    Every document stands there once, as it was sent first, or again after it had changed: what was
    sent again because it failed is not repeated. The parameters are the bytes that were sent.

    Raises:
        InputError: they are not known, because the batches were made elsewhere.
        JournalError: a file of the run is not what it was.
    """
    if state.config is not None and state.config.imported == "results":
        raise InputError(
            f"the batches of {files.out} were made elsewhere: only their results are known; "
            "import them with --requests FILE"
        )
    lines = _request_lines(files, state)
    count = 0

    def counted() -> Iterator[bytes]:
        nonlocal count
        for line in lines:
            count += 1
            yield line

    if isinstance(target, Path):
        durable.write(target, counted())
        return count
    for line in counted():
        target.write(line)
    target.flush()
    return count


def _request_lines(files: Files, state: State) -> Iterator[bytes]:
    last: dict[str, int] = {}
    firsts = {shard.index for shard in state.shards if _is_first(shard)}
    for entry in files.read_documents(len(state.shards)):
        if entry.shard in firsts:
            last[entry.key] = max(entry.shard, last.get(entry.key, 0))
    wanted: dict[int, set[str]] = {}
    for entry in files.read_documents(len(state.shards)):
        if last.get(entry.key) == entry.shard:
            wanted.setdefault(entry.shard, set()).add(entry.custom_id)
    del last
    for index in sorted(wanted):
        ids = wanted.pop(index)
        with files.requests(index).open("rb") as file:
            body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for request in wire.split(memoryview(body)):
            if request.custom_id in ids:
                custom_id = request.custom_id.encode()
                yield b'{"custom_id":"%b","params":%b}\n' % (custom_id, bytes(request.params))


def _is_first(shard: Shard) -> bool:
    return shard.phase is not Phase.REPLACED and shard.why != "retry"
