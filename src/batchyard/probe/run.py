"""Ask all points of one server, in an order that makes as little as possible there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from batchyard.errors import BatchyardError, Unauthenticated
from batchyard.probe import changing, check, conventions, creating, reading, results, running
from batchyard.probe.batches import Batches
from batchyard.probe.check import Differs, NotRun
from batchyard.probe.http import KEY_NAME, NoAnswer, curl
from batchyard.probe.points import Need, Source
from batchyard.probe.session import BATCHES, new_head, old_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.probe.points import Point
    from batchyard.probe.session import Session

SECTIONS = (
    conventions.CREDENTIALS,
    conventions.HEADERS,
    conventions.ERRORS,
    creating.REFUSALS,
    creating.CREATE,
    reading.OBJECT,
    reading.RETRIEVE,
    reading.LIST,
    changing.CANCEL,
    changing.DELETE,
    results.CALL,
    results.BYTES,
    results.LINES,
    running.VALIDATION,
    running.LIFECYCLE,
    running.RATES,
)
POINTS = tuple(point for section in SECTIONS for point in section.points)

_SILENT_MAX = 5
_REMOVE_ATTEMPTS = 20
_REMOVE_PAUSE_S = 0.5
_SHORT_KEY_CHARS = 8


class Unreachable(BatchyardError):
    """The server cannot be reached."""


Outcome = Literal["holds", "differs", "not run"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one point."""

    point: Point
    outcome: Outcome
    expected: str | None = None
    got: str | None = None
    curl: str | None = None
    """A command line that shows the difference."""
    reason: str | None = None
    """Why the point was not run."""

    @property
    def fails(self) -> bool:
        """Whether the server breaks the contract here."""
        return self.outcome == "differs" and self.point.source is not Source.RECOMMENDED


def greet(session: Session) -> None:
    """Find out whether somebody is there and takes the key, in either form.

    Raises:
        Unreachable: no HTTP server answers.
        Unauthenticated: the key is refused in both forms.
    """
    try:
        answer = None
        for head in (old_head(session.key), new_head(session.key)):
            answer = session.send(session.request("GET", f"{BATCHES}?limit=1", head=head))
            if answer.status not in {401, 403}:
                session.head = head
                return
    except (NoAnswer, NotRun) as error:
        raise Unreachable(f"{session.target.base} cannot be reached: {error}") from None
    assert answer is not None
    raise Unauthenticated(f"the key in ANTHROPIC_API_KEY is refused: {check.answer(answer)}")


def ask(
    session: Session, *, may_create: bool, wait_s: float, points: Sequence[Point] = POINTS
) -> list[Finding]:
    """Ask the points; return the findings in their order.

    Args:
        session: with the server, which has been greeted.
        may_create: whether batches may be made; points that need them are not run otherwise.
        wait_s: seconds to wait for the end of the batches.
        points: which ones, in any order.
    """
    found: dict[str, Finding] = {}
    silent = 0

    def run(need: Need) -> None:
        nonlocal silent
        for point in points:
            if point.need is not need:
                continue
            if silent >= _SILENT_MAX:
                found[point.id] = Finding(point, "not run", reason="the server stopped answering")
                continue
            finding, is_silent = _ask(session, point)
            silent = silent + 1 if is_silent else 0
            found[point.id] = finding

    if may_create:
        try:
            session.batches = Batches(session)
        except NotRun as error:
            session.say(f"no batches: {error}")
    run(Need.NOTHING)
    run(Need.BATCHES)
    if session.batches is not None and silent < _SILENT_MAX:
        session.batches.wait(wait_s)
    run(Need.END)
    return [found[point.id] for point in points]


def _ask(session: Session, point: Point) -> tuple[Finding, bool]:
    """Return the finding, and whether the server kept silent."""
    if point.need is not Need.NOTHING and session.batches is None:
        return Finding(point, "not run", reason="needs --create"), False
    try:
        point.ask(session)
    except NotRun as error:
        return Finding(point, "not run", reason=_redacted(session, str(error))), False
    except NoAnswer as error:
        shows = curl(session.target, error.request, session.key)
        got = _redacted(session, error.reason)
        return Finding(point, "differs", "an answer", got, shows), True
    except Differs as error:
        shows = curl(session.target, error.request, session.key)
        got = _redacted(session, error.got)
        return Finding(point, "differs", _redacted(session, error.expected), got, shows), False
    return Finding(point, "holds"), False


def _redacted(session: Session, text: str) -> str:
    """Return `text` without the key, which a server may repeat."""
    return text.replace(session.key, KEY_NAME) if len(session.key) >= _SHORT_KEY_CHARS else text


def remove(session: Session) -> list[str]:
    """Delete every batch that this probe has made, canceling what still runs.

    Returns:
        The ids that could not be deleted, which are canceled if the server allows it.
    """
    left = list(session.made)
    try:
        left = [name for name in left if not _is_gone(session, name)]
        for name in left:
            session.send(session.request("POST", f"{BATCHES}/{name}/cancel", body=b""))
        for _ in range(_REMOVE_ATTEMPTS):
            left = [name for name in left if not _is_gone(session, name)]
            if not left:
                break
            session.pause(_REMOVE_PAUSE_S)
    except (NoAnswer, NotRun) as error:
        session.say(f"the batches of the probe were not all removed: {error}")
    return left


def _is_gone(session: Session, name: str) -> bool:
    answer = session.send(session.request("DELETE", f"{BATCHES}/{name}"))
    return answer.status in {200, 404}
