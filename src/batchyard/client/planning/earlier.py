"""How long the answers of earlier runs of the same prompt were: a better view than a guess.

Reads the list of this user's runs and the files of those that match. Only runs of the same
templates, model and output limit are taken, and only when their model was a real one: the latest
ones, until there are enough answers. So a trial of three documents does not outweigh five hundred.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from batchyard.client.planning import plan as planning
from batchyard.client.problems import JournalError
from batchyard.client.results.collect import read_outcomes
from batchyard.client.running import registry
from batchyard.client.running.folder import Files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from batchyard.client.planning.plan import Plan
    from batchyard.client.running.journal import Config, State

_RUNS_MAX = 30  # looked at, the latest first
_ANSWERS_MAX = 20_000  # of one run
_ANSWERS_ENOUGH, _ANSWERS_MIN = 100, 3
_SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class Seen:
    """Output tokens of one answer: a quarter have fewer than `low`; `likely` is the mean."""

    low: float
    likely: float
    answers: int
    runs: tuple[str, ...]
    """Their names, the latest first."""


def with_earlier(plan: Plan, config: Config, out: Path) -> Plan:
    """Return the plan with the output that earlier runs of it had, as it is when there is none.

    Args:
        plan: of this run.
        config: of this run.
        out: its folder, whose own earlier rounds come first.
    """
    seen = look(config, out)
    if seen is None:
        return plan
    basis = replace(
        plan.basis,
        output_tokens=(seen.low, seen.likely),
        output_source=f"as in {_named(seen.runs)}, {seen.answers:,} answers",
    )
    return planning.repriced(plan, basis)


def look(config: Config, out: Path) -> Seen | None:
    """Return what the answers of the latest runs of the same prompt were like."""
    folders = [out.resolve(), *(known.path for known in islice(registry.known(), _RUNS_MAX))]
    tokens: list[int] = []
    runs: list[str] = []
    for folder in dict.fromkeys(folders):
        files = Files(folder)
        try:
            state = files.read_state()
            if state.config is None or not _is_alike(state.config, config):
                continue
            found = list(islice(_output_tokens(files, state), _ANSWERS_MAX))
        except (JournalError, OSError, ValueError):
            continue  # a run that cannot be read is no reason not to plan another one
        if found:
            tokens += found
            runs.append(folder.name)
        if len(tokens) >= _ANSWERS_ENOUGH:
            break
    if len(tokens) < _ANSWERS_MIN:
        return None
    tokens.sort()
    low = tokens[len(tokens) // 4]
    return Seen(low, sum(tokens) / len(tokens), len(tokens), tuple(runs))


def _named(runs: Sequence[str]) -> str:
    more = len(runs) - 1
    return f"{runs[0]} and {more} more run{'s' if more > 1 else ''}" if more else runs[0]


def _is_alike(one: Config, other: Config) -> bool:
    return (
        one.prompt_sha256 == other.prompt_sha256
        and one.system_sha256 == other.system_sha256
        and one.model == other.model
        and one.max_tokens == other.max_tokens
        and one.params == other.params
    )


def _output_tokens(files: Files, state: State) -> Iterator[int]:
    for shard in state.shards:
        if shard.billing in {None, _SIMULATED}:
            continue
        try:
            for outcome in read_outcomes(files, shard.index):
                if outcome.usage is not None and outcome.usage.output_tokens:
                    yield outcome.usage.output_tokens
        except FileNotFoundError:
            continue  # not collected yet
