"""Read text strictly: what it is encoded in is known or declared, never guessed from the bytes.

A byte order mark decides, then UTF-8 if every byte fits, then what the text declares about itself
(XML, HTML, source code). Anything else is refused with the place, until the encoding is named.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from typing import IO, TYPE_CHECKING

from batchyard import limits
from batchyard.client.problems import InputError
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Generator
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


def lines(
    file: IO[bytes], where: str, encoding: str | None, newline: str
) -> Generator[str, None, None]:
    """Yield the lines of a file with their ends, not all of it in memory; see `read_text`.

    Nothing is yielded before all of it is known to fit: it is read twice.

    Args:
        file: to be read from its beginning; who opened it closes it, after the generator.
        where: it comes from, for errors.
        encoding: None finds out.
        newline: what ends a line, as for `open`.

    Raises:
        NotDecodable: a byte does not fit.
        InputError: the file was changed meanwhile.
    """
    codec, skipped = _found(file, where, encoding)
    file.seek(skipped)
    text = io.TextIOWrapper(file, codec, newline=newline)
    try:
        # `yield from` would close the file of who leaves early.
        for line in text:  # noqa: UP028
            yield line
    except UnicodeDecodeError:
        raise InputError(f"{where} was changed while it was read") from None
    finally:
        text.detach()


def _found(file: IO[bytes], where: str, encoding: str | None) -> tuple[str, int]:
    """Return what a file is encoded in, and how many bytes of it are its mark."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    for mark, marked in _MARKS:
        if head.startswith(mark):
            _check(file, where, marked, len(mark))
            return marked, len(mark)
    try:
        _check(file, where, encoding or "utf-8", 0)
    except NotDecodable:
        declared = _declared(head) if encoding is None else None
        if declared is None:
            raise
        _check(file, where, declared, 0)
        return _in_parts(declared), 0
    return _in_parts(encoding or "utf-8"), 0


def _check(file: IO[bytes], where: str, encoding: str, skipped: int) -> None:
    """Refuse a file of which a byte does not fit."""
    decoder = codecs.getincrementaldecoder(_in_parts(encoding))()
    file.seek(skipped)
    at = skipped
    while True:
        data = file.read(limits.MIB)
        begun = at - len(decoder.getstate()[0])  # what it holds back of a character is read again
        try:
            decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            found = error.object[error.start :]
            byte = f"0x{found[0]:02x}" if found else "missing"
            text = f"byte {begun + error.start} is {byte} ({error.reason})"
            raise NotDecodable(f"{where} is not {encoding.upper()}: {text}") from None
        if not data:
            return
        at += len(data)


def _in_parts(encoding: str) -> str:
    """Return the name under which text without a mark is decoded in parts as it is in one."""
    name = codecs.lookup(encoding).name
    if name in {"utf-16", "utf-32"}:
        return f"{name}-{sys.byteorder[0]}e"
    return "utf-8" if name == "utf-8-sig" else name


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
