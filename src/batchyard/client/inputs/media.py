"""Documents that are no text: PDF files and images, as content blocks of the Messages API.

A file is read twice, once for its hash and once for the request, so that a thousand of them are
never in memory together.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchyard.client.inputs.texts import read_bytes
from batchyard.client.problems import InputError

if TYPE_CHECKING:
    from pathlib import Path

# Source: the vision and PDF pages of the API's guide.
_PDF = "application/pdf"
_TYPES = {
    ".pdf": _PDF,
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
SUFFIXES = frozenset(_TYPES)
# How a file of each type begins: a wrong suffix is refused here and not after the upload.
_BEGINNINGS = {
    _PDF: re.compile(rb"(?s).{0,1024}?%PDF-"),
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"(?s)RIFF.{4}WEBP"),
}
# An image costs what its pixels fill, at most about this; a page its text and its picture.
# Source: the same pages. Both are estimates, and shown as such.
_IMAGE_TOKENS = 1_600
_PAGE_TOKENS = 2_500
_PAGE_BYTES = 50_000  # of a file whose pages cannot be counted without unpacking it
_PAGE = re.compile(rb"/Type\s*/Page\b")


@dataclass(frozen=True, slots=True)
class Media:
    """One file that becomes a content block."""

    path: Path
    media_type: str
    size: int
    sha256: str
    tokens: int
    """An estimate of what it costs as input."""

    def block(self) -> dict[str, Any]:
        """Return the content block; reads the file.

        Raises:
            InputError: it cannot be read, or it has changed since.
        """
        data = read_bytes(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise InputError(f"{self.path} changed while it was read")
        return {
            "type": "document" if self.media_type == _PDF else "image",
            "source": {
                "type": "base64",
                "media_type": self.media_type,
                "data": base64.b64encode(data).decode("ascii"),
            },
        }


def read_media(path: Path) -> Media:
    """Look at a file with one of `SUFFIXES`.

    Raises:
        InputError: it cannot be read, or is not what its name says.
    """
    media_type = _TYPES[path.suffix.lower()]
    data = read_bytes(path)
    if not _BEGINNINGS[media_type].match(data):
        raise InputError(f"{path} is not {media_type}: it begins with {data[:8]!r}")
    digest = hashlib.sha256(data).hexdigest()
    return Media(path, media_type, len(data), digest, _tokens(data, media_type))


def _tokens(data: bytes, media_type: str) -> int:
    if media_type != _PDF:
        return _IMAGE_TOKENS
    pages = len(_PAGE.findall(data)) or -(-len(data) // _PAGE_BYTES)
    return pages * _PAGE_TOKENS
