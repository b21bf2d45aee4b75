"""One process at work on one run: the lock, the journal, the server to talk to, in this order.

The command line and the library both open runs through here, so both follow the same rules about
what continues and what is refused.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from batchyard import crash, wire
from batchyard.client.planning import rerun
from batchyard.client.planning.plan import subset
from batchyard.client.problems import InputError, InputsChanged
from batchyard.client.running import (
    at_once,
    billing,
    budget,
    folder,
    journal,
    local,
    registry,
    rounds,
)
from batchyard.client.running import pilot as pilots
from batchyard.client.running.pipeline import Pipeline
from batchyard.client.running.sending import GRACE_S
from batchyard.client.running.updates import Update
from batchyard.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from batchyard.client.planning.plan import Plan, Shard
    from batchyard.client.results.schema import Schema
    from batchyard.client.running.journal import Config, State
    from batchyard.clock import Clock


_LEAVING_TIMEOUT_S = 0.5
_MODELS_NAMED = 3
# Why a part of a run is not sent, by what it waits for.
_UNSENT = {
    "budget": "the budget keeps a part of the run from being sent (`batchyard attach --budget`)",
    "pilot": "the rest of the run waits for a look at its pilot (`batchyard attach --approve`)",
    "billing": "the rest of the run waits until the account is paid (`batchyard attach`)",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """How a command stands to the run in its folder.

    `kind` is `new` when there is none that counts, `same` when it is the one that is there already,
    `more` when that one is finished and `plan` is what it does not have. `notes` are for people.
    `terms` are those of the run that is here; they stay where no others are given.
    """

    kind: Literal["new", "same", "more"]
    plan: Plan
    changes: rerun.Changes = field(default_factory=rerun.Changes)
    notes: Sequence[str] = ()
    terms: journal.Terms = field(default_factory=journal.Terms)


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
        self.schema: Schema | None = None
        """What answers have to look like, when a class tells; else the journal has it."""

    def __enter__(self) -> Self:
        try:
            self.files.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.files.out} cannot be used: {error.strerror}") from None
        for folder_ in (self.files.out, self.files.state):
            if folder_.exists() and not os.access(folder_, os.W_OK | os.X_OK):
                raise InputError(f"{folder_} cannot be used: it cannot be written to")
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

    def compare(
        self,
        plan: Plan,
        config: Config,
        *,
        fresh: bool = False,
        allow: Collection[str] = (),
        pilot: int = 0,
    ) -> Standing:
        """Return what of `plan` is to be sent, beside the run that is here; changes nothing.

        Args:
            plan: of all documents.
            config: what is asked for.
            fresh: the run that is here does not count.
            allow: the kinds of `rerun.ALLOWS` that may have changed.
            pilot: how many of the requests are to go first.

        Raises:
            InputsChanged: the run that is here has sent something, and is another one in a way that
                was not allowed.
            InputError: it has sent something without a pilot, and goes on.
        """
        state = self.state
        if not state.run or fresh:
            return Standing("new", plan)
        assert state.config is not None
        before = at_once.behind(state.config)
        drift = rerun.drift(before, config)
        entries = list(self.files.read_documents(len(state.shards)))
        changes = rerun.compare(entries, plan, is_same_command=not drift)
        is_finished = state.finished_us is not None
        lines = rerun.refused(
            drift, changes, allow, is_finished=is_finished, at_server=state.at_server
        )
        terms = msgspec.structs.replace(state.terms, at=0)
        if lines and state.nothing_sent:
            return Standing("new", plan, terms=terms)
        if lines:
            lines += self._other_models(entries, plan, changes) if before.override else []
            raise InputsChanged(self._refusal(lines, is_finished=is_finished))
        notes = [each.text for each in drift] + changes.lines()
        if not changes.to_send:
            wanted, has = pilots.size(plan, pilot), state.piloted
            size = state.config.shard_requests
            if state.nothing_sent and (wanted not in {0, has} or size != config.shard_requests):
                return Standing("new", plan, terms=terms)
            if not is_finished and wanted and not has and state.newest > pilot:
                raise InputError(
                    f"{self.files.out} has sent batches without a pilot: without --pilot the same "
                    "command finishes it, --fresh starts anew"
                )
            if not is_finished and size != config.shard_requests:
                notes.append(f"--shard-size stays {size:,}: the batches of the run are made")
            return Standing("same", plan, changes, notes, terms)
        names = rerun.names(entries, plan, changes)
        more = subset(plan, changes.to_send, round_=state.round + 1, names=names)
        return Standing("more", more, changes, notes, terms)

    def take(
        self,
        standing: Standing,
        config: Config,
        *,
        pilot: int = 0,
        terms: Mapping[str, Any],
        saving: journal.Saving,
    ) -> None:
        """Put on disk what `compare` said, and a person approved.

        Whoever is killed in it leaves no run that goes on without the terms that were given.

        Args:
            standing: what `compare` said.
            config: what is asked for.
            pilot: how many of the requests go first.
            terms: those that are given now, as for `agree`.
            saving: how answers are written.
        """
        plan = standing.plan
        if standing.kind != "new":
            url = config.base_url if self.state.finished_us is None else None
            if url is not None:
                self.check_move(url, is_allowed=True)  # as `compare` found
            self.agree(**terms)
            self.keep(saving)
            self._keep_columns(plan)
            registry.ensure(self.files.out, self._clock.now_us())
            if url is not None:
                self.move(url, is_allowed=True)
            if standing.kind == "more":
                self._extend(standing, config, pilot)
            return
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self.state.run:
            folder.set_aside(self.files)
        shares = plan.documents != len(plan.requests)
        documents = plan.documents if shares else None
        plan, reasons = pilots.split(plan, pilot)
        writer = self._journal()
        self._keep_columns(plan)
        folder.start(
            writer, plan, config, reasons=reasons, documents=documents,
            approved=_approved(plan, 0), saving=saving,
            terms=msgspec.structs.replace(standing.terms, **terms),
        )  # fmt: skip
        crash.point("run_unlisted")
        registry.add(self.files.out, self._clock.now_us())

    def move(self, base_url: str, *, is_allowed: bool) -> str:
        """Go on at another address; return what changed, in words; see `check_move`."""
        text = self.check_move(base_url, is_allowed=is_allowed)
        if text:
            self._journal().record(journal.Moved(base_url=base_url))
            crash.point("moved")
        return text

    def check_move(self, base_url: str, *, is_allowed: bool) -> str:
        """Return what would change at another address, in words, empty when nothing would.

        Args:
            base_url: checked.
            is_allowed: also when batches of the run are at the address of now.

        Raises:
            InputError: the run has a server of its own, or may not leave the one it has.
        """
        state, out = self.state, self.files.out
        before = None if state.config is None else at_once.behind(state.config)
        if before is None or before.base_url == base_url:
            return ""
        if before.local:
            raise InputError(f"{out} was begun with --local; it has no other server")
        text = rerun.moved_text(before, base_url)
        if state.at_server and before != state.config:
            raise InputError(
                f"{text}; single calls of the run are under way at the first: "
                f"`batchyard attach {out}` waits for them"
            )
        if state.at_server and not is_allowed:
            raise InputsChanged(f"{text}; {rerun.stay_text(state.at_server)}")
        return text

    def check_at_once(self) -> None:
        """Refuse to send single calls before all is collected, or where they cost the same.

        Raises:
            InputError: it is not, they do, or nobody knows.
        """
        state = self.state
        assert state.config is not None
        if at_once.is_on(state.config):
            return  # it goes on so
        if not state.is_settled:
            why = "batches of the run are under way"
            if state.waits_for is not None:
                why = _UNSENT[state.waits_for]
            raise InputError(f"{why}; --now is for what is left when all is collected")
        if not at_once.is_possible(state):
            raise InputError(
                "--now is for servers with a price for batches; that of this run calls its model "
                "at once as it is"
            )

    def go_at_once(self) -> None:
        """Send what comes next one by one, through a yard of our own, at the list price."""
        config = self.state.config
        assert config is not None
        if at_once.is_on(config):
            return  # it does already
        self._journal().record(journal.Moved(base_url=None, upstreams=at_once.upstreams(config)))
        crash.point("moved")

    @property
    def state_behind(self) -> State:
        """What the journal will say of the run when it is at its server again."""
        state = self.state
        assert state.config is not None
        return replace(state, config=at_once.behind(state.config))

    def go_back(self) -> None:
        """Send what comes next as batches, also after a round that was sent one by one."""
        at_once.go_back(self._journal())

    def check_change(self) -> None:
        """Refuse a round with a change where more would go with it, or it would go one by one.

        Raises:
            InputError: it would.
        """
        state, is_canceled, out = self.state, self.files.cancel.exists(), self.files.out
        assert state.config is not None
        if not state.is_settled and (is_canceled or at_once.is_on(state.config)):
            raise InputError(f"the run is not at its end; `batchyard attach {out}` comes first")
        if is_canceled and not rounds.REPEATABLE.isdisjoint(state.classes):
            raise InputError(
                f"the run was canceled, and more of it can be sent again: `batchyard retry {out}` "
                "comes first"
            )

    def _keep_columns(self, plan: Plan) -> None:
        if plan.columns:
            plan.columns.write(self.files.state)

    def _extend(self, standing: Standing, config: Config, pilot: int) -> None:
        """Append what a finished run lacks, as a further round of it."""
        writer = self._journal()
        state, changed = writer.state, set(standing.changes.changed)
        replaced = Counter(
            str(last.outcome.class_)
            for last in (rounds.last_outcomes(self.files, state) if changed else ())
            if last.outcome.key in changed
        )
        self.files.cancel.unlink(missing_ok=True)  # the word of an earlier round
        plan, reasons = pilots.split(standing.plan, pilot)
        folder.extend(
            writer,
            plan.shards,
            "rerun",
            reasons=reasons,
            round_=state.round + 1,
            again=replaced,
            documents=state.documents + len(standing.changes.new),
            by_hand=True,
            config=config,
            approved=_approved(standing.plan, budget.standing(state, lambda _: None).spent),
        )

    def extend(self, shards: Sequence[Shard], again: Mapping[str, int]) -> None:
        """Add a round that somebody asked for; `again` counts what no longer counts, by class."""
        self.files.cancel.unlink(missing_ok=True)  # the word of an earlier round
        folder.extend(
            self._journal(), shards, "retry", round_=self.state.round + 1, again=again, by_hand=True
        )

    def agree(self, **terms: Any) -> None:
        """Change terms of the run: fields of `journal.Terms`."""
        before = msgspec.structs.replace(self.state.terms, at=0)
        after = msgspec.structs.replace(before, **terms)
        if after != before:
            self._journal().record(after)

    def keep(self, saving: journal.Saving) -> None:
        """Write answers like this from now on; a finished run writes what it lacks."""
        if saving != msgspec.structs.replace(self.state.saving, at=0):
            self._journal().record(saving)

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
        self.check_requests()
        url, key = config.base_url, self._api_key
        locate: Callable[[], str] | None = None
        if config.local:
            yard = local.LocalYard(
                self.files.yard,
                self.files.yard_log,
                config.upstreams,
                clock=self._clock,
                key=self._api_key,
            )
            self._stack.callback(self._stop_yard, yard)
            url = yard.start(self._stop.wait, self._say)
            key = local.KEY
            locate = partial(yard.locate, self._stop.wait, self._say)
        connected = partial(
            Api, betas=config.betas, pause=self._stop.wait, now_us=self._clock.now_us, say=self._say
        )
        api = connected(url, key, locate=locate)
        self._stack.callback(api.close)
        before: Api | None = None
        if at_once.is_on(config):
            before = connected(at_once.behind(config).base_url, self._api_key)
            self._stack.callback(before.close)
        return Pipeline(
            writer,
            api,
            before=before,
            clock=self._clock,
            pause=self._stop.wait,
            tell=lambda update: self._tell(update),  # noqa: PLW0108 - whoever listens then
            grace_s=self._grace_s,
            schema=self.schema,
        )

    def check_requests(self) -> None:
        """Refuse to send anything for a run of which only the results are known.

        Raises:
            InputError: its batches were made elsewhere.
        """
        config, out = self.state.config, self.files.out
        if config is None or config.imported != "results":
            return
        if self.state.finished_us is None:
            raise InputError(
                f"the import into {out} is not finished; the same `batchyard import` finishes it"
            )
        raise InputError(
            f"nothing of {out} can be sent again: its batches were made elsewhere, and their "
            "requests are not known; `batchyard import` with --requests FILE gives them"
        )

    def check_budget(
        self,
        standing: Standing,
        config: Config,
        terms: Mapping[str, Any],
        *,
        pilot: int = 0,
    ) -> None:
        """Refuse a budget that cannot be kept for what is to be sent, before it is on disk.

        Args:
            standing: what `compare` said.
            config: what is asked for.
            terms: those that are given now; the others stay as they are.
            pilot: how many of the requests go first.

        Raises:
            InputError, BudgetReached: as `budget.check`.
        """
        state = journal.State() if standing.kind == "new" else self.state
        limit = terms.get("budget_micros", standing.terms.budget_micros)
        if limit is None or standing.kind == "same":
            return
        plan = standing.plan
        charges = plan.billing or billing.known(state, config)
        spent = budget.standing(state, lambda _: None).spent
        budget.check(pilots.split(plan, pilot)[0], limit, charges, spent=spent)

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

    def _other_models(
        self, entries: Sequence[folder.DocumentEntry], plan: Plan, changes: rerun.Changes
    ) -> list[str]:
        """Return a line for each of the first changed rows that names another model now."""
        some = changes.changed[:_MODELS_NAMED]
        last = {entry.key: entry for entry in entries if entry.key in some}
        found = []
        for request in plan.requests:
            for key in (each.key for each in request.documents() if each.key in last):
                body = self.files.requests(last[key].shard)
                sent = folder.sent_params(body, last[key].custom_id)
                was = None if sent is None else wire.decode(sent).get("model")
                now = wire.decode(request.params).get("model")
                if was != now:
                    found.append(f"{key}: model was {was} and is {now}")
        return found

    def _journal(self) -> folder.Journal:
        if self._writer is None:
            self._writer = folder.Journal(self.files, self._clock)
        return self._writer

    def _refusal(self, lines: Sequence[str], *, is_finished: bool) -> str:
        how = "finished" if is_finished else "under way"
        listed = "\n".join(f"  {line}" for line in lines)
        return (
            f"{self.files.out} holds a run of other inputs ({how}):\n{listed}\n"
            f"nothing was sent; --fresh starts anew and keeps the old state beside it"
            + ("" if is_finished else f", `batchyard attach {self.files.out}` finishes it")
        )


def _approved(plan: Plan, spent: int) -> tuple[int, int] | None:
    """Return what a run may cost in all when `plan` was approved, as in `journal.Started`."""
    if plan.batch is None or plan.synchronous is None:
        return None
    return spent + plan.batch.ceiling, spent + plan.synchronous.ceiling
