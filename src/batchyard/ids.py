"""Mint the identifiers of the wire.

Ids are opaque to everybody, also to us: a lookup compares whole strings. Only the prefix and
the alphabet follow the hosted API, because people recognise them.
"""

from __future__ import annotations

import secrets
from typing import Literal

Kind = Literal["msgbatch", "msg", "req", "workerreq", "toolu", "srvtoolu", "wrkspc"]

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SUFFIX_CHARS = 22


def mint(kind: Kind) -> str:
    """Return a new id such as `msgbatch_01HkcTjaV5uDC8jWR4ZsDV8d`, 128 random bits."""
    return from_number(kind, secrets.randbits(128))


def from_number(kind: Kind, number: int) -> str:
    """Return the id of `kind` for a number of up to 128 bits; the same number, the same id."""
    digits = []
    for _ in range(_SUFFIX_CHARS):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return f"{kind}_01{''.join(digits)}"


def nonce() -> str:
    """Return 16 random hexadecimal digits, for names that only one writer may ever use."""
    return secrets.token_hex(8)
