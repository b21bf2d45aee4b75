"""Guess the tokens of a text by what its characters are, without a tokenizer.

Counts of characters and a weight for each kind. The weights are set for text of many kinds and
checked on none of yours, until a sample is counted by the server (`sampling`) and they are fitted
to it. What comes out is shown as an estimate with its spread, and never used for what was paid.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SPREAD_PERCENT = 25.0  # for one document far more, for hundreds together about this

_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = b"0123456789"
_SPACES = b" \t\r\n\v\f"
# Ideographs, kana, hangul, and the full-width forms that go with them.
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")

# Newer tokenizers give about 30 % more tokens for the same text, but not for CJK.
# Source: the provider's pricing page, note on Claude 4.7 and later.
_OLD_TOKENIZER = re.compile(r"claude-([a-z]+-)?(3(-|$)|4(-[1-6])?(-20\d{6})?$)")
_NEW_FACTOR = 1.3


class Counts(NamedTuple):
    """How many characters of each kind a text has; `media` is guessed tokens of files beside it."""

    letters: int = 0
    cjk: int = 0
    digits: int = 0
    punctuation: int = 0
    spaces: int = 0
    other: int = 0
    media: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Tokens for one character of each kind, in the order of `Counts`, and for a whole request."""

    each: tuple[float, ...]
    fixed: float = 0.0

    def tokens(self, counts: Iterable[int]) -> int:
        """Return the tokens of a text, at least 1."""
        total = self.fixed
        for count, weight in zip(counts, self.each, strict=True):
            total += count * weight
        return max(1, int(total))


_OLD = Weights((0.240, 1.050, 0.480, 0.560, 0.060, 0.500, 1.0))


class Sizes:
    """The counts of many texts, 28 bytes each."""

    def __init__(self) -> None:
        self._flat = array("I")

    def append(self, counts: Iterable[int]) -> None:
        """Add those of one more text."""
        self._flat.extend(counts)

    def __len__(self) -> int:
        return len(self._flat) // len(Counts._fields)

    def __getitem__(self, index: int) -> Counts:
        width = len(Counts._fields)
        return Counts(*self._flat[index * width : (index + 1) * width])

    def __iter__(self) -> Iterator[Counts]:
        return (self[index] for index in range(len(self)))


def count(text: str) -> Counts:
    """Count the characters of `text` by kind."""
    ascii_bytes = text.encode("ascii", "ignore")
    total = len(ascii_bytes)
    letters = total - len(ascii_bytes.translate(None, _LETTERS))
    digits = total - len(ascii_bytes.translate(None, _DIGITS))
    spaces = total - len(ascii_bytes.translate(None, _SPACES))
    wide = len(text) - total
    cjk = len(_CJK.findall(text)) if wide else 0
    punctuation = total - letters - digits - spaces
    return Counts(letters, cjk, digits, punctuation, spaces, wide - cjk)


def prior(model_id: str) -> Weights:
    """Return the weights for a model before anything was counted."""
    return rescaled(_OLD, "claude-3", model_id)


def rescaled(weights: Weights, model_id: str, other_id: str) -> Weights:
    """Return the weights of one model as they would be for another."""
    is_old, becomes_old = (bool(_OLD_TOKENIZER.match(name)) for name in (model_id, other_id))
    if is_old == becomes_old:
        return weights
    factor = 1 / _NEW_FACTOR if becomes_old else _NEW_FACTOR
    unchanged = (Counts._fields.index("cjk"), Counts._fields.index("media"))
    each = tuple(
        weight if kind in unchanged else weight * factor for kind, weight in enumerate(weights.each)
    )
    return Weights(each, weights.fixed)


def tokens(text: str, model_id: str) -> int:
    """Return an estimate of the tokens of `text` for a model, at least 1."""
    return prior(model_id).tokens(count(text))
