"""Groups of workers: how many there may be, of which upstreams, and what a worker needs. Pure.

They are the section `[cluster]` of the settings, which `batchyard cluster up` goes by. An upstream
that no group names belongs to the group `workers`.

[cluster]
min = 1
max = 8
requests_per_worker = 10000
scale_down_after = 60
cpus = 1

[[cluster.group]]
name = "gpu"
upstreams = ["llama"]
min = 0
max = 4
cpus = 4
gpus = 1
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from batchyard.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

REST = "workers"
"""The group of the upstreams that no group names."""

WORKERS_MAX = 10_000
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_MIN = 1
_MAX = 4
_REQUESTS_PER_WORKER = 10_000
_SCALE_DOWN_AFTER_S = 60.0
_CPUS = 1.0
_SECONDS_MAX = 86_400
_T = TypeVar("_T", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Workers of the same kind."""

    name: str
    upstreams: tuple[str, ...]
    """By name: whose pools its workers take work from."""
    workers_min: int = _MIN
    workers_max: int = _MAX
    requests_per_worker: int = _REQUESTS_PER_WORKER
    """Unanswered requests for each worker; a further one is started when there are more."""
    scale_down_after_s: float = _SCALE_DOWN_AFTER_S
    """For how long fewer workers must have been enough before one leaves."""
    cpus: float = _CPUS
    """For each worker; what the cluster must have free for it."""
    gpus: float = 0.0
    """For each worker, for upstreams that hold the model in its process."""


class Section(msgspec.Struct, forbid_unknown_fields=True):
    """`[cluster]`, as it stands in the file."""

    min: int = _MIN
    max: int = _MAX
    requests_per_worker: int = _REQUESTS_PER_WORKER
    scale_down_after: float = _SCALE_DOWN_AFTER_S
    cpus: float = _CPUS
    group: list[Entry] = []


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """`[[cluster.group]]`: what it leaves out is as in `[cluster]`."""

    name: str
    upstreams: list[str]
    min: int | None = None
    max: int | None = None
    requests_per_worker: int | None = None
    scale_down_after: float | None = None
    cpus: float | None = None
    gpus: float | None = None


def parse(
    section: Section, environment: Mapping[str, str], upstreams: Mapping[str, int]
) -> tuple[Group, ...]:
    """Return the groups, in the order of the file, that of the rest last.

    Args:
        section: of the file.
        environment: for `BATCHYARD_CLUSTER_MIN` and `BATCHYARD_CLUSTER_MAX`, which replace those
            of the section.
        upstreams: all that are configured, by name, with the GPUs that each needs in a worker.

    Raises:
        ConfigError: what is wrong, where, and what is allowed.
    """
    section = msgspec.structs.replace(
        section,
        min=_number(environment, "BATCHYARD_CLUSTER_MIN", section.min),
        max=_number(environment, "BATCHYARD_CLUSTER_MAX", section.max),
    )
    groups: list[Group] = []
    taken: dict[str, str] = {}
    for entry in section.group:
        where = f"cluster group {shown(entry.name)}"
        if not _NAME.fullmatch(entry.name) or entry.name == REST:
            raise ConfigError(
                f"{where}: a name of 1 to 32 of a-z, 0-9, - and _ is allowed, but {REST}, which is "
                "the group of all other upstreams"
            )
        if entry.name in (group.name for group in groups):
            raise ConfigError(f"{where} is there twice")
        if not entry.upstreams:
            raise ConfigError(f"{where}: upstreams are needed, by their names")
        for name in entry.upstreams:
            if name not in upstreams:
                known = ", ".join(upstreams)
                raise ConfigError(f"{where}: upstream {shown(name)} is not configured; {known} are")
            if name in taken:
                raise ConfigError(f"{where}: upstream {name} is in group {taken[name]} already")
            taken[name] = entry.name
        groups.append(_group(section, entry, upstreams, where))
    rest = [name for name in upstreams if name not in taken]
    if rest:
        entry = Entry(name=REST, upstreams=rest)
        groups.append(_group(section, entry, upstreams, "cluster"))
    return tuple(groups)


def _group(section: Section, entry: Entry, upstreams: Mapping[str, int], where: str) -> Group:
    after_s = _or(entry.scale_down_after, section.scale_down_after)
    group = Group(
        name=entry.name,
        upstreams=tuple(entry.upstreams),
        workers_min=_or(entry.min, section.min),
        workers_max=_or(entry.max, section.max),
        requests_per_worker=_or(entry.requests_per_worker, section.requests_per_worker),
        scale_down_after_s=after_s,
        cpus=_or(entry.cpus, section.cpus),
        gpus=sum(upstreams[name] for name in entry.upstreams) if entry.gpus is None else entry.gpus,
    )
    if not 0 <= group.workers_min <= group.workers_max <= WORKERS_MAX or not group.workers_max:
        raise ConfigError(
            f"{where}: min {group.workers_min}, max {group.workers_max}: a min from 0 and a max "
            f"from 1 to {WORKERS_MAX} that is not below it are allowed"
        )
    if group.requests_per_worker < 1:
        raise ConfigError(f"{where}: requests_per_worker: a whole number from 1 is allowed")
    if not 0 <= after_s <= _SECONDS_MAX:
        raise ConfigError(f"{where}: scale_down_after: 0 to {_SECONDS_MAX} seconds are allowed")
    for name, amount in (("cpus", group.cpus), ("gpus", group.gpus)):
        if not 0 <= amount <= 1_000 or (amount > 1 and amount != int(amount)):
            raise ConfigError(
                f"{where}: {name} {amount:g}: a part of one or a whole number up to 1000 is allowed"
            )
    return group


def _number(environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ConfigError(f"{variable} {shown(text)}: a whole number is allowed")
    return int(text)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
