"""Documents whose request was not valid, rendered once more after a template or an option changed.

What comes out as it was is not sent: it would be refused again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchyard.client.inputs.documents import RUN, STDIN, Sources
from batchyard.client.inputs.template import Template
from batchyard.client.planning import plan as planning
from batchyard.client.problems import InputError
from batchyard.client.running import billing, rounds

if TYPE_CHECKING:
    from batchyard.client.planning.plan import Plan, Settings
    from batchyard.client.running.journal import Config
    from batchyard.client.running.session import Session

_CLASS = "needs_fix"


@dataclass(frozen=True, slots=True)
class Change:
    """A round of documents that come out otherwise than before: `same` do not, or are gone.

    `micros` is what it can cost at most, None when that is not known.
    """

    plan: Plan
    documents: int
    same: int
    micros: int | None

    @property
    def text(self) -> str:
        """Return what is sent, in words."""
        text = f"sent again with a change: {self.documents:,}"
        return text + (f"; as they were, or gone: {self.same:,}" if self.same else "")


def begin(session: Session, change: Change) -> None:
    """Add the round to the run, at its server; whoever goes on with it sends it."""
    session.go_back()
    session.extend(change.plan.shards, {_CLASS: change.documents})


def prepare(
    session: Session, *, max_tokens: int | None = None, sources: Sources | None = None
) -> Change:
    """Return a round of the documents that need a fix; nothing is written or sent.

    Args:
        session: of a run.
        max_tokens: another output limit for them.
        sources: where the documents are; None for where they were when the run began.

    Raises:
        InputError: no document needs a fix, none came out otherwise than before, the new requests
            would be refused too, it is not known where the documents are, or the run, canceled or
            asked for one by one, is not at its end.
    """
    session.check_change()
    state, files = session.state_behind, session.files
    config = state.config
    assert config is not None
    wanted = {
        last.outcome.key
        for last in rounds.last_outcomes(files, state)
        if last.outcome.class_ == _CLASS
    }
    if not wanted:
        raise InputError(f"no document of {files.out} needs a fix")
    before = {e.key: e for e in files.read_documents(len(state.shards)) if e.key in wanted}
    found = (sources or _sources(config, files.out)).read(outside=files.out)
    made = planning.make(
        [document for document in found if document.key in wanted],
        Template(_path(config, config.prompt)),
        Template(_path(config, config.system)) if config.system else None,
        _settings(config, max_tokens),
    )
    digests = {key: entry.request for key, entry in before.items()}
    changed = {
        each.key
        for request in made.requests
        for each in request.documents()
        if request.digest != digests[each.key]
    }
    if not changed:
        raise InputError(
            f"nothing was sent again: what needs a fix comes out as it was sent: edit "
            f"{config.prompt} or give --max-tokens"
        )
    names = {key: entry.output for key, entry in before.items()}
    some = planning.subset(made, changed, round_=state.round + 1, names=names)
    charges = billing.presumed(state)
    cost = some.batch if charges == "batch" else some.synchronous
    micros = None if cost is None or some.unbounded else cost.ceiling
    micros = 0 if charges == "simulated" else micros
    return Change(some, len(changed), len(wanted) - len(changed), micros)


def places(sources: Sources) -> tuple[str, ...]:
    """Return the patterns of sources that can be read again from anywhere; empty if they cannot."""
    if sources.rows or STDIN in sources.patterns:
        return ()
    return tuple(_absolute(pattern) for pattern in sources.patterns)


def _absolute(pattern: str) -> str:
    if pattern.startswith("sql:"):
        return pattern
    scheme = RUN if pattern.startswith(RUN) else ""
    return scheme + str(Path(pattern.removeprefix(scheme)).absolute())


def _sources(config: Config, out: Path) -> Sources:
    if not config.sources:
        raise InputError(
            f"where the documents of {out} are is not known: they came through a pipe or from "
            "Python, where Run.retry(with_change=True) does this"
        )
    return replace(Sources(config.sources, (), config.id_field), encoding=config.encoding)


def _path(config: Config, path: str) -> Path:
    return Path(config.folder or "", path)


def _settings(config: Config, max_tokens: int | None) -> Settings:
    return planning.Settings(
        model=config.model,
        max_tokens=max_tokens or config.max_tokens,
        betas=config.betas,
        shard_requests=config.shard_requests,
        suffix=config.suffix,
        params=config.params,
        override=config.override,
        cache=config.cache,  # type: ignore[arg-type] # checked with the other settings
        schema=config.schema,
        name=config.name,
    )
