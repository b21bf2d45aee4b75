"""Drive a run from the command line: the loop in a thread, signals and screen in the main one."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from batchyard.cli import render
from batchyard.cli.exits import Exit
from batchyard.client import collect, receipt
from batchyard.client.problems import Detached
from batchyard.client.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchyard.client.folder import Files
    from batchyard.client.journal import State
    from batchyard.client.receipt import Receipt

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


def go_on(out: Path, *, as_json: bool, prepare: Callable[[Session], None] | None = None) -> None:
    """Continue the run in `out` to its end and exit the process accordingly.

    Args:
        out: the output folder.
        as_json: whether events are printed for a program.
        prepare: called with the session before anything else, to begin a new run.

    Raises:
        SystemExit: when the run is not complete.
        InputError, NeedsAttention: as the loop.
    """
    stop = threading.Event()
    with Session(out, stop=stop) as session:
        if prepare is not None:
            prepare(session)
        state = session.state
        if state.finished_us is None:
            done = _watched(session, stop, as_json=as_json)
        else:
            done = receipt.write(session.files, state, state.finished_us)
        show_end(out, session.files, session.state, done, as_json=as_json)
    if not done.is_complete:
        raise SystemExit(Exit.NEEDS_ATTENTION)


def show_end(out: Path, files: Files, state: State, done: Receipt, *, as_json: bool) -> None:
    """Print how the run ended; the last line is about money."""
    if as_json:
        render.emit({"event": "done", "receipt": done})
        return
    outcomes = receipt.all_outcomes(files, state)
    failures = (outcome for _, outcome in outcomes if outcome.class_ != "succeeded")
    render.ending(out.name, done, failures, errors=str(out / "errors.jsonl"))
    render.say(f"reports in {out}/   receipt in {out / 'receipt.json'}")
    render.say(receipt.money_line(done))


def _watched(session: Session, stop: threading.Event, *, as_json: bool) -> Receipt:
    files = session.files

    def saved(index: int) -> int:
        return sum(outcome.is_saved for outcome in collect.read_outcomes(files, index))

    screen = render.screen(files.out.name, session.state.shards, saved=saved, as_json=as_json)
    session.listen(screen.update)
    worker = _Worker(lambda: session.connect().run())
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
