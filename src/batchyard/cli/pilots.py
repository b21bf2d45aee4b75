"""Show what a pilot gave, and find out whether the rest may follow."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Literal

from batchyard import price
from batchyard.cli import render
from batchyard.client.problems import NeedsAttention
from batchyard.client.results import classes, formats
from batchyard.client.running import pilot

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.client.running.folder import Files
    from batchyard.client.running.pilot import Findings
    from batchyard.client.running.session import Session

Approval = Literal["ask", "if_good", "given"]
"""`ask` a person; take a pilot without many failures for a yes; or it was said already."""

_ANSWER_CHARS = 200
_BAR_CHARS = 30


def show(out: Path, session: Session, approval: Approval, *, as_json: bool) -> None:
    """Print what a pilot showed; return when the rest may be sent.

    Raises:
        NeedsAttention: it may not, or nobody can say so.
    """
    found = pilot.findings(session.files, session.state)
    if as_json:
        _emit(found)
    else:
        _print(out, found, session.files)
    go_on = f"`{render.program()} attach {shlex.quote(str(out))} --approve` sends the rest"
    if approval == "given":
        return
    if approval == "if_good":
        if found.is_good:
            return
        raise NeedsAttention(
            f"{found.failed:,} of {found.documents:,} documents of the pilot failed, more than "
            f"{pilot.FAILURES_PERCENT_MAX} %; the rest was not sent. {go_on}"
        )
    if as_json or not render.can_ask():
        raise NeedsAttention(f"the rest was not sent: there is nobody to ask. {go_on}")
    if not render.ask(f"send the other {found.left:,} requests?"):
        raise NeedsAttention(f"the rest was not sent. {go_on}")


def _emit(found: Findings) -> None:
    render.emit(
        {
            "event": "pilot",
            "documents": found.documents,
            "left": found.left,
            "classes": dict(found.classes),
            "output_tokens": list(found.lengths),
            "paid_micros": found.paid_micros,
            "rest_micros": found.rest_micros,
            "simulated": found.is_simulated,
        }
    )


def _print(out: Path, found: Findings, files: Files) -> None:
    valid = found.documents - found.failed
    rows = [
        (
            f"pilot {out.name}"[: render.LABEL_CHARS - 1],
            f"{render.count(found.documents, 'document')}: {classes.named(found.classes)}",
        ),
        ("whole answers", f"{valid:,} of {found.documents:,}"),
    ]
    most = max((count for _, count in found.histogram()), default=1)
    for number, (bound, count) in enumerate(found.histogram()):
        bar = "#" * max(1, count * _BAR_CHARS // most)
        rows.append(("" if number else "output tokens", f"{bound:>11}  {bar} {count:,}"))
    rest = "unknown" if found.rest_micros is None else price.dollars(found.rest_micros)
    paid = "unknown" if found.paid_micros is None else price.dollars(found.paid_micros)
    cost = f"{paid} for the pilot, {rest} likely for the other {found.left:,}"
    if found.is_simulated:
        cost = f"simulated, nothing is charged; at list prices in batches: {cost}"
    rows.append(("price", cost))
    render.table(rows)
    for last in found.answers:
        cut = " ".join((formats.answer(files, last.shard, last.outcome) or "").split())
        more = "…" if len(cut) > _ANSWER_CHARS else ""
        render.table([("answer", f"{last.outcome.key}: {cut[:_ANSWER_CHARS]}{more}")])
