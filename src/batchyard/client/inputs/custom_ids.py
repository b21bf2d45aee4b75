"""The codec between the key of a document and a legal `custom_id`.

A key that already looks like an id (`contract_17_v2`) is its own id. Anything else is escaped with
`_` and one character, so that a person can still read it and a program can get the key back:

    _-  /        _D  .        _W  space        __  _ (only where it would begin an escape)
    _Xhhhh  a code point up to ffff            _Yhhhhhh  one above        _E  the empty key

A document that is sent again has the number of the round behind its id (`a_Dmd_R2`), so that the
results of a batch tell which round it is of. One id of each batch has a mark of its content behind
that (`a_Dmd_R0-7f3a`; see `tags`).

A key too long for 64 characters becomes a readable beginning, `_H` and 26 characters of its
SHA-256; the journal holds the key. Pure functions, no I/O.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from batchyard import limits
from batchyard.errors import shown

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_SHORT = {"/": "_-", ".": "_D", " ": "_W"}
_LONG = {code[1]: char for char, code in _SHORT.items()}
_CODES = frozenset("-_DWXYEHR")
_HASH_CHARS = 26
_HASHED = re.compile(r"[a-z2-7]{26}")
_ROUND = re.compile(r"([1-9][0-9]{0,5})|([0-9]|[1-9][0-9]{1,5})-[0-9a-f]{4}")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What an id says: the key itself, or only its beginning because the key was hashed.

    `round` is 0 for the first time that the document was sent.
    """

    key: str
    is_hashed: bool
    round: int = 0


def to_custom_id(key: str, round_: int = 0) -> str:
    """Return the legal id of `key` in a round; different keys or rounds have different ids."""
    suffix = f"_R{round_}" if round_ else ""
    pieces = _escape(key, suffix)
    text = "".join(pieces)
    room = limits.CUSTOM_ID_CHARS_MAX - len(suffix)
    if len(text) <= room:
        return text + suffix
    prefix = ""
    for piece in pieces:
        if len(prefix) + len(piece) > room - len("_H") - _HASH_CHARS:
            break
        prefix += piece
    # An underscore that stands for itself would begin an escape together with what follows.
    while pieces and prefix.endswith("_"):
        prefix = prefix[:-1]
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return f"{prefix}_H{base64.b32encode(digest).decode()[:_HASH_CHARS].lower()}{suffix}"


def from_custom_id(custom_id: str) -> Decoded:
    """Return the key of an id that `to_custom_id` made.

    Raises:
        ValueError: it did not make this id.
    """
    key, hashed, round_ = _unescape(custom_id)
    if hashed:
        return Decoded(key, is_hashed=True, round=round_)
    if f"{to_custom_id(key, round_)}{_mark(custom_id, round_)}" != custom_id:
        raise ValueError(f"{shown(custom_id)} is not an id of this codec")
    return Decoded(key, is_hashed=False, round=round_)


def _mark(custom_id: str, round_: int) -> str:
    """Return what follows the id of a request that marks its batch, empty for all others."""
    head, dash, mark = custom_id.rpartition("-")
    if not dash or not re.search(r"_R[0-9]+$", head) or not re.fullmatch(r"[0-9a-f]{4}", mark):
        return ""
    return f"-{mark}" if round_ else f"_R0-{mark}"


def _escape(key: str, following: str) -> list[str]:
    if not key:
        return ["_E"]
    pieces = [_escape_char(char) for char in key]
    for index in range(len(pieces) - 1, -1, -1):
        if pieces[index] == "_" and following[:1] in _CODES and following:
            pieces[index] = "__"
        following = pieces[index]
    return pieces


def _escape_char(char: str) -> str:
    if char in _PLAIN or char == "_":
        return char
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    return f"_X{code:04x}" if code <= 0xFFFF else f"_Y{code:06x}"


def _unescape(text: str) -> tuple[str, bool, int]:
    """Return the key, whether it was hashed (then only its beginning is returned), the round."""
    out: list[str] = []
    at = 0
    while at < len(text):
        char, code = text[at], text[at + 1 : at + 2]
        if char != "_" or code not in _CODES or not code:
            out.append(char)
            at += 1
        elif code == "R":
            return "".join(out), False, _round(text[at + 2 :], text)
        elif code == "H":
            digest, marker, number = text[at + 2 :].partition("_R")
            if not _HASHED.fullmatch(digest):
                raise ValueError(f"{shown(text)} is not an id of this codec")
            return "".join(out), True, _round(number, text) if marker else 0
        elif code in "XY":
            end = at + (6 if code == "X" else 8)
            out.append(_char(text[at + 2 : end], text))
            at = end
        else:
            out.append("_" if code == "_" else "" if code == "E" else _LONG[code])
            at += 2
    return "".join(out), False, 0


def _round(digits: str, text: str) -> int:
    if not _ROUND.fullmatch(digits):
        raise ValueError(f"{shown(text)} is not an id of this codec")
    return int(digits.partition("-")[0])


def _char(digits: str, text: str) -> str:
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError):
        raise ValueError(f"{shown(text)} is not an id of this codec") from None
