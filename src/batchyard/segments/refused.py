"""What a store has refused of which batch a moment ago, and of which it took a trial since."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batchyard import limits
from batchyard.errors import SegmentRefused

if TYPE_CHECKING:
    from collections.abc import Callable

_BATCHES_MAX = 10_000


class Refusal(NamedTuple):
    """What was refused of a batch when it was last written."""

    until_s: float
    """Until when it is taken for refused; monotonic."""
    size: int
    """Bytes of it."""
    why: str


class Refused:
    """The batches of which something was refused. Beyond 10,000 all are forgotten: asked again."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        """Know of none yet; `now_s` is a clock that only goes forward, in seconds."""
        self._now_s = now_s
        self._refusals: dict[str, Refusal] = {}
        self._tried: dict[str, float] = {}
        """By batch: until when it is taken for writable, as a trial was."""

    def __contains__(self, batch_id: object) -> bool:
        """Whether anything of a batch was refused, and nothing of it taken since."""
        return batch_id in self._refusals

    def of(self, batch_id: str) -> Refusal | None:
        """Return what was refused of a batch, if it may be tried again.

        Raises:
            SegmentRefused: that was a moment ago.
        """
        refusal = self._refusals.get(batch_id)
        if refusal is not None and self._now_s() < refusal.until_s:
            raise SegmentRefused(refusal.why)
        return refusal

    def note(self, batch_id: str, size: int, why: str) -> None:
        """Take it for a minute that `size` bytes of a batch are refused."""
        if len(self._refusals) >= _BATCHES_MAX:
            self._refusals.clear()
        self._refusals[batch_id] = Refusal(self._soon_s(), size, why)
        self._tried.pop(batch_id, None)

    def clear(self, batch_id: str) -> None:
        """Forget what was refused of a batch: it takes writes."""
        self._refusals.pop(batch_id, None)

    def is_tried(self, batch_id: str) -> bool:
        """Whether a trial of a batch was taken within the last minute."""
        return self._now_s() < self._tried.get(batch_id, 0.0)

    def tried(self, batch_id: str) -> None:
        """Take a batch for writable for a minute, as a trial was taken."""
        self.clear(batch_id)
        if len(self._tried) >= _BATCHES_MAX:
            self._tried.clear()
        self._tried[batch_id] = self._soon_s()

    def _soon_s(self) -> float:
        return self._now_s() + limits.REFUSED_WAIT_S
