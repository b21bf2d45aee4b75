"""Stages: the reports of a finished run as the documents of the next one.

Each stage is an ordinary run. A document keeps its key from stage to stage, so that only what came
out otherwise is rendered and sent again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batchyard.client.inputs.documents import RUN, Document, Sources, content_hash
from batchyard.client.problems import InputError
from batchyard.client.results import classes, finals
from batchyard.client.results.columns import Reader
from batchyard.client.results.formats import Answers
from batchyard.client.results.outputs import clean, without_suffix
from batchyard.client.running.folder import Files
from batchyard.errors import shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from batchyard.client.results.finals import Final
    from batchyard.client.running.journal import State

# What a stage says of a document; a column of the input with such a name becomes `input_…`.
OURS = ("text", "value", "status", "source")


def outputs_of(*folders: str | os.PathLike[str]) -> Sources:
    """Name the reports of finished runs as the documents of another.

    A template sees `text` (the report), `value` (what a structured answer says), `status`,
    `source` (the name of the folder), `path` and `name`, and the columns of the input where the
    run kept them.

    Args:
        folders: the output folders of the runs.
    """
    return Sources(tuple(f"{RUN}{Path(folder)}" for folder in folders))


def read(source: str, *, outside: Path | None = None) -> Iterator[Document]:
    """Yield a document for each report of a run, in the order of its inputs.

    Args:
        source: `run:` and the output folder.
        outside: the output folder of the run that reads.

    Raises:
        InputError: there is no finished run, or it is the one that reads.
        JournalError: a file of the run is not what it was.
    """
    out = Path(source.removeprefix(RUN))
    files, state = _finished(out)
    if outside is not None and out.resolve() == outside.resolve():
        raise InputError(f"{shown(str(out))} is the output folder itself; a stage needs another")
    name = out.resolve().name
    is_structured = state.config is not None and state.config.schema is not None
    with Answers(files) as answers, Reader(files.state) as columns:
        for final in finals.finals(files, state):
            outcome = final.outcome
            if not outcome.is_saved:
                continue
            text = answers.text(final.shard, outcome) or ""
            said: dict[str, Any] = {"text": text, "status": outcome.class_, "source": name}
            if is_structured and outcome.class_ == "succeeded":
                said["value"] = msgspec.json.decode(text)
            given = columns.get(outcome.key)
            is_row = bool(given) or _is_row(final, state)
            key = outcome.key
            stem = key if is_row else without_suffix(key.rpartition("/")[2], is_row=False)
            fields = {"path": key, "name": stem, **_beside(given), **said}
            yield Document(key, fields, content_hash(fields), f"{out}:{key}", is_row=is_row)


def notices(source: str) -> list[str]:
    """Return a line on the documents of a run that have no report, and so are no input.

    Raises:
        InputError: there is no finished run.
    """
    out = Path(source.removeprefix(RUN))
    _, state = _finished(out)
    missing = {name: count for name, count in state.classes.items() if name not in classes.SAVED}
    if not missing:
        return []
    total = sum(missing.values())
    kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(missing.items()))
    noun = "document" if total == 1 else "documents"
    return [f"{total:,} {noun} of {out} without a report left out ({kinds})"]


def _finished(out: Path) -> tuple[Files, State]:
    """Return the finished run in a folder.

    Raises:
        InputError: there is none.
    """
    if not out.is_dir():
        raise InputError(f"{shown(str(out))} is not the output folder of a run")
    files = Files(out)
    state = files.read_state()
    if not state.run:
        raise InputError(f"{out} holds no run; `batchyard ls` lists the known ones")
    if state.finished_us is None:
        how = f"`batchyard attach {out}` finishes it"
        if state.config is not None and state.config.imported:
            how = "the same `batchyard import` finishes it"
        raise InputError(f"the run in {out} is not finished, so it is no input yet; {how}")
    return files, state


def _beside(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of the input under names that are not ours."""
    named: dict[str, Any] = {}
    for name, value in given.items():
        free = name
        while free in OURS or (free != name and free in given):
            free = f"input_{free}"
        named[free] = value
    return named


def _is_row(final: Final, state: State) -> bool:
    """Whether a document was a row, whose report has the whole key for its name."""
    config = state.config
    if config is None or config.name is not None:
        return False
    return final.entry.output == clean(final.entry.key) + config.suffix
