"""One process at work on one run: the lock, the journal, the server to talk to, in this order.

The command line and the library both open runs through here, so both follow the same rules about
what continues and what is refused.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Self

from batchyard.client import folder, journal, local, registry
from batchyard.client.pipeline import Pipeline
from batchyard.client.plan import describe_changes
from batchyard.client.problems import InputError, InputsChanged
from batchyard.client.sending import GRACE_S
from batchyard.client.updates import Update
from batchyard.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.client.journal import Config, State
    from batchyard.client.plan import Plan
    from batchyard.clock import Clock


_LEAVING_TIMEOUT_S = 0.5


class Session:
    """The right to work on the run in a folder, and what is needed for it.

    Raises:
        RunInUse: on entering, when another process works on it.
    """

    def __init__(
        self,
        out: Path,
        *,
        stop: threading.Event | None = None,
        tell: Callable[[Update], None] | None = None,
        api_key: str | None = None,
        clock: Clock | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        """Prepare; nothing is opened before `with`.

        Args:
            out: the output folder; it is made if there is none.
            stop: set it to leave the run at the next safe point.
            tell: gets what a screen may show.
            api_key: default `ANTHROPIC_API_KEY`.
            clock: of the journal.
            grace_s: how long a batch whose answer was lost may stay out of the server's list.
        """
        self.files = folder.Files(out)
        self._stop = stop or threading.Event()
        self._tell = tell or (lambda _: None)
        self._api_key = api_key
        self._clock = clock or SystemClock()
        self._grace_s = grace_s
        self._stack = ExitStack()
        self._writer: folder.Journal | None = None

    def __enter__(self) -> Self:
        try:
            self.files.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.files.out} cannot be used: {error.strerror}") from None
        with ExitStack() as stack:
            stack.enter_context(folder.Lock(self.files.out))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._stack.close()

    @property
    def state(self) -> State:
        """Return what the journal says."""
        return self._writer.state if self._writer else self.files.read_state()

    def check(self, plan: Plan, config: Config, *, fresh: bool = False) -> bool:
        """Return whether `plan` is the run that is here already; changes nothing.

        Raises:
            InputsChanged: it is another one, and the one that is here has sent something.
        """
        state = self.state
        if not state.run or fresh:
            return False
        changes = self._changes(state, plan, config)
        if not changes:
            return True
        if state.nothing_sent:
            return False
        how = "finished" if state.finished_us is not None else "under way"
        listed = "\n".join(f"  {change}" for change in changes)
        raise InputsChanged(
            f"{self.files.out} holds a run of other inputs ({how}):\n{listed}\n"
            f"nothing was sent; --fresh starts anew and keeps the old state beside it"
            + ("" if state.finished_us else f", `batchyard attach {self.files.out}` finishes it")
        )

    def begin(self, plan: Plan, config: Config, *, fresh: bool = False) -> None:
        """Continue the run that is here, or put `plan` on disk as a new one.

        Raises:
            InputsChanged: as in `check`.
        """
        if self.check(plan, config, fresh=fresh):
            return
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self.state.run:
            folder.set_aside(self.files)
        folder.start(self._journal(), plan, config)
        registry.add(self.files.out, self._clock.now_us())

    def connect(self) -> Pipeline:
        """Return the loop of the run, connected to its server; starts the local one if needed.

        Raises:
            InputError: there is no run here, or no key.
            NeedsAttention: the local server does not start.
            Detached: the run was left meanwhile.
        """
        from batchyard.client.api import Api  # noqa: PLC0415 - the HTTP client, only when needed

        writer = self._journal()
        config = writer.state.config
        if config is None:
            raise InputError(f"{self.files.out} holds no run")
        url, key = config.base_url, self._api_key
        locate: Callable[[], str] | None = None
        if config.local:
            yard = local.LocalYard(
                self.files.yard, self.files.yard_log, config.upstreams, clock=self._clock
            )
            self._stack.callback(self._stop_yard, yard)
            url = yard.start(self._stop.wait, self._say)
            key = local.KEY
            locate = partial(yard.locate, self._stop.wait, self._say)
        api = Api(
            url,
            key,
            betas=config.betas,
            pause=self._stop.wait,
            now_us=self._clock.now_us,
            locate=locate,
            say=self._say,
        )
        self._stack.callback(api.close)
        return Pipeline(
            writer,
            api,
            clock=self._clock,
            pause=self._stop.wait,
            tell=self._tell,
            grace_s=self._grace_s,
        )

    def listen(self, tell: Callable[[Update], None]) -> None:
        """Send what a screen may show there, from now on."""
        self._tell = tell

    def leave(self) -> None:
        """Record that the run was left on request."""
        self._journal().record(journal.Left())

    def _say(self, text: str) -> None:
        self._tell(Update(kind="notice", text=text))

    def _stop_yard(self, yard: local.LocalYard) -> None:
        # Who leaves does not wait: the server finishes the calls in flight and ends by itself.
        yard.stop(_LEAVING_TIMEOUT_S if self._stop.is_set() else local.STOP_TIMEOUT_S)

    def _journal(self) -> folder.Journal:
        if self._writer is None:
            self._writer = folder.Journal(self.files, self._clock)
        return self._writer

    def _changes(self, state: State, plan: Plan, config: Config) -> list[str]:
        before = state.config
        assert before is not None
        changes = config_changes(before, config)
        hashes = {entry.key: entry.sha256 for entry in self.files.read_documents()}
        now = {r.key: r.sha256 for shard in plan.shards for r in shard.requests}
        return changes + describe_changes(hashes, now)


def config_changes(before: Config, after: Config) -> list[str]:
    """Return one line for each difference that would change what is sent, or where to."""
    changes = []
    if before.prompt_sha256 != after.prompt_sha256:
        changes.append(f"the prompt {after.prompt} has another text")
    if before.system_sha256 != after.system_sha256:
        changes.append("the system prompt has another text")
    options = (
        ("--model", before.model, after.model),
        ("--max-tokens", before.max_tokens, after.max_tokens),
        ("--beta", before.betas, after.betas),
        ("--suffix", before.suffix, after.suffix),
        ("--shard-size", before.shard_requests, after.shard_requests),
        ("--local", before.local, after.local),
        ("the address", before.base_url, after.base_url),
    )
    for name, old, new in options:
        if old != new:
            changes.append(f"{name} was {_option(old)} and is {_option(new)}")
    if after.upstreams and before.upstreams != after.upstreams:
        changes.append(
            f"--upstream was {_option(before.upstreams)} and is {_option(after.upstreams)}"
        )
    return changes


def _option(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "not given"
    if isinstance(value, bool):
        return "given" if value else "not given"
    return "not given" if value is None else str(value)
