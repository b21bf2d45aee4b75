"""Rows of JSONL, CSV and TSV text, read strictly: an error names the file and the line in it."""

from __future__ import annotations

import csv
import itertools
from typing import TYPE_CHECKING, Any

from batchyard import wire
from batchyard.client.problems import InputError
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FIELD_CHARS_MAX = 32 * 1024 * 1024  # as long as a whole request may be
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHERS = (";", "\t")  # of a .csv file
SUFFIXES = frozenset({".jsonl", ".ndjson", *_DELIMITERS})


def newline_of(suffix: str) -> str:
    """Return where lines end in such a file, as for `open`: in CSV, fields hold line ends too."""
    return "" if suffix in _DELIMITERS else "\n"


def rows_of_lines(
    lines: Iterator[str], suffix: str, where: str, hint: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the fields of each row.

    Args:
        lines: of the file with their ends, split as `newline_of` says.
        suffix: one of `SUFFIXES`, which says what it is.
        where: it comes from, for errors.
        hint: what to do about lines that are not JSON.

    Raises:
        InputError: a line is not a row.
    """
    if suffix in _DELIMITERS:
        first = next(lines, "")
        return _csv_rows(itertools.chain((first,), lines), _delimiter(first, suffix), where)
    return _jsonl_rows(lines, where, hint)


def _delimiter(header: str, suffix: str) -> str:
    """Return what separates columns: where decimals have a comma, spreadsheets write `;`.

    A first line without any comma names either one column, or several that are separated otherwise.
    """
    if suffix == ".csv" and "," not in header:
        return next((each for each in _OTHERS if each in header), ",")
    return _DELIMITERS[suffix]


def _jsonl_rows(
    lines: Iterable[str], where: str, hint: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the object of each line; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = wire.decode(line.removesuffix("\n"))
        except ValueError as error:
            raise InputError(f"{where}:{number}: not JSON: {error}{hint}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}:{number}: a row is a JSON object, not {shown(row)}")
        yield number, row


def _csv_rows(
    lines: Iterable[str], delimiter: str, where: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the fields of each row under the names of the first line."""
    csv.field_size_limit(_FIELD_CHARS_MAX)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise InputError(f"{where}:1: the first line has to name the columns")
        if len(set(header)) != len(header):
            raise InputError(f"{where}:1: a column name stands twice")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{where}:{reader.line_num}: {len(row)} fields, but the header names "
                    f"{len(header)} columns"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{where}:{reader.line_num}: not CSV: {error}") from None
