"""What a check can find, and how it is told. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

LIKE_MAX = 20
"""Findings of one rule in one batch that are told one by one; of the others only the number."""


class Rule(StrEnum):
    """What does not hold. Stable names, for programs."""

    LEDGER_MISSING = "ledger-missing"
    LEDGER_FOREIGN = "ledger-foreign"
    LEDGER_DAMAGED = "ledger-damaged"
    LEDGER_LOG = "ledger-log"
    BATCH_ROW = "batch-row"
    BATCH_TIMES = "batch-times"
    BATCH_COUNTS = "batch-counts"
    BATCH_TOKENS = "batch-tokens"
    BATCH_STATE = "batch-state"
    SHARD_ROW = "shard-row"
    SHARD_STATE = "shard-state"
    SHARD_COVER = "shard-cover"
    SHARD_ORPHAN = "shard-orphan"
    CREATE_ROW = "create-row"
    CREATE_BATCH = "create-batch"
    REQUESTS_MISSING = "requests-missing"
    REQUESTS_DAMAGED = "requests-damaged"
    REQUESTS_CHECKSUM = "requests-checksum"
    REQUESTS_ID = "requests-id"
    REQUESTS_PARAMS = "requests-params"
    REQUESTS_COUNT = "requests-count"
    MANIFEST_MISSING = "manifest-missing"
    MANIFEST_DAMAGED = "manifest-damaged"
    MANIFEST_EARLY = "manifest-early"
    EXTENT_NAME = "extent-name"
    EXTENT_SHORT = "extent-short"
    RESULT_DAMAGED = "result-damaged"
    RESULT_CHECKSUM = "result-checksum"
    RESULT_TWICE = "result-twice"
    RESULT_UNKNOWN = "result-unknown"
    RESULT_MISSING = "result-missing"
    RESULT_COUNTS = "result-counts"
    RESULT_TOKENS = "result-tokens"
    UNREADABLE = "unreadable"
    UNFINISHED = "unfinished"
    LEFTOVER = "leftover"
    SET_ASIDE = "set-aside"
    STRANGER = "stranger"
    MODE = "mode"


NOTES = frozenset({Rule.UNFINISHED, Rule.LEFTOVER, Rule.SET_ASIDE, Rule.STRANGER, Rule.MODE})
"""What a crash leaves and the next start deals with, and what an operator may want to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that does not hold, and where."""

    rule: Rule
    text: str
    batch: str | None = None
    shard: int | None = None
    segment: str | None = None
    """The name of a file, below `segments` where it is a segment."""
    offset: int | None = None
    """Bytes from the start of the file."""

    @property
    def level(self) -> Literal["error", "note"]:
        """Return whether a promise is broken."""
        return "note" if self.rule in NOTES else "error"

    @property
    def where(self) -> str:
        """Return the place in words; empty when it is the directory as a whole."""
        # The name of a segment names its batch.
        named = self.batch is not None and (self.segment is None or self.batch not in self.segment)
        parts = [str(self.batch)] if named else []
        if self.shard is not None:
            parts.append(f"shard {self.shard}")
        if self.segment is not None:
            parts.append(self.segment)
        if self.offset is not None:
            parts.append(f"at {self.offset}")
        return " ".join(parts)


@dataclass(slots=True)
class Summary:
    """How much was looked at, and what came of it."""

    batches: int = 0
    shards: int = 0
    """Of batches that have not ended: the others have no shards any more."""
    requests: int = 0
    results: int = 0
    """Result lines that a row or a manifest names."""
    errors: int = 0
    notes: int = 0
    lost: list[str] = field(default_factory=list)
    """Batches that cannot end: of a shard that is not done it cannot be told whose it is."""
    redone: list[str] = field(default_factory=list)
    """Other batches that have not ended, and of which a result is damaged: it is made again."""


class Reporter:
    """Counts findings and tells them, but not thousands that are alike."""

    def __init__(self, tell: Callable[[Finding], None]) -> None:
        self.summary = Summary()
        self._tell = tell
        self._alike: Counter[tuple[str | None, Rule]] = Counter()

    def add(
        self,
        rule: Rule,
        text: str,
        *,
        batch: str | None = None,
        shard: int | None = None,
        segment: str | None = None,
        offset: int | None = None,
    ) -> None:
        """Take note of a finding."""
        if rule in NOTES:
            self.summary.notes += 1
        else:
            self.summary.errors += 1
        self._alike[batch, rule] += 1
        if self._alike[batch, rule] <= LIKE_MAX:
            self._tell(
                Finding(
                    rule=rule, text=text, batch=batch, shard=shard, segment=segment, offset=offset
                )
            )

    def close(self, batch: str | None = None) -> None:
        """Tell how many were left out of a batch, or of what belongs to none."""
        for key in [key for key in self._alike if key[0] == batch]:
            left = self._alike.pop(key) - LIKE_MAX
            if left > 0:
                self._tell(Finding(rule=key[1], text=f"and {left} more of these", batch=batch))
