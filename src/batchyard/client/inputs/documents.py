"""Sources to documents: files, folders, globs, rows of tables and databases, standard input.

Reads everything in a fixed order, so that the same inputs give the same run. Text is kept in memory
while there is little of it, else in a file without a name; PDF files and images stay where they
are. Knows nothing of prompts or batches.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchyard import limits, wire
from batchyard.client.inputs import kept, rows, tables
from batchyard.client.inputs.media import SUFFIXES as MEDIA_SUFFIXES
from batchyard.client.inputs.media import Media, read_media
from batchyard.client.inputs.texts import NotDecodable, decode, known_encoding, lines, read_text
from batchyard.client.planning.spool import Spool, Spooled
from batchyard.client.problems import InputError
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

STDIN_FORMATS = ("jsonl", "csv", "tsv", "text")

# What a folder contributes; anything else has to be named, or matched by a glob.
TEXT_SUFFIXES = frozenset(
    {
        ".md", ".markdown", ".rst", ".txt", ".text", ".adoc", ".asciidoc", ".org", ".tex",
    }
)  # fmt: skip
_PARQUET = ".parquet"
ROW_SUFFIXES = rows.SUFFIXES | {_PARQUET}
STDIN = "-"
RUN = "run:"  # the output folder of a run, whose reports are documents
_GLOB = frozenset("*?[")
_NAMED = 5
_STDIN_HINT = "; rows of JSON are expected: --stdin csv, tsv or text says that it is something else"
_REMEDY = "convert it, leave it out, or name what all of them are with --encoding"


@dataclass(frozen=True, slots=True)
class Document:
    """One thing to write a report about.

    `key` is its path below the common root (with `/`), or the id of its row. `fields` are what a
    template may use. `sha256` changes when any field, or the file of `media`, does.
    """

    key: str
    _fields: Mapping[str, Any] | Spooled
    sha256: str
    source: str
    is_row: bool = False
    media: Media | None = None
    """A PDF file or an image: it stands before the rendered prompt as a content block."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """Return them, from where they are kept."""
        return kept.read(self._fields)

    def kept_in(self, spool: Spool) -> Document:
        """Return the same document, with its fields kept there if they are long."""
        if isinstance(self._fields, Spooled):
            return self
        return replace(self, _fields=kept.kept(self._fields, spool))


@dataclass(frozen=True, slots=True)
class Sources:
    """Where documents come from; nothing is read before `read`."""

    patterns: tuple[str, ...] = ()
    rows: kept.Rows | tuple[Mapping[str, Any], ...] = ()
    id_field: str | None = None
    encoding: str | None = None
    stdin: str = "jsonl"

    def read(self, *, outside: Path | None = None) -> list[Document]:
        """Return all documents in the order of the inputs: files by path, rows as they stand.

        Args:
            outside: a folder whose files are never inputs: the output folder.

        Raises:
            InputError: nothing matches, a file cannot be read as text, a row has no id, or two
                documents have the same key.
        """
        spool = Spool()
        found = [document.kept_in(spool) for document in self._read(outside)]
        if self.rows:
            numbered = ((number, dict(row)) for number, row in enumerate(self.rows, 1))
            given = _from_rows("rows", numbered, self.id_field)
            found += [document.kept_in(spool) for document in given]
        if not found:
            what = ", ".join(shown(pattern) for pattern in self.patterns) or "no source was given"
            raise InputError(f"there are no documents: {what}")
        _refuse_duplicates(sorted(found, key=lambda document: document.key))
        return found

    def _read(self, outside: Path | None) -> Iterator[Document]:
        """Yield the documents of the patterns, one after the other."""
        encoding = None if self.encoding is None else known_encoding(self.encoding)
        yield from _from_paths(_match(self._paths, outside), self.id_field, encoding)
        for pattern in self.patterns:
            if pattern == STDIN:
                yield from _from_stdin(self.stdin, self.id_field, encoding)
            elif pattern.startswith(tables.SQL):
                yield from _from_rows(*tables.read_sql(pattern), self.id_field)
            elif pattern.startswith(RUN):
                from batchyard.client.inputs import stages  # noqa: PLC0415 - it makes documents

                yield from stages.read(pattern, outside=outside)

    def skipped(self, *, outside: Path | None = None) -> dict[str, int]:
        """Count, by ending, the files of the named folders that are no documents, most first.

        Hidden files are left out of everything, this count too.

        Raises:
            InputError: nothing matches.
        """
        names = (path.suffix.lower() for path in _match(self._paths, outside).skipped)
        return dict(Counter(name or "no ending" for name in names).most_common())

    @property
    def _paths(self) -> list[str]:
        return [p for p in self.patterns if p != STDIN and not p.startswith((tables.SQL, RUN))]

    def notices(self) -> list[str]:
        """Return what a person should know of the runs among the sources.

        Raises:
            InputError: a run is not finished.
        """
        from batchyard.client.inputs import stages  # noqa: PLC0415 - it makes documents

        return [line for p in self.patterns if p.startswith(RUN) for line in stages.notices(p)]


@dataclass(frozen=True, slots=True)
class _Match:
    """The files that patterns name, the folders they start from, what those hold besides."""

    paths: Sequence[Path]
    roots: Sequence[Path]
    skipped: Sequence[Path]


def files(
    *patterns: str | os.PathLike[str],
    id: str | None = None,  # noqa: A002
    encoding: str | None = None,
    stdin: str = "jsonl",
) -> Sources:
    """Name the documents of a run.

    Args:
        patterns: files, folders (their text files, recursively) and globs, `**` included. PDF files
            and images become content blocks. A `.jsonl`, `.csv`, `.tsv` or `.parquet` file gives
            one document for each row, and so does `sql:URL QUERY`; `-` is standard input.
        id: the field that names a row; without it `id`, else the row's number.
        encoding: of files without a byte order mark; None finds out, and refuses what it cannot.
        stdin: what comes through standard input: rows, or the text of one document.
    """
    return Sources(tuple(os.fspath(pattern) for pattern in patterns), (), id, encoding, stdin)


def content_hash(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the fields, whatever their order."""
    encoded = wire.encode(sorted((str(name), value) for name, value in fields.items()))
    return hashlib.sha256(encoded).hexdigest()


def _match(patterns: Sequence[str], outside: Path | None) -> _Match:
    paths: dict[Path, None] = {}
    others: dict[Path, None] = {}
    roots: list[Path] = []
    for pattern in patterns:
        root, matches, found = _expand(pattern)
        kept = [path for path in matches if not _is_inside(path, outside)]
        besides = [path for path in found if not _is_inside(path, outside)]
        if not kept:
            where = " outside the output folder" if matches or (found and not besides) else ""
            why = _besides(besides)
            if where and not besides:
                why = f": name another --out than {shown(str(outside), 300)}"
            elif not found and Path(pattern).is_dir():
                why = ": the folder is empty, hidden files aside"
            raise InputError(f"{shown(pattern, 300)} matches no document{where}{why}")
        roots.append(root)
        paths.update(dict.fromkeys(kept))
        others.update(dict.fromkeys(besides))
    return _Match(list(paths), roots, [path for path in others if path not in paths])


def _besides(paths: Sequence[Path]) -> str:
    """Say what a folder holds instead of text, and how to name it."""
    if not paths:
        return ""
    first = paths[0]
    what = f"; the first file of another kind is {shown(str(first), 300)}"
    pattern = f"{glob.escape(str(first.parent))}/*{glob.escape(first.suffix)}"
    if first.suffix.lower() in MEDIA_SUFFIXES | ROW_SUFFIXES and pattern.isprintable():
        what += f", which {shlex.quote(pattern)} would name"  # as one would type it: never cut
        return what
    return f"{what}; of a folder those count that end in {', '.join(sorted(TEXT_SUFFIXES))}"


def _from_paths(match: _Match, id_field: str | None, encoding: str | None) -> Iterator[Document]:
    """Yield the documents of all files, or say of all at once which are no text."""
    if not match.paths:
        return
    roots = [os.path.abspath(root) for root in match.roots]  # noqa: PTH100 - links stay links
    common = Path(os.path.commonpath(roots))
    undecodable: list[str] = []
    for path in match.paths:
        try:
            suffix = path.suffix.lower()
            if suffix in ROW_SUFFIXES:
                yield from _rows_of(path, id_field, encoding)
            else:
                yield _file(path, common, encoding)
        except NotDecodable as error:
            undecodable.append(error.message)
    if len(undecodable) == 1:
        raise InputError(f"{undecodable[0]}; {_REMEDY}")
    if undecodable:
        more = len(undecodable) - _NAMED
        lines = [f"  {line}" for line in undecodable[:_NAMED]]
        lines += [f"  and {more} more"] if more > 0 else []
        listed = "\n".join(lines)
        raise InputError(f"{len(undecodable)} files are no text; {_REMEDY}:\n{listed}")


def _expand(pattern: str) -> tuple[Path, list[Path], list[Path]]:
    """Return the folder that the pattern starts from, its matches, the other files of a folder."""
    literal = Path(pattern)
    if literal.is_dir():
        found = sorted(_visible_files(literal))
        texts = [path for path in found if path.suffix.lower() in TEXT_SUFFIXES]
        return literal, texts, [p for p in found if p.suffix.lower() not in TEXT_SUFFIXES]
    if literal.exists():
        if not literal.is_file():
            raise InputError(f"{shown(pattern, 300)} is not a regular file")
        return literal.parent, [literal], []
    if not _GLOB & set(pattern):
        raise InputError(f"{shown(pattern, 300)} does not exist")
    parts = literal.parts
    fixed = next(index for index, part in enumerate(parts) if _GLOB & set(part))
    root = Path(*parts[:fixed])
    try:
        matches = sorted(root.glob(str(Path(*parts[fixed:]))))
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{shown(pattern)} is not a usable pattern: {error}") from None
    wants_hidden = any(part.startswith(".") for part in parts[fixed:])
    kept = [
        path
        for path in matches
        if path.is_file() and (wants_hidden or not _is_hidden(path.relative_to(root)))
    ]
    return root, kept, []


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if not _is_hidden(path.relative_to(folder)) and path.is_file():
            yield path


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _file(path: Path, root: Path, encoding: str | None) -> Document:
    relative = os.path.relpath(os.path.abspath(path), root)  # noqa: PTH100 - links stay links
    key = os.fsencode(relative).decode("utf-8", "backslashreplace")
    fields = {"text": "", "path": key, "name": _printable(path.stem)}
    if path.suffix.lower() not in MEDIA_SUFFIXES:
        fields["text"] = read_text(path, encoding)
        return Document(key, fields, content_hash(fields), str(path))
    found = read_media(path)
    digest = content_hash(fields | {"media_sha256": found.sha256})
    return Document(key, fields, digest, str(path), media=found)


def _rows_of(path: Path, id_field: str | None, encoding: str | None) -> Iterator[Document]:
    source, suffix = _printable(path), path.suffix.lower()
    if suffix == _PARQUET:
        return _from_rows(source, tables.read_parquet(path), id_field)
    return _from_rows(source, _rows_in(path, suffix, encoding), id_field)


def _rows_in(path: Path, suffix: str, encoding: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with (
            path.open("rb") as file,
            closing(lines(file, str(path), encoding, rows.newline_of(suffix))) as text,
        ):
            yield from rows.rows_of_lines(text, suffix, _printable(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _from_stdin(stdin: str, id_field: str | None, encoding: str | None) -> Iterator[Document]:
    """Yield the documents that come through standard input.

    Raises:
        InputError: it is a terminal, or what comes is not what was announced.
    """
    if stdin not in STDIN_FORMATS:
        raise InputError(f"--stdin is {shown(stdin)}; it is {', '.join(STDIN_FORMATS)}")
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("- is standard input, which is a terminal here; pipe something into it")
    if stdin != "text":
        suffix = f".{stdin}"
        with tempfile.SpooledTemporaryFile(limits.MIB) as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
            newline = rows.newline_of(suffix)
            with closing(lines(file, "standard input", encoding, newline)) as found:
                numbered = rows.rows_of_lines(found, suffix, "standard input", _STDIN_HINT)
                yield from _from_rows("standard input", numbered, id_field)
        return
    text = decode(sys.stdin.buffer.read(), "standard input", encoding)
    if text:
        fields = {"text": text, "path": "stdin", "name": "stdin"}
        yield Document("stdin", fields, content_hash(fields), "standard input")


def _printable(path: str | Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _from_rows(
    source: str, rows: Iterable[tuple[int, dict[str, Any]]], id_field: str | None
) -> Iterator[Document]:
    for number, (line, row) in enumerate(rows, 1):
        where = f"{source}:{line}"
        key = _row_id(row, number, id_field, where)
        fields = {"path": source, "name": key} | row
        try:
            digest = content_hash(fields)
        except (TypeError, ValueError, UnicodeEncodeError) as error:
            raise InputError(f"{where}: a field cannot be written as JSON: {error}") from None
        yield Document(key, fields, digest, where, is_row=True)


def _row_id(row: Mapping[str, Any], number: int, id_field: str | None, where: str) -> str:
    field = id_field or "id"
    if field not in row:
        if id_field is None:
            return str(number)
        raise InputError(
            f"{where}: the row has no field {shown(field)}; it has "
            + ", ".join(shown(str(name)) for name in row)
        )
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise InputError(
            f"{where}: field {shown(field)} is {shown(value)}; an id is a text or a whole number"
        )
    return str(value)


def _refuse_duplicates(documents: Sequence[Document]) -> None:
    for one, other in itertools.pairwise(documents):
        if one.key == other.key:
            raise InputError(
                f"two documents have the key {shown(one.key)}: {one.source} and {other.source}"
            )
