"""What a run yields for each document: its last outcome, and how to read the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchyard.client.results import classes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.client.results import schema as schemas


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one document.

    `status` is `succeeded`, `truncated`, `paused` (these three have a `path`), `refused`, `empty`,
    `invalid`, `needs_fix`, `billing`, `retryable`, `expired`, `canceled` or `missing`; `reason`
    says why. `path` is None when there is no report, or when the run writes no file for each.
    `tries` is how often it was sent, and `cost_micros` what was charged for all of them in
    micro-dollars, None when that is not known.
    """

    key: str
    status: str
    reason: str | None
    path: Path | None
    cost_micros: int | None
    tries: int
    _answer: Callable[[], str | None] = field(repr=False, compare=False)
    _schema: schemas.Schema | None = field(repr=False, compare=False, default=None)

    def __str__(self) -> str:
        """Return one line for a person: what became of it, and where the report is or why not."""
        return f"{self.key}: {self.status}, {self.path or self.reason or 'no file for each'}"

    @property
    def text(self) -> str | None:
        """Return the report, read from the disk; None when there is none."""
        if self.path is not None:
            return self.path.read_text(encoding="utf-8")
        return self._answer() if self.status in classes.SAVED else None

    @property
    def value(self) -> Any:
        """Return what a structured answer says: an object of the class that `returns` named.

        None when the run has no schema, or the document no valid answer.
        """
        if self._schema is None or self.status != "succeeded":
            return None
        text = self._answer()
        return None if text is None else self._schema.value(text)
