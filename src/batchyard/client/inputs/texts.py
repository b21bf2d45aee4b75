"""Read text strictly: what it is encoded in is known or declared, never guessed from the bytes.

A byte order mark decides, then UTF-8 if every byte fits, then what the text declares about itself
(XML, HTML, source code). Anything else is refused with the place, until the encoding is named.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

from batchyard.client.problems import InputError
from batchyard.errors import shown

if TYPE_CHECKING:
    from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins like UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_HEAD_BYTES = 1_024  # where HTML has to declare it. Source: the HTML standard, encoding sniffing
_DECLARED = re.compile(
    rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.-]{1,40})"
    rb"|<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.-]{1,40})"
    rb"|\A(?:[^\n]{0,200}\n)?[^\n]{0,200}?coding[:=]\s*([\w.-]{1,40})",
    re.IGNORECASE,
)


class NotDecodable(InputError):
    """The bytes of a file are not text in the encoding that they should have."""


def known_encoding(name: str) -> str:
    """Return `name` as Python knows it.

    Raises:
        InputError: it is not an encoding of text.
    """
    try:
        "".encode(name)  # also a codec that is none of text has a name
        return codecs.lookup(name).name
    except (LookupError, UnicodeError, ValueError):
        raise InputError(
            f"--encoding is {shown(name)}; a name such as utf-8, utf-16, latin-1, cp1252, gb18030 "
            "or shift_jis is allowed"
        ) from None


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: Path, encoding: str | None = None) -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        path: of the file.
        encoding: what every file without a byte order mark is in; None finds out.

    Raises:
        InputError: it cannot be read.
        NotDecodable: a byte does not fit (with its offset in the file).
    """
    return decode(read_bytes(path), str(path), encoding)


def decode(data: bytes, where: str, encoding: str | None = None) -> str:
    """Return `data` as text; see `read_text`.

    Args:
        data: all of it.
        where: it comes from, for the error.
        encoding: None finds out.
    """
    for mark, marked in _MARKS:
        if data.startswith(mark):
            return _decode(data, len(mark), marked, where)
    if encoding is not None:
        return _decode(data, 0, encoding, where)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        declared = _declared(data)
        if declared is None:
            raise _refusal(where, "utf-8", data, error, 0) from None
    return _decode(data, 0, declared, where)


def _decode(data: bytes, skipped: int, encoding: str, where: str) -> str:
    try:
        return data[skipped:].decode(encoding)
    except UnicodeDecodeError as error:
        raise _refusal(where, encoding, data, error, skipped) from None


def _declared(data: bytes) -> str | None:
    """Return the encoding that the text names in its head, if it is one and not UTF-8."""
    found = _DECLARED.search(data[:_HEAD_BYTES])
    if found is None:
        return None
    name = next(group for group in found.groups() if group).decode("ascii", "replace")
    try:
        codec = codecs.lookup(name)
        "".encode(name)
    except (LookupError, UnicodeError, ValueError):
        return None
    return None if codec.name == "utf-8" else codec.name


def _refusal(
    where: str, encoding: str, data: bytes, error: UnicodeDecodeError, skipped: int
) -> NotDecodable:
    offset = error.start + skipped
    byte = f"0x{data[offset]:02x}" if offset < len(data) else "missing"
    return NotDecodable(
        f"{where} is not {encoding.upper()}: byte {offset} is {byte} ({error.reason})"
    )
