"""The only place that prints. Everything that others wrote is escaped before it is shown.

Text goes to standard output, complaints to standard error. The live panel is in `panel.py`, which
draws but does not print by itself either: it is handed the console here.
"""

from __future__ import annotations

import io
import itertools
import re
import shlex
import shutil
import sys
import textwrap
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from batchyard import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from batchyard.client.planning.plan import Plan
    from batchyard.client.planning.preview import Prompt
    from batchyard.client.running.journal import Shard
    from batchyard.client.running.updates import Update

LABEL_CHARS = 16
_LINE_INTERVAL_S = 1.0
_PROMPT_LINES = 6
_REQUEST_ID = re.compile(r" \(request [^)]*\)")


def safe(text: str) -> str:
    """Return `text` with everything escaped that a terminal would act on; line ends stay."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _ACTS else _escaped(char)
        for char in text
    )


_ACTS = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def say(text: str = "") -> None:
    """Print lines for a person on standard output."""
    print(safe(text), flush=True)  # noqa: T201 - this is the place


def complain(text: str) -> None:
    """Print a problem on standard error; on a terminal no word is cut at its edge."""
    if text:
        _to_error(f"batchyard: {text}", "  ")


def aside(text: str) -> None:
    """Print something for a person on standard error that is no problem."""
    _to_error(text, "")


def _to_error(text: str, indent: str) -> None:
    lines = safe(text).split("\n")
    if sys.stderr.isatty():
        lines = [part for line in lines for part in _wrapped(line, indent)]
    print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201


def _wrapped(line: str, indent: str) -> list[str]:
    """Return a line as lines of the terminal's width; a path or command is not broken."""
    return textwrap.wrap(
        line, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    ) or [""]  # fmt: skip


def emit(event: Mapping[str, object]) -> None:
    """Print one JSON line on standard output."""
    print(wire.encode(event).decode(), flush=True)  # noqa: T201


def ready(event: Mapping[str, object]) -> None:
    """Print where a server answers: as a JSON line, and on a terminal also for a person."""
    emit(event)
    if is_terminal():
        aside(f"ready: base_url is {event['url']}; Ctrl-C ends it")


def notice(text: str, *, as_json: bool) -> None:
    """Print what people should know: as a line, or as an event."""
    if as_json:
        emit({"event": "notice", "text": text})
    else:
        say(text)


def stream() -> BinaryIO:
    """Return standard output for lines of bytes: as they are, but escaped on a terminal."""
    return _Escaping() if sys.stdout.isatty() else sys.stdout.buffer


class _Escaping(io.RawIOBase, BinaryIO):
    """Takes whole lines of UTF-8 and shows them on a terminal."""

    def write(self, data: Any) -> int:
        text = bytes(data).decode("utf-8", "replace").replace("\r\n", "\n")
        print(safe(text), end="", flush=True)  # noqa: T201
        return len(data)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def can_ask() -> bool:
    """Whether a person is at the other end."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: str) -> bool:
    """Ask a yes-or-no question; anything but yes is no."""
    try:
        return input(f"{safe(question)} [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False
    except KeyboardInterrupt:
        say()  # or the shell's prompt would follow the question on its line
        raise


def program() -> str:
    """Return how a person runs this program again: by its name, or by where it lies."""
    if shutil.which("batchyard"):
        return "batchyard"
    running = Path(sys.argv[0])
    if running.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m batchyard"
    return shlex.quote(str(running))


def table(rows: Iterable[tuple[str, str]]) -> None:
    """Print labelled lines in two columns; on a terminal the second is as wide as fits."""
    width = max(40, columns() - LABEL_CHARS)
    for label, value in rows:
        lines = textwrap.wrap(safe(value), width, break_on_hyphens=False) or [""]
        if not sys.stdout.isatty():
            lines = [value]
        for number, line in enumerate(lines):
            say(f"{'' if number else label:<{LABEL_CHARS}}{line}")


def columns() -> int:
    """Return the width of the terminal."""
    return shutil.get_terminal_size().columns


def prompts(plan: Plan, *, whole: bool = False) -> None:
    """Print some rendered prompts, the first lines of each or all of them."""
    from batchyard.client.planning import preview  # noqa: PLC0415 - the run, which is there

    system, first = "", None
    for prompt in preview.prompts(plan):
        if prompt.system and prompt.system != system:
            system = prompt.system
            say("system prompt" if plan.shared.has_same_system else f"system prompt, {prompt.key}")
            _text(system, whole=whole)
        note = f" ({prompt.note})" if prompt.note else ""
        say(f"prompt of {prompt.key}{note}")
        _text(prompt.text, whole=whole, first=first)
        first = first or prompt


def _text(text: str, *, whole: bool, first: Prompt | None = None) -> None:
    """Print a text; of the first lines of a cut one, those that differ from another prompt's."""
    lines = text.splitlines() or [""]
    if first is not None and not whole:
        same = zip(lines, first.text.splitlines(), strict=False)
        skipped = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], same))
        if 1 < skipped < len(lines):
            say(f"  | … {count(skipped, 'line')} as in the first")
            lines = lines[skipped:]
    shown = lines if whole else [_cut(line) for line in lines[:_PROMPT_LINES]]
    for line in shown:
        say(f"  | {line}")
    if len(lines) > len(shown):
        say(f"  | … and {count(len(lines) - len(shown), 'more line')}")


def _cut(line: str) -> str:
    """Return as much of a line as fits behind its mark; some characters take two columns."""
    room, used = columns() - len("  | "), 0
    shown = safe(line[: columns() + 1])  # escapes make it longer
    for at, char in enumerate(shown):
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > room:
            return shown[: max(0, at - 1)] + "…"
    return shown


def fitted(line: str) -> None:
    """Print a line; on a terminal that is narrower, its further lines are indented."""
    if not sys.stdout.isatty():
        say(line)
        return
    indent = " " * (len(line) - len(line.lstrip(" ")))
    for each in textwrap.wrap(
        safe(line), columns(), subsequent_indent=indent + "  ", break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    ):  # fmt: skip
        say(each)


class Screen(Protocol):
    """Shows a run under way. `update` may be called from any thread."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""

    def update(self, update: Update) -> None:
        """Take note of something."""

    def refresh(self) -> None:
        """Show it."""

    def note(self, text: str) -> None:
        """Show a line of text that stays."""

    def abandon(self) -> None:
        """Give the terminal back at once; may be called from a signal handler."""


class Lines:
    """Plain lines, one when something changed."""

    def __init__(self) -> None:
        self._last: dict[int | None, tuple[float, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, update: Update) -> None:
        """Print the update unless it says nothing new, or follows another too soon."""
        text = _line(update)
        if text is None:
            return
        printed_s, last = self._last.get(update.shard, (0.0, ""))
        now = time.monotonic()
        is_soon = update.kind == "progress" and now - printed_s < _LINE_INTERVAL_S
        # The id of a refused call is new each time; the reason is not.
        said = _REQUEST_ID.sub("", text)
        if said != last and not is_soon:
            self._last[update.shard] = (now, said)
            say(text)

    def refresh(self) -> None:
        """Nothing to do: lines are printed as they come."""

    def note(self, text: str) -> None:
        """Print the text."""
        say(text)

    def abandon(self) -> None:
        """Nothing to do: the terminal was left as it is."""


class Events:
    """JSON lines, for programs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, update: Update) -> None:
        """Print the update as an object."""
        if update.kind == "saving":
            return
        fields: dict[str, object] = {"event": update.kind}
        for name in ("shard", "batch", "done", "total", "text"):
            value = getattr(update, name)
            counts_nothing = name in {"done", "total"} and not update.total
            if value not in {None, ""} and not counts_nothing:
                fields[name] = value
        emit(fields)

    def refresh(self) -> None:
        """Nothing to do: events are printed as they come."""

    def note(self, text: str) -> None:
        """Print the text as an event."""
        emit({"event": "notice", "text": text})

    def abandon(self) -> None:
        """Nothing to do: the terminal was left as it is."""


def screen(
    name: str, shards: Sequence[Shard], *, saved: Callable[[], tuple[int, int]], as_json: bool
) -> Screen:
    """Return the screen that fits where the output goes.

    Args:
        name: of the run.
        shards: as the journal has them.
        saved: returns how many documents have a report, of how many; called at every drawing.
        as_json: whether a program reads.
    """
    if as_json:
        return Events()
    if not sys.stdout.isatty():
        return Lines()
    from batchyard.cli.panel import Panel  # noqa: PLC0415 - rich, only on a terminal

    return Panel(name, shards, saved)


def _line(update: Update) -> str | None:
    where = "" if update.shard is None else f"shard {update.shard}: "
    more = f" ({update.text})" if update.text else ""
    match update.kind:
        case "sending":
            return f"{where}sending {count(update.total, 'request')}"
        case "created":
            return f"{where}{update.batch} created{more}"
        case "progress":
            return f"{where}{update.done:,} of {update.total:,} done{more}"
        case "ended":
            return f"{where}ended, {update.done:,} of {update.total:,} have a result"
        case "saving" | "planned" | "replaced":
            return None
        case "collected":
            return f"{where}{update.done:,} of {update.total:,} reports saved{more}"
        case "withdrawn":
            return f"{where}canceled before it was sent"
        case "waiting" | "notice":
            return f"{where}{update.text}"


def count(number: int, noun: str) -> str:
    """Return a number of things: `1 document`, `2,000 documents`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
