"""Read text, JSONL and CSV files strictly: an error names the file and the place in it."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from batchyard import wire
from batchyard.client.problems import InputError
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BOM = b"\xef\xbb\xbf"
_FIELD_CHARS_MAX = 32 * 1024 * 1024  # as long as a whole request may be


class NotUtf8(InputError):
    """A file is not UTF-8."""


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        InputError: it cannot be read.
        NotUtf8: a byte is not UTF-8 (with its offset in the file).
    """
    data = _read(path)
    skipped = len(_BOM) if data.startswith(_BOM) else 0
    try:
        return data[skipped:].decode()
    except UnicodeDecodeError as error:
        offset = error.start + skipped
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise NotUtf8(f"{path} is UTF-16, not UTF-8") from None
        raise NotUtf8(
            f"{path} is not UTF-8: byte {offset} is 0x{data[offset]:02x} ({error.reason})"
        ) from None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each line; empty lines are passed over.

    Raises:
        InputError: a line is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = wire.decode(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a row is a JSON object, not {shown(row)}")
        yield number, row


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the fields of each row under the names of the first line.

    Raises:
        InputError: there is no header, a name stands twice, or a row is longer or shorter.
    """
    csv.field_size_limit(_FIELD_CHARS_MAX)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise InputError(f"{path}:1: the first line has to name the columns")
        if len(set(header)) != len(header):
            raise InputError(f"{path}:1: a column name stands twice")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}:{reader.line_num}: {len(row)} fields, but the header names "
                    f"{len(header)} columns"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
