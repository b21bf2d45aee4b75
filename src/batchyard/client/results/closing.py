"""What is written when a run ends beside its receipt: the errors, tables of all documents, audit.

One pass over the documents in input order, another over the requests. Every file is whole or as it
was before; doing it again writes the same bytes.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from batchyard import crash, wire
from batchyard.client.results import audit, formats
from batchyard.client.results.columns import Reader
from batchyard.client.results.finals import Outcomes, finals
from batchyard.client.results.formats import EACH
from batchyard.client.results.outputs import ERRORS_FILE, Tree
from batchyard.client.running import durable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from batchyard.client.results.collect import Outcome
    from batchyard.client.results.finals import Final, Repeats
    from batchyard.client.results.formats import Answers, Row, Writer
    from batchyard.client.running.folder import Files
    from batchyard.client.running.journal import State, Wait

    Charge = Callable[[int, Outcome], int | None]


def write(
    files: Files,
    state: State,
    found: Repeats,
    *,
    charge: Charge,
    spent: Mapping[str, int | None],
    waits_for: Wait | None = None,
) -> None:
    """Write errors, tables and audit record; on return they are durable.

    Args:
        files: of a run whose shards are all collected.
        state: what its journal says.
        found: the documents that were sent again.
        charge: returns what an outcome of a shard was charged, in micro-dollars.
        spent: what the earlier tries of such documents were charged, by key.
        waits_for: what documents that were never sent wait for; None when all were.

    Raises:
        InputError: a format needs an extra that is not installed.
        JournalError: a file of the run is not what it was.
    """
    with ExitStack() as stack:
        answers = stack.enter_context(formats.Answers(files))
        columns = stack.enter_context(Reader(files.state))
        writers = formats.writers(files.out, formats_of(state), columns.kinds)
        for writer in writers:
            stack.enter_context(closing(writer))
        rows = Rows(files, state, answers, columns, charge, spent)
        documents = finals(files, state, found, waits_for=waits_for)
        durable.write(files.out / ERRORS_FILE, _errors(rows, documents, writers))
        for writer in writers:
            writer.finish()
        crash.point("tables_written")
        outcomes = stack.enter_context(Outcomes(files))
        records = audit.records(files, state, outcomes=outcomes, answers=answers, cost=charge)
        durable.write(audit_path(files, state), records)


def is_written(files: Files, state: State) -> bool:
    """Whether all of it is there, as far as names tell.

    Files of documents are looked for where another format was given after the end.
    """
    wanted = [files.out / ERRORS_FILE, audit_path(files, state)]
    wanted += [
        files.out / formats.NAMES[each] for each in formats_of(state) if each in formats.NAMES
    ]
    if not all(path.exists() for path in wanted):
        return False
    if not has_files(state) or state.finished_us is None or state.saving.at < state.finished_us:
        return True
    named = (final.outcome.output for final in finals(files, state))
    return all(name is None or (files.out / name).exists() for name in named)


def formats_of(state: State) -> tuple[str, ...]:
    """Return the formats of a run."""
    return state.saving.formats or ("md",)


def has_files(state: State) -> bool:
    """Whether each document has a file of its own."""
    return not EACH.isdisjoint(formats_of(state))


def audit_path(files: Files, state: State) -> Path:
    """Return where the audit record is."""
    return Path(state.saving.audit) if state.saving.audit else files.state / audit.FILE


class Rows:
    """Makes the row of a document from all that is known of it."""

    def __init__(
        self,
        files: Files,
        state: State,
        answers: Answers,
        columns: Reader,
        charge: Charge,
        spent: Mapping[str, int | None],
    ) -> None:
        self._state, self._answers, self._columns = state, answers, columns
        self._charge, self._spent = charge, spent
        self._out = files.out
        self._tree = Tree(files.out)
        self.has_files = has_files(state)
        self._has_schema = state.config is not None and state.config.schema is not None

    def row(self, final: Final) -> Row:
        """Return the row of a document."""
        outcome = final.outcome
        text = self._answers.text(final.shard, outcome)
        value = None
        if self._has_schema and outcome.class_ == "succeeded" and text is not None:
            value = msgspec.Raw(msgspec.json.format(text.encode(), indent=-1))
        cost, before = self._charge(final.shard, outcome), self._spent.get(outcome.key, 0)
        return formats.Row(
            key=outcome.key,
            status=outcome.class_,
            reason=outcome.reason,
            text=text,
            value=value,
            output=outcome.output if self.has_files else None,
            model=outcome.model,
            usage=outcome.usage,
            cost_micros=None if cost is None or before is None else cost + before,
            custom_id=outcome.custom_id,
            batch=self._state.shards[final.shard].batch,
            tries=final.tries,
            same_as=outcome.same_as,
            columns=self._columns.get(outcome.key),
        )

    def complete(self, final: Final) -> None:
        """Write the file of a document that has none: the run had another format before."""
        name = final.outcome.output
        if not self.has_files or name is None or (self._out / name).exists():
            return
        text = self._answers.text(final.shard, final.outcome)
        if text is not None:
            self._tree.write(name, text if text.endswith("\n") else text + "\n")


def _errors(rows: Rows, documents: Iterator[Final], writers: list[Writer]) -> Iterator[bytes]:
    """Yield the lines of the list of errors, and write every document into the tables."""
    for final in documents:
        rows.complete(final)
        if writers:
            row = rows.row(final)
            for writer in writers:
                writer.add(row)
        outcome = final.outcome
        if outcome.class_ != "succeeded":
            fields = {
                "key": outcome.key,
                "custom_id": outcome.custom_id,
                "class": outcome.class_,
                "type": outcome.type,
                "reason": outcome.reason,
                "output": outcome.output if rows.has_files else None,
                "tries": final.tries,
            }
            yield wire.encode(fields) + b"\n"
