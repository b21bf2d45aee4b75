"""How the findings of a probe look: a line for each point, more below one that differs.

Everything that came from the server is escaped. On a terminal long text is wrapped below itself;
the `curl` lines never are, so that they can be copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from batchyard.cli import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.probe.points import Source
    from batchyard.probe.run import Finding

_ID_CHARS = 7
_INDENT = 4 + _ID_CHARS
_LABEL_CHARS = 10


def show(findings: Sequence[Finding]) -> None:
    """Print the table and the sum."""
    console = Console(highlight=False, markup=False, emoji=False)
    section = None
    for finding in findings:
        if finding.point.section != section:
            section = finding.point.section
            console.print()
            console.print(Text(section, style="bold"))
        _row(console, finding)
    console.print()
    console.print(Text(total(findings)))


def total(findings: Sequence[Finding]) -> str:
    """Return how many points hold, differ, and were not run."""
    counts = {"holds": 0, "differs": 0, "not run": 0}
    for finding in findings:
        counts[finding.outcome] += 1
    parts = [f"{counts['holds']} of {len(findings)} hold"]
    if counts["differs"]:
        soft = sum(f.outcome == "differs" and not f.fails for f in findings)
        word = "differs" if counts["differs"] == 1 else "differ"
        more = f" ({soft} recommended only)" if soft else ""
        parts.append(f"{counts['differs']} {word}{more}")
    if counts["not run"]:
        parts.append(f"{counts['not run']} not run")
    return ", ".join(parts)


def event(finding: Finding) -> dict[str, object]:
    """Return a finding for a program; what is not known of it is left out."""
    point = finding.point
    whole = {
        "id": point.id,
        "section": point.section,
        "title": point.title,
        "source": point.source.value,
        "outcome": finding.outcome.replace(" ", "_"),
        "fails": finding.fails,
        "expected": finding.expected,
        "got": finding.got,
        "request": finding.curl,
        "reason": finding.reason,
    }
    return {key: value for key, value in whole.items() if value is not None}


def _row(console: Console, finding: Finding) -> None:
    mark, style = _mark(finding)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=2, justify="right")
    grid.add_column(width=_ID_CHARS - 1)
    grid.add_column()
    title = Text(render.safe(finding.point.title))
    if finding.outcome == "not run":
        title.stylize("dim")
        title.append(f"  (not run: {_line(finding.reason)})", style="dim")
    elif finding.outcome == "differs" and not finding.fails:
        title.append("  (recommended only)", style="dim")
    grid.add_row(Text(mark, style=style), Text(finding.point.id, style="dim"), title)
    _print(console, grid, finding, title)
    if finding.outcome == "differs":
        _detail(console, "expected", finding.expected, finding.point.source)
        _detail(console, "got", finding.got, None)
        if finding.curl is not None:
            console.print(Text(render.safe(finding.curl), style="dim"), soft_wrap=True)


def _print(console: Console, grid: Table, finding: Finding, title: Text) -> None:
    if console.is_terminal:
        console.print(grid)
        return
    # Not a terminal: one point is one line, however long.
    mark, _ = _mark(finding)
    line = Text.assemble(f"{mark:>2} {finding.point.id:<{_ID_CHARS}}", title)
    console.print(line, soft_wrap=True)


def _detail(console: Console, label: str, value: str | None, source: Source | None) -> None:
    text = Text(_line(value))
    if source is not None:
        text.append(f"  [{source.value}]", style="dim")
    if not console.is_terminal:
        head = " " * _INDENT + f"{label:<{_LABEL_CHARS}}"
        console.print(Text.assemble(head, text), soft_wrap=True)
        return
    grid = Table.grid()
    grid.add_column(width=_LABEL_CHARS)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style="dim"), text)
    console.print(Padding(grid, (0, 0, 0, _INDENT)))


def _line(value: str | None) -> str:
    return render.safe(value or "").replace("\n", "\\n")


def _mark(finding: Finding) -> tuple[str, str]:
    if finding.outcome == "holds":
        return "✓", "green"
    if finding.outcome == "not run":
        return "·", "dim"
    return ("✗", "red") if finding.fails else ("~", "yellow")
