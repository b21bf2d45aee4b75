r"""Make a string that a simple regular expression accepts.

Understands literals, escapes (`\d \w \s` and escaped characters), `.`, classes such as `[A-Z_0-9]`,
groups, alternatives, `? * + {m,n}`, and `^ $` at the ends. Everything else is refused: look-around,
back references, `\b`, negated classes of Unicode properties.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchyard.upstream.simulated.draw import Draw

_WORD = string.ascii_lowercase + string.digits + "_"
_PRINTABLE = string.ascii_letters + string.digits + " _-.,:;!?/+=@#%&()[]{}<>*|~^$'\""
_ESCAPES = {"d": string.digits, "w": _WORD, "s": " ", "n": "\n", "t": "\t", "r": "\r"}
_NEGATED = {"D": string.digits, "W": string.ascii_letters + _WORD, "S": " "}
_OPEN_REPEATS = 3  # how many more than its minimum `*`, `+` and `{m,}` may repeat
_CHARS_MAX = 10_000


class PatternError(ValueError):
    """The pattern is beyond what can be made."""


def make(pattern: str, draw: Draw, *, more: int = 0) -> str:
    """Return a string for `pattern`, open repeats lengthened by `more`.

    Raises:
        PatternError: the pattern holds something that is not understood.
    """
    maker = _Maker(pattern, draw, more)
    text = maker.alternatives()
    if maker.at != len(pattern):
        raise PatternError(pattern)
    return text


class _Maker:
    """Reads the pattern from left to right and writes as it goes."""

    def __init__(self, pattern: str, draw: Draw, more: int) -> None:
        self.pattern = pattern
        self.draw = draw
        self.more = more
        self.at = 0

    def alternatives(self) -> str:
        """Read `a|b|c` up to its end and return one of them."""
        found = [self._sequence()]
        while self._peek() == "|":
            self.at += 1
            found.append(self._sequence())
        return self.draw.pick(found)

    def _sequence(self) -> str:
        parts: list[str] = []
        while (char := self._peek()) and char not in "|)":
            if char == "^" and not parts:
                self.at += 1
                continue
            if char == "$":
                self.at += 1
                if self._peek() not in {"", ")", "|"}:
                    raise PatternError(self.pattern)
                continue
            parts.append(self._repeated())
        return "".join(parts)

    def _repeated(self) -> str:
        start = self.at
        text = self._atom()
        end = self.at
        low, high = self._quantifier()
        after = self.at
        count = low + self.draw.below(high - low + 1)
        parts = [text][:count]
        while len(parts) < count:  # read the atom again, for another choice each time
            self.at = start
            parts.append(self._atom())
            if self.at != end or sum(map(len, parts)) > _CHARS_MAX:
                raise PatternError(self.pattern)
        self.at = after
        return "".join(parts)

    def _quantifier(self) -> tuple[int, int]:
        char = self._peek()
        low, high = 1, 1
        if char and char in "?*+":
            self.at += 1
            low = 1 if char == "+" else 0
            high = 1 if char == "?" else low + _OPEN_REPEATS + self.more
            low += self.more if char != "?" else 0
        elif char == "{":
            end = self.pattern.find("}", self.at)
            first, comma, second = self.pattern[self.at + 1 : end].partition(",")
            if end < 0 or not first.isdigit() or (second and not second.isdigit()):
                raise PatternError(self.pattern)
            low = int(first)
            high = int(second) if second else low + (_OPEN_REPEATS + self.more if comma else 0)
            if not low <= high <= _CHARS_MAX:
                raise PatternError(self.pattern)
            low = min(high, low + self.more)
            self.at = end + 1
        if self._peek() == "?" and (low, high) != (1, 1):
            self.at += 1  # a lazy repeat accepts the same strings
        return low, high

    def _atom(self) -> str:
        char = self._peek()
        self.at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return self.draw.pick(self._class())
        if char == "\\":
            return self.draw.pick(self._escape())
        if char == ".":
            return self.draw.pick(string.ascii_lowercase)
        if not char or char in "*+?{^":
            raise PatternError(self.pattern)
        return char

    def _group(self) -> str:
        if self._peek() == "?":
            if self.pattern[self.at : self.at + 2] != "?:":
                raise PatternError(self.pattern)
            self.at += 2
        text = self.alternatives()
        if self._peek() != ")":
            raise PatternError(self.pattern)
        self.at += 1
        return text

    def _class(self) -> str:
        negated = self._peek() == "^"
        self.at += negated
        members = ""
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._member()
            ahead = self.pattern[self.at : self.at + 2]
            if len(low) == 1 and ahead.startswith("-") and ahead != "-]":
                self.at += 1
                high = self._member()
                if len(high) != 1 or ord(high) - ord(low) not in range(0x10000):
                    raise PatternError(self.pattern)
                low = "".join(map(chr, range(ord(low), min(ord(high), ord(low) + 255) + 1)))
            members += low
        self.at += 1
        if negated:
            members = "".join(char for char in _PRINTABLE if char not in members)
        if not members:
            raise PatternError(self.pattern)
        return members

    def _member(self) -> str:
        char = self._peek()
        self.at += 1
        if not char:
            raise PatternError(self.pattern)
        return self._escape() if char == "\\" else char

    def _escape(self) -> str:
        char = self._peek()
        self.at += 1
        if char in _ESCAPES and char:
            return _ESCAPES[char]
        if char in _NEGATED and char:
            return "".join(each for each in _PRINTABLE if each not in _NEGATED[char])
        if not char or char.isalnum():
            raise PatternError(self.pattern)
        return char

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]
