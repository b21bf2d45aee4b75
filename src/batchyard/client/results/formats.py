"""All documents of a run in one file: JSON lines, CSV or Parquet; one row each, in input order.

Rows are made and written one after the other. A file appears under its name only when it is whole
and on disk. What a row holds is read from the outcomes and the results as received.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, Self, get_args

from batchyard import wire
from batchyard.client.problems import InputError, JournalError
from batchyard.client.results import classes, collect
from batchyard.client.results.outputs import TABLES
from batchyard.client.running import durable
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import msgspec

    from batchyard import price
    from batchyard.client.results.collect import Outcome
    from batchyard.client.running.folder import Files

Format = Literal["md", "json", "jsonl", "csv", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)
Target = Path | BinaryIO
# One file for each document; the others are one file for all.
EACH = frozenset({"md", "json"})
NAMES = TABLES

# Of whom a row has the text: an invalid answer is worth a look.
_WITH_TEXT = classes.SAVED | {"invalid"}
# A spreadsheet would take a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_RESULTS_OPEN = 8
_GROUP_ROWS = 2_000
_GROUP_BYTES = 16_000_000
_USAGE = (
    "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens",
    "cache_write_1h_tokens", "web_searches",
)  # fmt: skip
_TEXTS = (
    "key", "status", "reason", "text", "output", "model", "custom_id", "batch", "same_as",
)  # fmt: skip
_NUMBERS = (*_USAGE, "cost_micros", "tries")
OURS = (*_TEXTS, *_NUMBERS)


def checked(formats: Iterable[str], *, has_schema: bool) -> tuple[Format, ...]:
    """Return the formats to write, in the order of `FORMATS`; the usual one for none.

    Raises:
        InputError: one is unknown, does not fit, or needs what is not installed.
    """
    wanted = set(formats) or {"json" if has_schema else "md"}
    for each in sorted(wanted - set(FORMATS)):
        raise InputError(f"--format is {shown(each)}; it is {', '.join(FORMATS)}")
    if wanted >= EACH:
        raise InputError("--format md and --format json are both one file for each document")
    if "json" in wanted and not has_schema:
        raise InputError("--format json needs --schema; jsonl has a JSON line for each document")
    if "parquet" in wanted:
        _pyarrow()
    return tuple(each for each in get_args(Format) if each in wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is told of one document. `cost_micros` is of all its tries; None: not known.

    `value` is the JSON of a structured answer. `columns` are the fields of its input row.
    """

    key: str
    status: str
    reason: str | None
    text: str | None
    value: msgspec.Raw | None
    output: str | None
    model: str | None
    usage: price.Usage | None
    cost_micros: int | None
    custom_id: str
    batch: str | None
    tries: int
    same_as: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)


class Answers:
    """The texts of answers, out of the results as received. Use it in a `with` block."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._earlier: dict[int, Mapping[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def line(self, shard: int, outcome: Outcome) -> bytes | None:
        """Return the line of results of an outcome as received; None when there is none."""
        if outcome.at is None:
            return None
        if shard not in self._open:
            if len(self._open) == _RESULTS_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = self._files.results(shard).open("rb")
        self._open.move_to_end(shard)
        file = self._open[shard]
        file.seek(outcome.at)
        return file.readline()

    def text(self, shard: int, outcome: Outcome) -> str | None:
        """Return what the model said for a document, None when it has no report.

        Raises:
            JournalError: the results are not what they were.
        """
        shard, outcome = outcome.answered_in(shard)
        if outcome.class_ not in _WITH_TEXT or outcome.at is None:
            return None
        line = self.line(shard, outcome)
        text = collect.text_of_line(line, outcome.custom_id) if line else None
        if text is None:
            raise JournalError(f"{self._files.results(shard)} is not what it was")
        if not outcome.continues:
            return text
        if shard not in self._earlier:
            self._earlier[shard] = collect.earlier_texts(self._files, shard)
        return self._earlier[shard].get(outcome.custom_id, "") + text


def answer(files: Files, shard: int, outcome: Outcome) -> str | None:
    """Return what the model said for one document, None when it has no report.

    Raises:
        JournalError: the results are not what they were.
    """
    with Answers(files) as answers:
        return answers.text(shard, outcome)


class Writer(Protocol):
    """Takes one row after the other into a file."""

    def add(self, row: Row) -> None:
        """Write one row."""

    def finish(self) -> None:
        """Put the file under its name; on return it is whole and on disk."""

    def close(self) -> None:
        """Let go of the file, finished or not."""


class _File:
    """A file that appears under its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with durable.naming(self._partial):
            self.file = os.fdopen(os.open(self._partial, flags, 0o644), "wb")

    def write(self, data: bytes) -> None:
        with durable.naming(self._partial):
            self.file.write(data)

    def finish(self) -> None:
        with durable.naming(self._partial):
            self.file.flush()
            os.fsync(self.file.fileno())
        self._partial.replace(self._path)
        durable.sync_directory(self._path.parent)

    def close(self) -> None:
        self.file.close()


class _Stream:
    """A stream that others have opened and close, such as standard output."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def finish(self) -> None:
        self.file.flush()

    def close(self) -> None:
        pass


def _opened(target: Target) -> _File | _Stream:
    return _File(target) if isinstance(target, Path) else _Stream(target)


class JsonLines:
    """One JSON object for each document."""

    def __init__(self, target: Target) -> None:
        self._file = _opened(target)
        self.finish, self.close = self._file.finish, self._file.close

    def add(self, row: Row) -> None:
        """Write one row; a structured answer stands there as it is."""
        said: dict[str, object] = {"text": row.text}
        if row.value is not None:
            said = {"value": row.value}
        fields = {
            "key": row.key,
            "status": row.status,
            "reason": row.reason,
            **said,
            "output": row.output,
            "model": row.model,
            "usage": row.usage,
            "cost_micros": row.cost_micros,
            "custom_id": row.custom_id,
            "batch": row.batch,
            "tries": row.tries,
            "same_as": row.same_as,
            **({"input": row.columns} if row.columns else {}),
        }
        self._file.write(wire.encode(fields) + b"\n")


class Csv:
    """Comma-separated values as in RFC 4180, UTF-8; no cell is a formula."""

    def __init__(self, target: Target, columns: Iterable[str]) -> None:
        self._columns = tuple(columns)
        self._file = _opened(target)
        self.finish, self.close = self._file.finish, self._file.close
        self._line = io.StringIO(newline="")
        self._csv = csv.writer(self._line)
        self._put([*input_names(self._columns), *OURS])

    def add(self, row: Row) -> None:
        """Write one row."""
        given = [_cell(row.columns.get(name)) for name in self._columns]
        self._put([*given, *map(_cell, _values(row))])

    def _put(self, cells: Iterable[object]) -> None:
        self._csv.writerow([_harmless(cell) if isinstance(cell, str) else cell for cell in cells])
        self._file.write(self._line.getvalue().encode("utf-8", "replace"))
        self._line.seek(0)
        self._line.truncate()


class Parquet:
    """A Parquet file, written in groups of rows."""

    def __init__(self, target: Target, columns: Mapping[str, str]) -> None:
        """Open the file.

        Args:
            target: path of the file, or a stream.
            columns: of the input, with their kind: text, integer, number, boolean or json.

        Raises:
            InputError: the extra is not installed.
        """
        self._arrow = pyarrow = _pyarrow()
        kinds = {
            "text": pyarrow.string(), "json": pyarrow.string(), "integer": pyarrow.int64(),
            "number": pyarrow.float64(), "boolean": pyarrow.bool_(),
        }  # fmt: skip
        self._columns = dict(columns)
        self._schema = pyarrow.schema(
            [
                (name, kinds[kind])
                for name, kind in zip(input_names(columns), columns.values(), strict=True)
            ]
            + [(name, pyarrow.string()) for name in _TEXTS]
            + [(name, pyarrow.int64()) for name in _NUMBERS]
        )
        self._file = _opened(target)
        self._writer = pyarrow.parquet.ParquetWriter(self._file.file, self._schema)
        self._rows: list[list[object]] = []
        self._size = 0

    def add(self, row: Row) -> None:
        """Keep one row; write the group when it is full."""
        given = [_typed(row.columns.get(name), kind) for name, kind in self._columns.items()]
        self._rows.append([*given, *_values(row)])
        self._size += len(row.text or "") + sum(len(v) for v in given if isinstance(v, str))
        if len(self._rows) == _GROUP_ROWS or self._size > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        arrays = [
            self._arrow.array(list(column), kind)
            for column, kind in zip(zip(*self._rows, strict=True), self._schema.types, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._size = [], 0

    def finish(self) -> None:
        """Put the file under its name."""
        self._flush()
        self._writer.close()
        self._file.finish()

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(OSError):
            self._writer.close()  # it would complain later, when nobody listens
        self._file.close()


def writers(
    out: Path, formats: Iterable[str], columns: Callable[[], Mapping[str, str]]
) -> list[Writer]:
    """Open the files for all documents.

    Args:
        out: the output folder.
        formats: of the run.
        columns: returns the columns of the input with their kind; called when they are needed.
    """
    return [writer(each, out / NAMES[each], columns) for each in formats if each in NAMES]


def writer(each: str, target: Target, columns: Callable[[], Mapping[str, str]]) -> Writer:
    """Open one file for all documents, in one of the formats of `NAMES`.

    Raises:
        InputError: the format needs an extra that is not installed.
    """
    if each == "jsonl":
        return JsonLines(target)
    return Csv(target, columns()) if each == "csv" else Parquet(target, columns())


def input_names(columns: Iterable[str]) -> list[str]:
    """Return what the columns of the input are called beside ours: all names are different."""
    given = list(columns)
    taken = {*OURS, *given}
    names = []
    for column in given:
        name = column
        while name in taken and (name in OURS or name != column):
            name = f"input_{name}"
        taken.add(name)
        names.append(name)
    return names


def kind_of(value: object, before: str | None) -> str | None:
    """Return the kind of a column after one more of its values; None while all were null."""
    if value is None:
        return before
    kind = (
        "boolean" if isinstance(value, bool)
        else "integer" if isinstance(value, int) and -(2**63) <= value < 2**63
        else "number" if isinstance(value, int | float)
        else "text" if isinstance(value, str)
        else "json"
    )  # fmt: skip
    if before is None or before == kind:
        return kind
    return "number" if {before, kind} == {"integer", "number"} else "json"


def _values(row: Row) -> list[object]:
    usage = row.usage
    counts = [None if usage is None else getattr(usage, name) for name in _USAGE]
    texts = [getattr(row, name) for name in _TEXTS]
    return [*texts, *counts, row.cost_micros, row.tries]


def _cell(value: object) -> object:
    """Return a value as a cell: texts and numbers as they are, the rest as JSON."""
    if value is None:
        return ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return wire.encode(value).decode()


def _harmless(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA) else text


def _typed(value: object, kind: str) -> object:
    if value is None or kind in {"text", "integer", "boolean"}:
        return value
    if kind == "number":
        return float(value)  # type: ignore[arg-type]
    return wire.encode(value).decode()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped] # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(
            "--format parquet needs the extra: pip install 'batchyard[data]'"
        ) from None
    return pyarrow
