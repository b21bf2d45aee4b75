"""The library: a run is a folder; opening it again continues it.

run = Run("reports", docs=files("readmes/**/*.md"), prompt="report.md.j2",
          model="claude-opus-4-8", max_tokens=8_000)
run.submit(run.plan())
for doc in run:
    print(doc.key, doc.status, doc.path)
print(run.report().paid_micros)
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from batchyard import limits
from batchyard.client.asked import config_of, saving_of, server_of
from batchyard.client.inputs.documents import Sources
from batchyard.client.inputs.kept import Rows
from batchyard.client.inputs.stages import outputs_of
from batchyard.client.inputs.tables import rows_of
from batchyard.client.inputs.template import Template
from batchyard.client.planning import plan as planning
from batchyard.client.planning.sampling import SAMPLE_DEFAULT
from batchyard.client.problems import InputError, NeedsAttention
from batchyard.client.report import Report
from batchyard.client.results import closing, collect, finals, formats, receipt
from batchyard.client.results import schema as schemas
from batchyard.client.results.columns import Columns
from batchyard.client.running import budget as budgets
from batchyard.client.running import changed, durable, journal, offers, rounds
from batchyard.client.running import pilot as pilots
from batchyard.client.running.folder import Files
from batchyard.client.running.session import Session, Standing

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from batchyard.client.running.journal import Config
    from batchyard.client.running.pipeline import Pipeline

# Outcomes that a further round may replace: they are yielded when there is none.
_MAY_CHANGE = rounds.REPEATABLE | {rounds.BILLING}


class Run:
    """Documents, a prompt and a model, and the folder where the reports go.

    Use it in a `with` block or call `close`: with `local=True` a server runs until then.

    Args:
        out: the output folder. A run that is in it already is continued.
        prompt: path of the template of the user prompt.
        model: as the server knows it.
        max_tokens: of each report.
        docs: from `files`; or a finished run, or `outputs_of` some: their reports are the
            documents; or give `rows`.
        rows: one mapping of fields for each document: any iterable of mappings, a data frame,
            an Arrow table or stream.
        id: the field that names a row; without it `id`, else the row's number.
        system: path of the template of the system prompt.
        betas: values of `anthropic-beta`.
        suffix: of the reports; default `.md`, or `.json` for structured answers.
        params: further parameters of every request, such as `{"temperature": 0.5}`.
        override: the field of a row that holds parameters of its own.
        cache: `auto`, `off`, `5m` or `1h`: whether what all requests begin with is cached.
        shard_size: requests in one batch, at most.
        retries: rounds in which what failed and can succeed is sent again; default 3.
        on_orphan: what to do about a create call without an answer, where the server cannot
            tell: `wait` (the default), `adopt`, `resubmit` or `fail`.
        base_url: of the server; default `ANTHROPIC_BASE_URL`, else the hosted API.
        api_key: default `ANTHROPIC_API_KEY`.
        local: start a server for the duration of the run.
        upstreams: of the local server, as `name=url`.
        returns: what answers have to look like: a class of pydantic, a dataclass, a
            `msgspec.Struct`, a JSON Schema as a mapping, or the path of one.
        name: template of the names of reports, such as `{{ key }}.md`.
        formats: `md`, `json`, `jsonl`, `csv`, `parquet`; default one file for each document.
        audit: where the audit record goes instead of the folder of the run's state.
        delete_after_download: delete the server's copy when everything is on disk.
    """

    def __init__(  # noqa: PLR0913 - the options of a run, by keyword
        self,
        out: str | os.PathLike[str],
        *,
        prompt: str | os.PathLike[str],
        model: str,
        max_tokens: int,
        docs: Sources | Run | None = None,
        rows: object = (),
        id: str | None = None,  # noqa: A002 - the field that names a row
        system: str | os.PathLike[str] | None = None,
        betas: Iterable[str] = (),
        suffix: str | None = None,
        params: Mapping[str, Any] | None = None,
        override: str | None = None,
        cache: str = "off",
        shard_size: int = limits.RUN_BATCH_REQUESTS_DEFAULT,
        retries: int | None = None,
        on_orphan: journal.OrphanPolicy | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        local: bool = False,
        upstreams: Iterable[str] = (),
        returns: object = None,
        name: str | None = None,
        formats: Iterable[str] = (),
        audit: str | os.PathLike[str] | None = None,
        delete_after_download: bool = False,
    ) -> None:
        """Name a run; nothing is read, written or sent yet."""
        self.out = Path(out)
        self._sources = _sources(docs, rows, id)
        self._prompt, self._system = Path(prompt), Path(system) if system else None
        self._schema = None if returns is None else schemas.of(returns)
        self._saving = saving_of(
            formats, self._schema, audit, delete=delete_after_download, has_name=name is not None
        )
        is_json = "json" in self._saving.formats
        self._settings = planning.Settings(
            model=model,
            max_tokens=max_tokens,
            betas=tuple(betas),
            shard_requests=shard_size,
            suffix=suffix or (".json" if is_json else ".md"),
            params=schemas.added(params or {}, self._schema),
            schema=None if self._schema is None else self._schema.source,
            name=name,
            override=override,
            cache=cache,  # type: ignore[arg-type] # checked with the other settings
        )
        self._base_url, self._api_key = base_url, api_key
        self._local, self._upstreams = local, tuple(upstreams)
        given: dict[str, Any] = {"retries": retries, "on_orphan": on_orphan}
        self._terms = {field: value for field, value in given.items() if value is not None}
        self._stop = threading.Event()
        self._session: Session | None = None
        self._pipeline: Pipeline | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(self, *, sample: int = SAMPLE_DEFAULT) -> planning.Plan:
        """Read, render, validate and price everything; creates no batch and spends nothing.

        Args:
            sample: how many requests the server of the run is asked to count the tokens of, for
                nothing; with 0, or without a key, nobody is asked.

        Raises:
            InputError: something is not usable; the message says what and where.
        """
        return self.settled(self.rendered(), sample=sample)

    def rendered(self) -> planning.Plan:
        """Return the plan as it is made here, before anybody is asked for anything.

        Raises:
            InputError: as in `plan`.
        """
        # A wrong option is told before a hundred thousand documents are read.
        server_of(base_url=self._base_url, local=self._local, upstreams=self._upstreams)
        documents = self._sources.read(outside=self.out)
        made = planning.make(
            documents,
            Template(self._prompt),
            Template(self._system) if self._system else None,
            self._settings,
        )
        columns = None if formats.EACH.issuperset(self._saving.formats) else Columns(documents)
        skipped = self._sources.skipped(outside=self.out)
        notices = [*made.notices, *self._sources.notices()]
        return replace(made, skipped=skipped, columns=columns, notices=notices)

    def settled(self, made: planning.Plan, *, sample: int) -> planning.Plan:
        """Return a plan with what can be learned of its tokens before anything is paid."""
        from batchyard.client.planning.survey import settled  # noqa: PLC0415 - the list of runs

        config = self.config(made)
        return settled(made, config, self.out, sample=sample, api_key=self._api_key)

    def submit(
        self,
        approved: planning.Plan,
        *,
        budget: float | str | None = None,
        allow: Iterable[str] = (),
    ) -> None:
        """Send a plan, each batch exactly once; safe to call again. After a pilot: the rest.

        Of a finished run, what is not there in the formats of now is written.

        A batch that the server does not take keeps no other from being sent; iterating over the run
        tells of it at the end.

        Args:
            approved: what to send.
            budget: dollars that the run may cost at most; `"none"` for no limit; None for what it
                was before, at first no limit. What might exceed it is not sent.
            allow: what may have changed since the run in the folder: `prompt`, `model`, `options`,
                `input`, `server`. New documents need no leave.

        Raises:
            InputsChanged: the folder holds a run of other inputs.
            RunInUse: another process works on it.
            NeedsAttention: the server takes nothing; the message says what to do.
            BudgetReached: not even the first requests fit in the budget; nothing was written.
        """
        config, terms = self.config(approved), self._given_terms(budget)
        with self._closing_after_failure():
            self._check_new(approved, config, terms)
            session = self._open()
            standing = session.compare(approved, config, allow=frozenset(allow))
            session.check_budget(standing, config, terms)
            session.take(standing, config, terms=terms, saving=self._saving)
            if session.state.finished_us is None:
                pipeline = self._connected()
                if any(map(session.state.is_held, session.state.shards)):
                    pipeline.approve()
                pipeline.submit()
            else:
                receipt.refreshed(session.files, session.state)

    def pilot(
        self,
        count: int,
        approved: planning.Plan | None = None,
        *,
        budget: float | str | None = None,
    ) -> pilots.Findings:
        """Send `count` documents first, wait for them, and return what they showed.

        They are spread over the inputs, and are part of the run. `submit` sends the rest.

        Args:
            count: how many.
            approved: the plan of all documents; made if None.
            budget: as for `submit`.

        Raises:
            InputsChanged, RunInUse, NeedsAttention, BudgetReached: as for `submit`.
        """
        approved = approved or self.plan()
        config, terms = self.config(approved), self._given_terms(budget)
        with self._closing_after_failure():
            self._check_new(approved, config, terms, pilot=count)
            session = self._open()
            standing = session.compare(approved, config, pilot=count)
            session.check_budget(standing, config, terms, pilot=count)
            session.take(standing, config, pilot=count, terms=terms, saving=self._saving)
            if session.state.finished_us is None:
                self._connected().run()
            return pilots.findings(session.files, session.state)

    def retry(self, *, canceled: bool = False, with_change: bool = False, now: bool = False) -> int:
        """Start a further round of what failed and can succeed; return how many documents it has.

        What was not answered for want of credit goes with it. A run that is under way only goes on,
        as it was approved. Iterate over the run to wait for it.

        Args:
            canceled: also what was canceled.
            with_change: instead of it what needs a fix, rendered again from the templates as they
                are now.
            now: one by one, at once, at the list price, instead of as a batch.

        Raises:
            InputError: nothing was submitted, nothing has changed, what is asked for is for what
                the run leaves when it is at its end, or `now` costs what a batch does.
            NeedsAttention: the server takes nothing.
        """
        if with_change and (now or canceled):
            raise InputError(f"{'now' if now else 'canceled'} excludes with_change")
        with self._closing_after_failure():
            session = self._submitted()
            before = sum(session.state.again.values())
            offer = None
            if with_change:
                changed.begin(session, changed.prepare(session, sources=self._sources))
            else:
                offer = offers.prepare(session, canceled=canceled, now=now)
            if offer is not None:
                offers.begin(session, offer, now=now)
            pipeline = self._connected()
            if offer is not None:
                pipeline.repeat(offer.also)
            pipeline.submit()
            for _ in pipeline.advance():
                pass
            return sum(self._open().state.again.values()) - before

    def cancel(self) -> None:
        """Cancel the batches under way; what is not sent is never sent. Answers are kept.

        Raises:
            InputError: nothing was submitted.
        """
        with self._closing_after_failure():
            session = self._submitted()
            if session.state.finished_us is None:
                durable.write(session.files.cancel, [])
                self._connected().submit()

    def leave(self) -> None:
        """Let whoever waits for this run stop waiting, from another thread; nothing is lost."""
        self._stop.set()

    def __iter__(self) -> Generator[Report, None, None]:
        """Yield every document once, with its last outcome; waits, and continues after a crash.

        Its report is on disk by then. What may be sent again comes last.

        Raises:
            InputError: nothing was submitted.
            Paused: the rest waits for money; what came was yielded.
            NeedsAttention: a part of the run cannot be finished; all others were yielded.
        """
        with self._closing_after_failure():
            yield from self._iterated()

    def _iterated(self) -> Iterator[Report]:
        session = self._submitted()
        if session.state.finished_us is not None:
            yield from self._finals()
            return
        for shard in session.state.shards:
            if shard.phase is journal.Phase.COLLECTED:
                yield from self._settled(shard.index)
        pipeline = self._connected()
        pipeline.submit()
        while not pipeline.is_done:
            is_idle = True
            for index in pipeline.advance():
                is_idle = False
                yield from self._settled(index)
            if is_idle:
                pipeline.wait()
        problem: NeedsAttention | None = None
        try:
            pipeline.finish()
        except NeedsAttention as error:
            problem = error
        yield from self._finals(only=_MAY_CHANGE)
        if problem is not None:
            raise problem

    def report(self) -> receipt.Receipt:
        """Return the receipt of the run: finished, or stopped by its budget, by billing or a pilot.

        Raises:
            NeedsAttention: it is neither; iterate over the run first.
        """
        with self._closing_after_failure():
            session = self._open()
            if session.state.finished_us is not None:
                return receipt.refreshed(session.files, session.state)
            done = receipt.standing(session.files, session.state)
            if done is None:
                raise NeedsAttention(
                    f"the run in {self.out} is not finished; iterate over it first"
                )
            return done

    def close(self) -> None:
        """Let go of the folder and the server; the run can be opened again."""
        session, self._session, self._pipeline = self._session, None, None
        if session is not None:
            session.__exit__()

    @contextmanager
    def _closing_after_failure(self) -> Iterator[None]:
        """Let go of the folder when something fails, so that another run can open it."""
        try:
            yield
        except GeneratorExit:  # iteration was broken off, which is no failure
            raise
        except BaseException:
            self.close()
            raise

    def _open(self) -> Session:
        if self._session is None:
            self._stop.clear()
            session = Session(self.out, api_key=self._api_key, stop=self._stop)
            self._session = session.__enter__()
            self._session.schema = self._schema
        return self._session

    def _connected(self) -> Pipeline:
        """Return the loop at the server where the run is now."""
        if self._pipeline is not None and self._pipeline.has_moved:
            self.close()
        if self._pipeline is None:
            self._pipeline = self._open().connect()
        return self._pipeline

    @property
    def saving(self) -> journal.Saving:
        """Return how answers are written."""
        return self._saving

    def config(self, approved: planning.Plan) -> Config:
        """Return what the journal would keep of this run.

        Raises:
            InputError: options exclude each other.
        """
        return config_of(
            approved,
            prompt=self._prompt,
            system=self._system,
            base_url=self._base_url,
            local=self._local,
            upstreams=self._upstreams,
            sources=self._sources,
        )

    def _check_new(
        self, approved: planning.Plan, config: Config, terms: dict[str, Any], *, pilot: int = 0
    ) -> None:
        """Refuse the budget of a run that is not there yet, so that no folder is left behind."""
        if not Files(self.out).journal.exists():
            session = Session(self.out)  # not entered
            session.check_budget(Standing("new", approved), config, terms, pilot=pilot)

    def _submitted(self) -> Session:
        session = self._open()
        if not session.state.run:
            raise InputError(f"{self.out} holds no run; submit a plan first")
        return session

    def _given_terms(self, budget: float | str | None) -> dict[str, Any]:
        """Return the terms that are given; the others stay as they are."""
        if budget is None:
            return dict(self._terms)
        return self._terms | {"budget_micros": budgets.parse(str(budget))}

    def _settled(self, index: int) -> Iterator[Report]:
        """Yield the documents of a collected shard that nothing can change any more."""
        session = self._open()
        state = session.state
        later = [s.index for s in state.shards if s.index > index and s.round]
        moved: set[str] = set()
        if later:
            entries = session.files.read_documents(len(state.shards))
            moved = {entry.key for entry in entries if entry.shard in later}
        costs = self._costs(upto=index) if state.shards[index].round else None
        for outcome in collect.read_outcomes(session.files, index):
            if outcome.class_ not in _MAY_CHANGE and outcome.key not in moved:
                yield self._report(index, outcome, costs)

    def _finals(self, only: frozenset[str] | None = None) -> Iterator[Report]:
        session = self._open()
        costs = self._costs() if session.state.round else None
        for final in finals.finals(session.files, session.state):
            if only is None or final.outcome.class_ in only:
                yield self._report(final.shard, final.outcome, costs)

    def _costs(self, upto: int | None = None) -> finals.Costs:
        """Return the tries of documents that were sent again, up to a shard, and their cost."""
        session = self._open()
        return finals.costs(session.files, session.state, receipt.charged, upto=upto)

    def _report(self, index: int, outcome: collect.Outcome, costs: finals.Costs | None) -> Report:
        session = self._open()
        billing = session.state.shards[index].billing
        tries, cost = 1, receipt.charged(outcome, self._settings.model, billing)
        if costs is not None:
            tries, cost = costs.get(outcome.key, (tries, cost))
        has_files = closing.has_files(session.state)
        return Report(
            key=outcome.key,
            status=outcome.class_,
            reason=outcome.reason,
            path=self.out / outcome.output if outcome.output and has_files else None,
            cost_micros=cost,
            tries=tries,
            _answer=partial(formats.answer, session.files, index, outcome),
            _schema=self._schema,
        )


def _sources(docs: Sources | Run | None, rows: object, id_field: str | None) -> Sources:
    """Return where documents come from.

    Raises:
        InputError: nowhere, or from two places.
    """
    if isinstance(docs, Run):
        docs = outputs_of(docs.out)
    if docs is not None and not isinstance(docs, Sources):
        raise TypeError(
            f"docs is a {type(docs).__name__}; write docs=files('folder') or "
            "docs=files('a/*.md', 'b.txt')"
        )
    given = Rows(rows_of(rows))
    if (docs is None) == (not given):
        raise InputError("a run needs docs=files(...) or rows=[...], one of the two")
    return docs or Sources((), given, id_field)
