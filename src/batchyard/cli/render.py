"""The only place that prints. Everything that others wrote is escaped before it is shown.

Text goes to standard output, complaints to standard error. The live panel is in `panel.py`, which
draws but does not print by itself either: it is handed the console here.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

from batchyard import price, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from batchyard.client.collect import Outcome
    from batchyard.client.journal import Config, Shard
    from batchyard.client.plan import Plan, Tokens
    from batchyard.client.receipt import Receipt
    from batchyard.client.updates import Update

LABEL_CHARS = 16
_LINE_INTERVAL_S = 1.0
_GROUPS_SHOWN = 8
_NAMED = 4
_REQUEST_ID = re.compile(r" \(request [^)]*\)")
CLASS_WORDS = {
    "truncated": "cut short",
    "paused": "paused",
    "refused": "refused",
    "empty": "without text",
    "needs_fix": "needs fix",
    "billing": "billing paused",
    "retryable": "failed at the server",
    "expired": "expired",
    "canceled": "canceled",
    "missing": "missing",
}


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
    """Print a problem on standard error."""
    if text:
        print(f"batchyard: {safe(text)}", file=sys.stderr, flush=True)  # noqa: T201


def aside(text: str) -> None:
    """Print something for a person on standard error that is no problem."""
    print(safe(text), file=sys.stderr, flush=True)  # noqa: T201


def emit(event: Mapping[str, object]) -> None:
    """Print one JSON line on standard output."""
    print(wire.encode(event).decode(), flush=True)  # noqa: T201


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
    """Print labelled lines in two columns; a line of a value may not be longer than fits."""
    for label, value in rows:
        say(f"{label:<{LABEL_CHARS}}{value}")


def plan_rows(name: str, plan: Plan, config: Config, *, is_simulated: bool) -> None:
    """Print what would be sent and what it would cost."""
    from batchyard.client.plan import closest_model  # noqa: PLC0415 - the run, which is there

    tokens, settings = plan.tokens, plan.settings
    shards = _count(len(plan.shards), "shard")
    rows = [
        (f"plan {name}", f"{_count(plan.documents, 'document')}, {shards}, {_bytes(plan.size)}"),
        ("model", f"{settings.model}, at most {settings.max_tokens:,} output tokens each"),
        ("input tokens", f"{_tokens(tokens.input)} ±{_spread()} % (estimate)"),
        ("output tokens", _output_tokens(tokens)),
    ]
    if len(f"plan {name}") >= LABEL_CHARS:
        rows[0:1] = [("plan", name), ("documents", rows[0][1])]
    closest = closest_model(settings.model)
    if closest:
        rows.append(("warning", f"{settings.model} is not a known model; the closest is {closest}"))
    if plan.empty:
        named = ", ".join(plan.empty[:_NAMED]) + (", …" if len(plan.empty) > _NAMED else "")
        text = f"{_count(len(plan.empty), 'document')} without any text ({named}), sent as they are"
        rows.append(("empty", text))
    if plan.skipped:
        rows.append(("skipped", _skipped(plan.skipped)))
    table([*rows, *_price_rows(plan, config, is_simulated=is_simulated)])
    if config.local:
        table([("server", f"local, upstream {', '.join(config.upstreams)}")])
    else:
        table([("server", config.base_url or "")])


def _skipped(by_ending: Mapping[str, int]) -> str:
    from batchyard.client.documents import ROW_SUFFIXES  # noqa: PLC0415 - the run, which is there

    named = ", ".join(f"{ending} {count:,}" for ending, count in list(by_ending.items())[:_NAMED])
    more = ", …" if len(by_ending) > _NAMED else ""
    total = _count(sum(by_ending.values()), "file")
    how = " or name a file to take its rows" if ROW_SUFFIXES & by_ending.keys() else ""
    return f"{total} ({named}{more}): a folder gives its text files; use a glob for others{how}"


def _price_rows(plan: Plan, config: Config, *, is_simulated: bool) -> list[tuple[str, str]]:
    from batchyard.client.local import HOSTED, is_hosted  # noqa: PLC0415 - the run, which is there

    batch, synchronous = plan.batch, plan.synchronous
    if batch is None or synchronous is None:
        return [("price", f"unknown for {plan.settings.model}")]

    def three(cost: object) -> str:
        return " · ".join(
            f"{price.dollars(getattr(cost, kind))} {kind}" for kind in ("low", "likely", "ceiling")
        )

    if config.local and not is_simulated:
        rows = [("price", three(synchronous))]
        if is_hosted(config.upstreams):
            rows.append(("as a batch", f"{three(batch)}: without --local, at the hosted API"))
        return rows
    sure = config.local or urlsplit(config.base_url or "").hostname == HOSTED
    doubt = "" if sure else "   if this server gives the half price"
    rows = [("price, batch", three(batch) + doubt), ("synchronous", three(synchronous))]
    if is_simulated:
        rows.append(("charged", "nothing: the model is simulated, these are list prices"))
    return rows


def ending(name: str, receipt: Receipt, failures: Iterable[Outcome], *, errors: str) -> None:
    """Print how a run ended, except for its money line, which the caller prints last."""
    from batchyard.client.collect import SAVED  # noqa: PLC0415 - the run, which ends here

    counts = {
        kind: f"{count:,} {CLASS_WORDS.get(kind, kind)}"
        for kind, count in receipt.classes.items()
        if kind != "succeeded"
    }
    partly = [text for kind, text in counts.items() if kind in SAVED]
    others = [text for kind, text in counts.items() if kind not in SAVED]
    saved = f"{receipt.saved:,} saved" + (f" ({', '.join(partly)})" if partly else "")
    say(f"done {name}   {' · '.join([saved, *others])}")
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in failures:
        cause = re.sub(r"\d+", "#", _REQUEST_ID.sub("", outcome.reason or ""))
        if "did not validate" in cause:
            cause = "did not validate"
        groups.setdefault((outcome.class_, cause), []).append(outcome)
    ranked = sorted(groups.values(), key=len, reverse=True)
    for group in ranked[:_GROUPS_SHOWN]:
        one = group[0]
        word = CLASS_WORDS.get(one.class_, one.class_)
        say(f"  {len(group):,} {word}: {one.reason or one.type}")
        more = f" and {len(group) - 1:,} more" if len(group) > 1 else ""
        say(f"    {one.key}{more}")
    if len(ranked) > _GROUPS_SHOWN:
        say(f"  … and {len(ranked) - _GROUPS_SHOWN} more causes")
    if ranked:
        say(f"  all of them: {errors}")


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
            if value not in {None, ""}:
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
    name: str, shards: Sequence[Shard], *, saved: Callable[[int], int], as_json: bool
) -> Screen:
    """Return the screen that fits where the output goes.

    Args:
        name: of the run.
        shards: as the journal has them.
        saved: returns how many reports of a collected shard were written.
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
            return f"{where}sending {_count(update.total, 'request')}"
        case "created":
            return f"{where}{update.batch} created{more}"
        case "progress":
            return f"{where}{update.done:,} of {update.total:,} done{more}"
        case "ended":
            return f"{where}ended, {update.done:,} of {update.total:,} have a result"
        case "saving":
            return None
        case "collected":
            return f"{where}{update.done:,} of {update.total:,} reports saved{more}"
        case "withdrawn":
            return f"{where}canceled before it was sent"
        case "waiting" | "notice":
            return f"{where}{update.text}"


def _spread() -> int:
    from batchyard.client import estimate  # noqa: PLC0415 - only the plan screen needs it

    return estimate.SPREAD_PERCENT


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _output_tokens(tokens: Tokens) -> str:
    low, likely = _tokens(tokens.output_low), _tokens(tokens.output_likely)
    return f"{low} low · {likely} likely (a guess) · {_tokens(tokens.output_ceiling)} ceiling"


def _tokens(number: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number} bytes"
