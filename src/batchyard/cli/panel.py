"""The live panel of a terminal: one line for each shard, bounded to the screen.

Draws what it was last told; knows nothing of where that comes from.
"""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchyard.cli import render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchyard.client.running.journal import Shard
    from batchyard.client.running.updates import Update

_WORDS = {
    "planned": "waiting",
    "sending": "sending",
    "created": "at the server",
    "progress": "at the server",
    "ended": "ended",
    "saving": "saving",
    "collected": "collected",
    "withdrawn": "canceled",
    "waiting": "retrying",
}
_STYLES = {"collected": "green", "waiting": "yellow", "withdrawn": "yellow"}
_RATE_WINDOW_S = 10.0
_REFRESH_PER_S = 8
_SHOW_CURSOR = b"\x1b[?25h\n"
_RESERVED_ROWS = 5  # header, note, summary, and the prompt below
_ROWS_MAX = 10  # what stands above, such as the plan, stays on the screen


@dataclass(slots=True)
class _Row:
    """What is known of a shard. Times are monotonic seconds."""

    index: int
    total: int
    kind: str = "planned"
    done: int = 0
    saved: int = 0
    text: str = ""
    since_s: float | None = None
    until_s: float | None = None
    due_s: float | None = None
    samples: list[tuple[float, int]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.kind in {"collected", "withdrawn"}


class Panel:
    """A screen for people at a terminal."""

    def __init__(
        self, name: str, shards: Sequence[Shard], saved: Callable[[], tuple[int, int]]
    ) -> None:
        """Prepare to draw.

        Args:
            name: of the run.
            shards: as the journal has them.
            saved: returns how many documents of collected shards have a report, each once however
                often it was sent, and how many documents there are.
        """
        self._name = name
        self._saved = saved
        self._rows = {
            shard.index: _first_row(shard) for shard in shards if shard.phase != "replaced"
        }
        self._lock = threading.Lock()
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            get_renderable=self._draw,
            vertical_overflow="crop",
        )
        self._drawn_s = 0.0
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self._restore = _without_echo()
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.refresh()
        self._live.stop()
        self._restore()

    def abandon(self) -> None:
        """Give the terminal back at once; the panel is left as it was drawn last.

        Takes no lock, because the thread that a signal interrupts may hold it.
        """
        with contextlib.suppress(OSError, termios.error):
            self._restore()
            os.write(self._console.file.fileno(), _SHOW_CURSOR)

    def update(self, update: Update) -> None:
        """Take note of something; it is drawn by the next refresh."""
        now = time.monotonic()
        if update.shard is None or update.kind == "notice":
            self.note(update.text)
            return
        with self._lock:
            if update.kind == "replaced":
                self._rows.pop(update.shard, None)
                return
            row = self._rows.setdefault(update.shard, _Row(update.shard, update.total))
            row.kind, row.text = update.kind, render.safe(update.text)
            row.due_s = None if update.retry_in_s is None else now + update.retry_in_s
            if update.kind in {"progress", "ended"}:
                row.done = update.done
            elif update.kind in {"saving", "collected"}:
                row.done, row.saved = row.total, update.done
            if row.since_s is None and update.kind not in {"withdrawn", "planned"}:
                row.since_s = now
            if update.kind == "progress":
                row.samples.append((now, update.done))
                while row.samples[0][0] < now - _RATE_WINDOW_S and len(row.samples) > 2:
                    row.samples.pop(0)
            if row.is_over:
                row.until_s = now

    def refresh(self) -> None:
        """Draw, but not more often than an eye can follow."""
        now = time.monotonic()
        if now - self._drawn_s >= 1 / _REFRESH_PER_S:
            self._drawn_s = now
            self._live.refresh()

    def note(self, text: str) -> None:
        """Print a line that stays above the panel."""
        self._console.print(Text(render.safe(text)))

    def _draw(self) -> RenderableType:
        with self._lock:
            rows = list(self._rows.values())
            parts: list[RenderableType] = [self._head(rows)]
            shown, hidden = self._choose(rows)
            parts.append(self._table(shown))
            if hidden:
                over = sum(row.is_over for row in hidden)
                text = f"… {render.count(len(hidden), 'more shard')}, {over} of them collected"
                parts.append(Text(text, style="dim"))
            return Group(*parts)

    def _head(self, rows: Sequence[_Row]) -> Text:
        done, total = sum(row.done for row in rows), sum(row.total for row in rows)
        saved, documents = self._saved()
        saved += sum(row.saved for row in rows if row.kind == "saving")
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(f"{saved:,} of {documents:,} saved, {done:,} of {total:,} requests done   ")
        head.append(render.safe(self._name), style="bold")  # after the counts: it may be long
        if not all(row.is_over for row in rows):
            head.append("   Ctrl-C leaves, nothing is lost", style="dim")
        return head

    def _choose(self, rows: Sequence[_Row]) -> tuple[list[_Row], list[_Row]]:
        """Return the rows that fit, those under way first, and the others."""
        room = min(_ROWS_MAX, max(1, self._console.height - _RESERVED_ROWS))
        if len(rows) <= room:
            return list(rows), []
        rank = {"planned": 1, "collected": 2, "withdrawn": 2}
        order = sorted(rows, key=lambda row: (rank.get(row.kind, 0), row.index))
        return sorted(order[:room], key=lambda row: row.index), order[room:]

    def _table(self, rows: Sequence[_Row]) -> Table:
        now = time.monotonic()
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        for row in rows:
            grid.add_row(
                Text(f"shard {row.index}  {_WORDS[row.kind]}", style=_STYLES.get(row.kind, "")),
                ProgressBar(total=row.total, completed=row.done, width=self._bar_chars()),
                Text(f"{row.done:,}/{row.total:,}"),
                Text(_details(row, now), style="dim"),
            )
        return grid

    def _bar_chars(self) -> int:
        return max(8, min(40, self._console.width // 6))


def _first_row(shard: Shard) -> _Row:
    row = _Row(shard.index, shard.requests)
    if shard.is_settled:
        row.kind, row.done = "collected", row.total
    return row


def _without_echo() -> Callable[[], None]:
    """Stop the terminal from writing `^C` into the panel; return what undoes it."""
    try:
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
    except (OSError, ValueError, termios.error):
        return lambda: None
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSANOW, quiet)
    return lambda: termios.tcsetattr(fd, termios.TCSANOW, before)


def _details(row: _Row, now: float) -> str:
    parts = []  # what matters first: a narrow terminal cuts the rest
    rate = _rate(row.samples)
    if row.since_s is not None:
        parts.append(_duration((row.until_s or now) - row.since_s))
    if row.kind == "progress":
        parts.append(_left(row, rate))
    if rate and not row.is_over:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
    if row.due_s is not None and row.due_s - now >= 1:
        parts.append(f"next look in {row.due_s - now:.0f} s")
    if row.kind == "saving":
        parts.append(f"{row.saved:,} written")
    if row.text:
        parts.append(row.text)
    return "  ".join(filter(None, parts))


def _left(row: _Row, rate: float) -> str:
    """Return how long it takes if it goes on as it was seen to, empty when nothing was seen."""
    if not rate or row.done >= row.total:
        return ""
    return f"about {_duration((row.total - row.done) / rate)} left"


def _rate(samples: Sequence[tuple[float, int]]) -> float:
    if len(samples) < 2:
        return 0.0
    (start_s, before), (end_s, after) = samples[0], samples[-1]
    return (after - before) / (end_s - start_s) if end_s > start_s else 0.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
