"""The classes of documents, by what became of them: names for files and programs, words for people.

Pure, and quick to import: whoever only counts needs nothing else of the results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Class = Literal[
    "succeeded", "truncated", "paused", "refused", "empty", "invalid", "needs_fix", "billing",
    "retryable", "expired", "canceled", "missing", "not_sent",
]  # fmt: skip
# What a screen calls them; files and programs get the names above.
WORDS = {
    "truncated": "cut short",
    "paused": "paused",
    "refused": "refused",
    "empty": "without text",
    "invalid": "invalid",
    "needs_fix": "needs fix",
    "billing": "billing paused",
    "retryable": "failed at the server",
    "expired": "expired",
    "canceled": "canceled",
    "missing": "missing",
    "not_sent": "not sent",
}
# Whose report is on disk, although the last two are not complete.
SAVED: frozenset[Class] = frozenset({"succeeded", "truncated", "paused"})
_PARTLY: frozenset[str] = SAVED - {"succeeded"}


def named(classes: Mapping[str, int]) -> str:
    """Return how many documents are of which class, for people."""
    kinds = sorted(classes.items())
    return ", ".join(f"{count:,} {WORDS.get(kind, kind)}" for kind, count in kinds)


def counted(classes: Mapping[str, int]) -> dict[str, int]:
    """Return how many documents are saved, need attention, are canceled; from their classes.

    People are shown `told`: not all that is saved is whole.
    """
    sums: dict[str, int] = {}
    for name, count in classes.items():
        word = "canceled" if name == "canceled" else "need attention"
        word = "saved" if name in SAVED else word
        sums[word] = sums.get(word, 0) + count
    return {word: sums[word] for word in ("saved", "need attention", "canceled") if word in sums}


def told(classes: Mapping[str, int]) -> list[str]:
    """Return the same for people, each count as a text, with what is saved but not whole."""
    partly = {kind: count for kind, count in classes.items() if kind in _PARTLY}
    more = f" ({named(partly)})" if partly else ""
    return [
        f"{count:,} {word}" + (more if word == "saved" else "")
        for word, count in counted(classes).items()
    ]
