"""The fields of input rows, kept beside a run so that its tables can carry them through.

They are read when the run is planned and wanted when it ends, maybe in another process on another
day, when the input may be another. `columns.jsonl` has a line for each row, in the order of the
documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Self

import msgspec

from batchyard.client.planning.spool import Spool, Spooled
from batchyard.client.results.formats import kind_of
from batchyard.client.running import durable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from batchyard.client.inputs.documents import Document

FILE = "columns.jsonl"


class _Line(msgspec.Struct, gc=False):
    key: str
    fields: dict[str, Any] = {}


_line = msgspec.json.Decoder(_Line)


class Columns:
    """The fields of the rows of a plan."""

    def __init__(self, documents: Iterable[Document]) -> None:
        """Take the fields of every document that is a row."""
        spool = Spool()
        self._lines: list[Spooled] = [
            spool.add(_encoded(document)) for document in documents if document.is_row
        ]

    def __bool__(self) -> bool:
        return bool(self._lines)

    def write(self, state: Path) -> None:
        """Put them into the folder of the run's state; on return they are durable."""
        durable.write(state / FILE, (bytes(line) for line in self._lines))


def _encoded(document: Document) -> bytes:
    """Return the line of a document; what JSON does not have (a date) becomes text."""
    fields = dict(document.fields)
    # Every document has these two for templates; of a row they are not columns.
    if document.source.startswith(f"{fields.get('path')}:"):
        del fields["path"]
        if fields.get("name") == document.key:
            del fields["name"]
    line = msgspec.json.encode({"key": document.key, "fields": fields}, enc_hook=str)
    return line + b"\n"


class Reader:
    """Reads them back by key, fastest in their order. Use it in a `with` block."""

    def __init__(self, state: Path) -> None:
        self._path = state / FILE
        self._file: BinaryIO | None = None
        self._passed: dict[str, int] = {}
        self._at = 0

    def __enter__(self) -> Self:
        if self._path.exists():
            self._file = self._path.open("rb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def kinds(self) -> dict[str, str]:
        """Return the columns in the order in which they come up, with the kind of their values."""
        kinds: dict[str, str | None] = {}
        if self._file is not None:
            with self._path.open("rb") as file:
                for line in file:
                    for name, value in _line.decode(line).fields.items():
                        kinds[name] = kind_of(value, kinds.get(name))
        return {name: kind or "text" for name, kind in kinds.items()}

    def get(self, key: str) -> Mapping[str, Any]:
        """Return the fields of a document; empty when it was no row."""
        if self._file is None:
            return {}
        passed = self._passed.pop(key, None)
        if passed is not None:
            self._file.seek(passed)
            return _line.decode(self._file.readline()).fields
        for at, line in self._onward():
            read = _line.decode(line)
            if read.key == key:
                return read.fields
            self._passed[read.key] = at
        return {}

    def _onward(self) -> Iterator[tuple[int, bytes]]:
        assert self._file is not None
        self._file.seek(self._at)
        while line := self._file.readline():
            at, self._at = self._at, self._at + len(line)
            yield at, line
