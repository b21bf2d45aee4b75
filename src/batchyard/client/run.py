"""The library: a run is a folder; opening it again continues it.

run = Run("reports", docs=files("readmes/**/*.md"), prompt="report.md.j2",
          model="claude-opus-4-8", max_tokens=8_000)
run.submit(run.plan())
for doc in run:
    print(doc.key, doc.status, doc.path)
print(run.report().paid_micros)
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from batchyard import limits
from batchyard.client import collect, receipt
from batchyard.client import plan as planning
from batchyard.client.documents import Sources
from batchyard.client.problems import InputError, NeedsAttention
from batchyard.client.session import Session
from batchyard.client.template import Template

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from batchyard.client.journal import Config
    from batchyard.client.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one document.

    `status` is `succeeded`, `truncated`, `paused` (these three have a `path`), `refused`, `empty`,
    `needs_fix`, `billing`, `retryable`, `expired`, `canceled` or `missing`; `reason` says why.
    `cost_micros` is what was charged for it in micro-dollars, None when that is not known.
    """

    key: str
    status: str
    reason: str | None
    path: Path | None
    cost_micros: int | None

    @property
    def text(self) -> str | None:
        """Return the report, read from its file; None when there is none."""
        return None if self.path is None else self.path.read_text(encoding="utf-8")


class Run:
    """Documents, a prompt and a model, and the folder where the reports go.

    Use it in a `with` block or call `close`: with `local=True` a server runs until then.
    """

    def __init__(  # noqa: PLR0913 - the options of a run, by keyword
        self,
        out: str | os.PathLike[str],
        *,
        prompt: str | os.PathLike[str],
        model: str,
        max_tokens: int,
        docs: Sources | None = None,
        rows: Iterable[Mapping[str, Any]] = (),
        id: str | None = None,  # noqa: A002 - the field that names a row
        system: str | os.PathLike[str] | None = None,
        betas: Iterable[str] = (),
        suffix: str = ".md",
        shard_size: int = limits.RUN_BATCH_REQUESTS_DEFAULT,
        base_url: str | None = None,
        api_key: str | None = None,
        local: bool = False,
        upstreams: Iterable[str] = (),
    ) -> None:
        """Name a run; nothing is read, written or sent yet.

        Args:
            out: the output folder. A run that is in it already is continued.
            prompt: path of the template of the user prompt.
            model: as the server knows it.
            max_tokens: of each report.
            docs: from `files`; or give `rows`.
            rows: one mapping of fields for each document.
            id: the field that names a row; without it `id`, else the row's number.
            system: path of the template of the system prompt.
            betas: values of `anthropic-beta`.
            suffix: of the reports.
            shard_size: requests in one batch, at most.
            base_url: of the server; default `ANTHROPIC_BASE_URL`, else the hosted API.
            api_key: default `ANTHROPIC_API_KEY`.
            local: start a server for the duration of the run.
            upstreams: of the local server, as `name=url`.
        """
        self.out = Path(out)
        if docs is not None and not isinstance(docs, Sources):
            raise TypeError(
                f"docs is a {type(docs).__name__}; write docs=files('folder') or "
                "docs=files('a/*.md', 'b.txt')"
            )
        kept = tuple(rows)
        if (docs is None) == (not kept):
            raise InputError("a run needs docs=files(...) or rows=[...], one of the two")
        self._sources = docs or Sources((), kept, id)
        self._prompt, self._system = Path(prompt), Path(system) if system else None
        self._settings = planning.Settings(
            model=model,
            max_tokens=max_tokens,
            betas=tuple(betas),
            shard_requests=shard_size,
            suffix=suffix,
        )
        self._base_url, self._api_key = base_url, api_key
        self._local, self._upstreams = local, tuple(upstreams)
        self._session: Session | None = None
        self._pipeline: Pipeline | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(self) -> planning.Plan:
        """Read, render, validate and price everything; sends and spends nothing.

        Raises:
            InputError: something is not usable; the message says what and where.
        """
        made = planning.make(
            self._sources.read(outside=self.out),
            Template(self._prompt),
            Template(self._system) if self._system else None,
            self._settings,
        )
        return replace(made, skipped=self._sources.skipped(outside=self.out))

    def submit(self, approved: planning.Plan) -> None:
        """Send a plan, each batch exactly once; safe to call again.

        A batch that the server does not take keeps no other from being sent; iterating over the run
        tells of it at the end.

        Raises:
            InputsChanged: the folder holds a run of other inputs.
            RunInUse: another process works on it.
            NeedsAttention: the server takes nothing; the message says what to do.
        """
        with self._closing_after_failure():
            session = self._open()
            session.begin(approved, self.config(approved))
            if session.state.finished_us is None:
                self._connected().submit()

    def __iter__(self) -> Iterator[Report]:
        """Yield every document when its report is on disk; waits, and continues after a crash.

        Raises:
            InputError: nothing was submitted.
            NeedsAttention: a part of the run cannot be finished; all others were yielded.
        """
        with self._closing_after_failure():
            yield from self._iterated()

    def _iterated(self) -> Iterator[Report]:
        session = self._open()
        if not session.state.run:
            raise InputError(f"{self.out} holds no run; submit a plan first")
        done = {shard.index for shard in session.state.shards if shard.is_settled}
        for index in sorted(done):
            yield from self._reports(index)
        if session.state.finished_us is not None:
            return
        pipeline = self._connected()
        pipeline.submit()
        while not pipeline.is_done:
            is_idle = True
            for index in pipeline.advance():
                is_idle = False
                yield from self._reports(index)
            if is_idle:
                pipeline.wait()
        pipeline.finish()

    def report(self) -> receipt.Receipt:
        """Return the receipt of the finished run.

        Raises:
            NeedsAttention: it is not finished; iterate over the run first.
        """
        with self._closing_after_failure():
            session = self._open()
            done = receipt.read(session.files) if session.state.finished_us is not None else None
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
            self._session = Session(self.out, api_key=self._api_key).__enter__()
        return self._session

    def _connected(self) -> Pipeline:
        if self._pipeline is None:
            self._pipeline = self._open().connect()
        return self._pipeline

    def config(self, approved: planning.Plan) -> Config:
        """Return what the journal would keep of this run.

        Raises:
            InputError: options exclude each other.
        """
        return make_config(
            approved,
            prompt=self._prompt,
            system=self._system,
            base_url=self._base_url,
            local=self._local,
            upstreams=self._upstreams,
        )

    def _reports(self, index: int) -> Iterator[Report]:
        session = self._open()
        billing = session.state.shards[index].billing
        for outcome in collect.read_outcomes(session.files, index):
            yield Report(
                key=outcome.key,
                status=outcome.class_,
                reason=outcome.reason,
                path=self.out / outcome.output if outcome.output else None,
                cost_micros=receipt.charged(outcome, self._settings.model, billing),
            )


def make_config(
    approved: planning.Plan,
    *,
    prompt: Path,
    system: Path | None,
    base_url: str | None,
    local: bool,
    upstreams: tuple[str, ...],
) -> Config:
    """Return what the journal keeps of a run.

    Raises:
        InputError: options exclude each other, or the address is not one.
    """
    from batchyard.client.api import checked_url  # noqa: PLC0415 - the HTTP client
    from batchyard.client.journal import Config  # noqa: PLC0415
    from batchyard.client.local import check_upstreams, default_upstreams  # noqa: PLC0415

    if local and base_url:
        raise InputError("--local starts a server of its own; it excludes --base-url")
    if upstreams and not local:
        raise InputError("--upstream belongs to the server of --local")
    if local and not upstreams:
        upstreams = default_upstreams()
    check_upstreams(upstreams)
    settings = approved.settings
    return Config(
        model=settings.model,
        max_tokens=settings.max_tokens,
        prompt=str(prompt),
        prompt_sha256=approved.prompt_sha256,
        system=str(system) if system else None,
        system_sha256=approved.system_sha256,
        betas=settings.betas,
        suffix=settings.suffix,
        shard_requests=settings.shard_requests,
        local=local,
        base_url=None if local else checked_url(base_url),
        upstreams=upstreams,
    )
