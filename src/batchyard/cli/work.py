"""Drive a run from the command line: the loop in a thread, signals and screen in the main one."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from batchyard import wire
from batchyard.cli import ending, pilots, render
from batchyard.cli.exits import Exit
from batchyard.client.problems import Detached, NeedsAttention, Paused
from batchyard.client.results import classes, finals, receipt
from batchyard.client.running import at_once, billing, offers, rounds
from batchyard.client.running.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchyard.cli.pilots import Approval
    from batchyard.cli.terms import Going
    from batchyard.client.results.receipt import Receipt
    from batchyard.client.running.folder import Files
    from batchyard.client.running.journal import State
    from batchyard.client.running.offers import Offer
    from batchyard.client.running.pipeline import Pipeline

_JOIN_S = 0.05
_PATIENCE_S = 5.0  # how long a call in flight may take to notice that the run is left


class _Worker(threading.Thread):
    """Runs the loop and keeps what came of it."""

    def __init__(self, body: Callable[[], Receipt]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self.receipt: Receipt | None = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Run the body."""
        try:
            self.receipt = self._body()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self.failure = error


def go_on(
    out: Path,
    *,
    as_json: bool,
    going: Going,
    prepare: Callable[[Session], None] | None = None,
    first: Callable[[Pipeline], None] | None = None,
    approval: Approval = "ask",
) -> None:
    """Continue the run in `out` to its end and exit the process accordingly.

    Args:
        out: the output folder.
        as_json: whether events are printed for a program.
        going: the terms, and whom to tell.
        prepare: called with the session before anything else, to begin a new run.
        first: called with the loop before it goes on, even when the run is finished.
        approval: what a pilot needs before the rest is sent.

    Raises:
        SystemExit: when the run is not complete.
        InputError, NeedsAttention: as the loop.
    """
    stop = threading.Event()
    with Session(out, stop=stop) as session:
        if prepare is not None:
            prepare(session)
        going.agree(session)
        state = session.state
        try:
            if state.finished_us is None or first is not None:
                driver = _Driver(session, stop, as_json=as_json)
                done = driver.watched(first)
                while driver.pipeline.is_held:
                    pilots.show(out, session, approval, as_json=as_json)
                    driver.pipeline.approve()
                    done = driver.watched()
            else:
                done = receipt.refreshed(session.files, state)
        except NeedsAttention as error:
            saved = receipt.standing(session.files, session.state)
            if saved is not None and isinstance(error, Paused):
                show_end(out, session.files, session.state, saved, as_json=as_json)
            word = error.waits_for if isinstance(error, Paused) else "attention"
            told(going, session, word, saved or error.message, stop, as_json=as_json)
            raise
        show_end(out, session.files, session.state, done, as_json=as_json)
        is_complete = done.is_complete
        told(
            going, session, "finished" if is_complete else "attention", done, stop, as_json=as_json
        )
    if not done.is_complete:
        raise SystemExit(Exit.NEEDS_ATTENTION)


def told(
    going: Going,
    session: Session,
    word: str,
    what: Receipt | str,
    stop: threading.Event,
    *,
    as_json: bool,
) -> None:
    """Run the command and call the address that want to know; what fails is a notice.

    Args:
        going: whom to tell.
        session: of the run.
        word: how it stands.
        what: its receipt; where it has none, why not.
        stop: set when the run is left.
        as_json: whether events are printed for a program.
    """
    from batchyard.client.running import notify  # noqa: PLC0415 - only who asks for it

    out, problems = session.files.out, []
    if going.notify is not None:
        words, has_receipt = notify.checked_command(going.notify), not isinstance(what, str)
        problems.append(notify.run_command(words, out, word, has_receipt=has_receipt))
    if going.webhook is not None:
        body: object = what
        if isinstance(what, str):
            body = {"run": session.state.run, "out": str(out), "state": word, "message": what}
        problems.append(notify.post(going.webhook, wire.encode(body), pause=stop.wait))
    for problem in filter(None, problems):
        text = f"nobody was told: {problem}"
        if as_json:
            render.emit({"event": "notice", "text": text})
        else:
            render.aside(text)


def show_end(out: Path, files: Files, state: State, done: Receipt, *, as_json: bool) -> None:
    """Print how the run ended; the last line is about money."""
    offer = _offer(files, state, done)
    if as_json:
        again = None if offer is None else {"again": dict(offer.again), "micros": offer.micros}
        render.emit({"event": "done", "receipt": done, "retry": again})
        return
    last = (final.outcome for final in finals.finals(files, state, waits_for=done.waits_for))
    failures = (outcome for outcome in last if outcome.class_ != "succeeded")
    retry = f"{render.program()} retry {_quoted(out)}" if _knows_requests(state) else None
    errors = str(out / "errors.jsonl")
    for line in ending.lines(out.name, done, failures, errors=errors, retry=retry, offer=offer):
        render.fitted(line)
    few = None if retry is None else _few(files, state, done)
    if few is not None:
        render.fitted(ending.at_once(retry or "", few))
    render.table(ending.money_rows(done))
    render.fitted(f"reports in {out}/   receipt in {out / 'receipt.json'}")
    render.fitted(receipt.money_line(done))


def _offer(files: Files, state: State, done: Receipt) -> Offer | None:
    """Return what `retry` would send, where some of it would be paid once more; None elsewhere."""
    if rounds.PAID_AGAIN.isdisjoint(done.classes):
        return None
    if not _knows_requests(state):
        return None
    return offers.make(files, state, billing.presumed(state))


def _few(files: Files, state: State, done: Receipt) -> Offer | None:
    """Return what it would cost to ask for the last few at once; None where that is no choice."""
    kinds = rounds.REPEATABLE | rounds.on_request(state)
    can = sum(done.classes.get(kind, 0) for kind in kinds)
    if not state.is_settled or not 0 < can <= at_once.FEW or not at_once.is_possible(state):
        return None
    offer = offers.make(files, state, "standard")
    return offer if offer.again else None


def _knows_requests(state: State) -> bool:
    return state.config is not None and state.config.imported != "results"


class _Driver:
    """Runs the loop of one run, once or, after a pilot, again."""

    def __init__(self, session: Session, stop: threading.Event, *, as_json: bool) -> None:
        self._session = session
        self._stop = stop
        self._as_json = as_json
        self._pipeline: Pipeline | None = None

    @property
    def pipeline(self) -> Pipeline:
        """Return the loop; the first time, connect it to its server."""
        if self._pipeline is None:
            self._pipeline = self._session.connect()
        return self._pipeline

    def watched(self, first: Callable[[Pipeline], None] | None = None) -> Receipt:
        """Run the loop under a screen, after `first`.

        Raises:
            Detached: the run was left.
            InputError, NeedsAttention: as the loop.
        """

        def body() -> Receipt:
            if first is not None:
                first(self.pipeline)
            return self.pipeline.run()

        return _watched(self._session, self._stop, body, as_json=self._as_json)


def _watched(
    session: Session, stop: threading.Event, body: Callable[[], Receipt], *, as_json: bool
) -> Receipt:
    def saved() -> tuple[int, int]:
        state = session.state
        return classes.counted(state.classes).get("saved", 0), state.documents

    name = session.files.out.name
    screen = render.screen(name, session.state.shards, saved=saved, as_json=as_json)
    session.listen(screen.update)
    worker = _Worker(body)
    with _signals(stop, screen.abandon), screen:
        worker.start()
        while worker.is_alive() and not stop.is_set():
            worker.join(_JOIN_S)
            screen.refresh()
        worker.join(_PATIENCE_S)
    if worker.receipt is not None:
        return worker.receipt
    if stop.is_set() and (worker.failure is None or isinstance(worker.failure, Detached)):
        _detach(session, is_idle=not worker.is_alive())
    assert worker.failure is not None
    raise worker.failure


def _detach(session: Session, *, is_idle: bool) -> NoReturn:
    """Say how to come back, and exit. A call in flight may still be open; the journal knows."""
    config = session.state.config
    assert config is not None
    if config.local:
        goes_on = "the local server stops after the calls in flight; nothing goes on without it"
    elif session.state.nothing_sent:
        goes_on = "nothing was sent yet"
    else:
        goes_on = "the batches go on at the server"
    text = (
        f"detached, nothing is lost; {goes_on}\n"
        f"come back with:  {render.program()} attach {_quoted(session.files.out)}/"
    )
    if is_idle:
        session.leave()
        raise Detached(text)
    # The loop is in a call that does not end. Its files stay open until the process is gone.
    render.aside(text)
    os._exit(Exit.DETACHED)


def _quoted(out: Path) -> str:
    import shlex  # noqa: PLC0415 - once, at the end

    return shlex.quote(str(out))


@contextmanager
def _signals(stop: threading.Event, abandon: Callable[[], None]) -> Iterator[None]:
    """Leave at the first signal, at once at the second, when the screen is abandoned."""

    def handle(_signal: int, _frame: object) -> None:
        if stop.is_set():
            abandon()
            os._exit(Exit.DETACHED)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
