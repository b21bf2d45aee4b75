"""The settings of a yard: flags over environment over `batchyard.toml`. Checked at start, whole.

[server]
host = "127.0.0.1"
port = 8787
data = "batchyard-data"
public_url = "https://batches.example.com"
allowed_hosts = ["batches.internal"]
requests_per_minute = 60000
queued_requests = 10000000
disk_reserve_mb = 512
models = "models.toml"
workers = 4
ledger = "postgresql://batchyard@db.internal/batchyard"
segments = "s3://bucket/yard"
role = "all"

[cluster]
max = 8

[[workspace]]
id = "wrkspc_reports"
weight = 2
share_max = 0.8

[[upstream]]
name = "claude"
url = "https://api.anthropic.com"
models = ["claude-*"]
key_env = "ANTHROPIC_API_KEY"
slots = 64
timeout = 3600
first_byte_timeout = 600
idle_timeout = 300
stream_above_tokens = 8192
fetches_urls = true
requests_per_minute = 4000
input_tokens_per_minute = 2000000
output_tokens_per_minute = 400000

[[upstream.limit]]
models = ["claude-opus-*"]
requests_per_minute = 1000
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import msgspec

from batchyard import limits
from batchyard.dispatch.ceilings import Limit
from batchyard.errors import ConfigError, shown
from batchyard.fairness import EQUAL, Share, Shares
from batchyard.server import groups, stores
from batchyard.upstream.engine import settings as engines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.server.stores import Role

SIMULATED = "simulated"
_DISK_RESERVE_MB = limits.DISK_RESERVE_BYTES_DEFAULT // limits.MIB
_SERVICE_LINKS = ("tcp://", "udp://", "sctp://")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """One upstream."""

    name: str
    url: str
    models: tuple[str, ...] = ("*",)
    key: str | None = field(default=None, repr=False)
    slots: int = limits.POOL_SLOTS_DEFAULT
    timeout_s: float = limits.UPSTREAM_TIMEOUT_S
    stream_timeout_s: float = limits.UPSTREAM_STREAM_TIMEOUT_S
    first_byte_timeout_s: float = limits.UPSTREAM_FIRST_BYTE_TIMEOUT_S
    idle_timeout_s: float = limits.UPSTREAM_IDLE_TIMEOUT_S
    stream_above_tokens: int | None = limits.STREAM_ABOVE_TOKENS
    fetches_urls: bool = False
    limits: tuple[Limit, ...] = ()
    engine: engines.Settings | None = None
    """Of a model inside the worker's own process."""

    @property
    def is_simulated(self) -> bool:
        """Whether it is the simulated model."""
        return urlsplit(self.url).scheme == SIMULATED

    @property
    def unset_key(self) -> str | None:
        """Return which variable would set its key; None where it has one, or wants none."""
        if self.key is not None or self.is_simulated or self.engine is not None:
            return None
        own = _key_variable(self.name)
        return f"{own} or ANTHROPIC_API_KEY" if _is_hosted(urlsplit(self.url)) else own

    @property
    def gpus(self) -> int:
        """How many GPUs it needs in the process that calls it."""
        return self.engine.tensor_parallel_size if self.engine is not None else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings."""

    host: str
    port: int
    data: Path
    public_url: str | None
    allowed_hosts: frozenset[str]
    requests_per_minute: int = limits.REQUESTS_PER_MINUTE_DEFAULT
    queued_requests: int = limits.QUEUED_REQUESTS_DEFAULT
    disk_reserve_bytes: int = limits.DISK_RESERVE_BYTES_DEFAULT
    models: Path | None = None
    workers: int = 1
    """Processes that call upstreams; a single one is the server itself."""
    ledger: str | None = field(default=None, repr=False)
    """URL of the database, which may hold a password; None for SQLite in the data directory."""
    segments: str | None = None
    """URL of the object store; None for the data directory."""
    role: Role = "all"
    shares: Shares = EQUAL
    upstreams: tuple[UpstreamConfig, ...]
    only: frozenset[str] | None = None
    """Upstreams that this worker takes work of; None for all."""
    groups: tuple[groups.Group, ...] = ()
    """Of workers, for `batchyard cluster`."""


class _Server(msgspec.Struct, forbid_unknown_fields=True):
    host: str | None = None
    port: int | None = None
    data: str | None = None
    public_url: str | None = None
    allowed_hosts: list[str] = []
    requests_per_minute: int | None = None
    queued_requests: int | None = None
    disk_reserve_mb: int | None = None
    models: str | None = None
    workers: int | None = None
    ledger: str | None = None
    segments: str | None = None
    role: str | None = None


class _Workspace(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    weight: float = 1.0
    share_max: float = 1.0


class _Limit(msgspec.Struct, forbid_unknown_fields=True):
    models: list[str]
    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None


class _Upstream(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    url: str
    models: list[str] = msgspec.field(default_factory=lambda: ["*"])
    key_env: str | None = None
    slots: int = limits.POOL_SLOTS_DEFAULT
    timeout: float | None = None
    first_byte_timeout: float = limits.UPSTREAM_FIRST_BYTE_TIMEOUT_S
    idle_timeout: float = limits.UPSTREAM_IDLE_TIMEOUT_S
    stream_above_tokens: int | str = limits.STREAM_ABOVE_TOKENS
    fetches_urls: bool | None = None
    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    limit: list[_Limit] = []


class _File(msgspec.Struct, forbid_unknown_fields=True):
    server: _Server = msgspec.field(default_factory=_Server)
    upstream: list[_Upstream] = []
    workspace: list[_Workspace] = []
    cluster: groups.Section = msgspec.field(default_factory=groups.Section)


def load(  # noqa: PLR0913 - the flags, by keyword
    *,
    file: Path | None,
    environment: Mapping[str, str],
    host: str | None = None,
    port: int | None = None,
    data: Path | None = None,
    upstreams: Sequence[str] = (),
    workers: int | None = None,
    ledger: str | None = None,
    segments: str | None = None,
    role: str | None = None,
) -> Config:
    """Put the settings together.

    Args:
        file: `batchyard.toml`.
        environment: for `BATCHYARD_*` and the keys of upstreams.
        host: flag.
        port: flag.
        data: flag.
        upstreams: flags, `NAME=URL` each; they replace those of the file.
        workers: flag.
        ledger: flag.
        segments: flag.
        role: flag.

    Raises:
        ConfigError: what is wrong, where, and what is allowed.
    """
    settings = _read(file)
    server = settings.server
    count = partial(_counted, server, environment)
    named = [_flag(text) for text in upstreams or _listed(environment, "UPSTREAMS")]
    hosts = _listed(environment, "ALLOWED_HOSTS") or server.allowed_hosts
    workers = _workers(workers, environment.get("BATCHYARD_WORKERS"), server.workers)
    ledger = ledger or environment.get("BATCHYARD_LEDGER") or server.ledger
    segments = segments or environment.get("BATCHYARD_SEGMENTS") or server.segments
    role = role or environment.get("BATCHYARD_ROLE") or server.role or "all"
    chosen = _check_engines(_upstreams(named or settings.upstream, environment), workers)
    return Config(
        host=host or environment.get("BATCHYARD_HOST") or server.host or "127.0.0.1",
        port=_port(port, environment.get("BATCHYARD_PORT"), server.port),
        data=data or Path(environment.get("BATCHYARD_DATA") or server.data or "batchyard-data"),
        public_url=_public_url(environment.get("BATCHYARD_PUBLIC_URL") or server.public_url),
        allowed_hosts=frozenset(name.lower() for name in hosts),
        requests_per_minute=count("requests_per_minute", limits.REQUESTS_PER_MINUTE_DEFAULT),
        queued_requests=count("queued_requests", limits.QUEUED_REQUESTS_DEFAULT),
        disk_reserve_bytes=limits.MIB * count("disk_reserve_mb", _DISK_RESERVE_MB),
        models=_path(environment.get("BATCHYARD_MODELS") or server.models),
        workers=workers,
        ledger=ledger,
        segments=segments,
        role=stores.check(ledger, segments, role, workers),
        shares=_shares(settings.workspace),
        upstreams=chosen,
        only=_only(_listed(environment, "ONLY"), role, chosen),
        groups=groups.parse(settings.cluster, environment, {e.name: e.gpus for e in chosen}),
    )


def ledger_of(*, file: Path | None, environment: Mapping[str, str], ledger: str | None) -> str:
    """Return the URL of the shared ledger, for who needs no other setting.

    Raises:
        ConfigError: there is none, or the file cannot be used.
    """
    found = ledger or environment.get("BATCHYARD_LEDGER") or _read(file).server.ledger
    if not found:
        raise ConfigError(
            "the ledger is needed: --ledger postgresql://..., BATCHYARD_LEDGER, or a settings file"
        )
    return found


def _only(
    names: list[str], role: str, upstreams: Sequence[UpstreamConfig]
) -> frozenset[str] | None:
    """Return the upstreams that a worker is for, where not all of them.

    Raises:
        ConfigError: one of them is not configured, or the process is more than a worker.
    """
    if not names:
        return None
    known = [each.name for each in upstreams]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"BATCHYARD_ONLY: upstream {shown(name)} is not configured; {', '.join(known)} are"
            )
    if role != "worker":
        raise ConfigError(f"BATCHYARD_ONLY is for role worker, and role {role} has all upstreams")
    return frozenset(names)


def _listed(environment: Mapping[str, str], name: str) -> list[str]:
    return environment.get(f"BATCHYARD_{name}", "").split()


def _read(file: Path | None) -> _File:
    if file is None:
        return _File()
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _File)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{file}: {error}") from None


def _flag(text: str) -> _Upstream:
    name, equals, url = text.partition("=")
    if not equals or not url:
        raise ConfigError(
            f"--upstream {shown(text)}: give NAME=URL, such as claude=https://api.anthropic.com "
            "or sim=simulated:"
        )
    return _Upstream(name=name, url=url)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _counted(server: _Server, environment: Mapping[str, str], name: str, default: int) -> int:
    variable = environment.get(f"BATCHYARD_{name.upper()}")
    return _count(name, variable, getattr(server, name), default)


def _count(name: str, environment: str | None, file: int | None, default: int) -> int:
    value: object = environment or (default if file is None else file)
    text = str(value)
    count = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
    if count < 1:
        raise ConfigError(f"{name} {shown(value)}: a whole number from 1 is allowed")
    return count


def _workers(flag: int | None, environment: str | None, file: int | None) -> int:
    text = environment if flag is None else str(flag)
    count = _count("workers", text, file, 1)
    if count > limits.WORKERS_MAX:
        raise ConfigError(f"workers {count}: 1 to {limits.WORKERS_MAX} are allowed")
    return count


def _shares(entries: Sequence[_Workspace]) -> Shares:
    """Return the shares of the workspaces; `*` is all that are not named."""
    named: dict[str, Share] = {}
    for entry in entries:
        where = f"workspace {shown(entry.id)}"
        if not entry.id or entry.id in named:
            raise ConfigError(f"{where}: an id is needed, and each one once")
        if not 0.01 <= entry.weight <= 100:
            raise ConfigError(f"{where}: a weight from 0.01 to 100 is allowed")
        if not 0 < entry.share_max <= 1:
            raise ConfigError(f"{where}: a share_max above 0 and up to 1 is allowed")
        named[entry.id] = Share(entry.weight, entry.share_max)
    return Shares(named, named.pop("*", Share()))


def _port(flag: int | None, environment: str | None, file: int | None) -> int:
    # Kubernetes sets BATCHYARD_PORT=tcp://10.0.0.1:80 in every pod beside a Service `batchyard`
    # (enableServiceLinks). That is where the Service is, and nobody's wish where to listen.
    if environment and environment.startswith(_SERVICE_LINKS):
        environment = None
    value: object = environment if flag is None and environment else flag
    if value is None:
        value = 8787 if file is None else file
    try:
        port = int(str(value))
    except ValueError:
        port = -1
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port {shown(value)}: a number from 0 to 65535 is allowed")
    return port


def _public_url(text: str | None) -> str | None:
    if text is None:
        return None
    parts = _split(text, "public_url")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
        raise ConfigError(f"public_url {shown(text)}: an http or https URL is allowed")
    return text.rstrip("/")


def _split(url: str, where: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port, (parts.hostname or "").encode("idna")  # as a connection will need them
        return parts
    except ValueError as error:
        raise ConfigError(f"{where}: {shown(url)} is not a URL: {error}") from None


def _upstreams(
    entries: Sequence[_Upstream], environment: Mapping[str, str]
) -> tuple[UpstreamConfig, ...]:
    if not entries:
        raise ConfigError(
            "no upstream is configured. Give one, such as --upstream "
            "claude=https://api.anthropic.com, or --upstream sim=simulated: for the simulated model"
        )
    names = [entry.name for entry in entries]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"upstream name {shown(name)}: 1 to 32 of a-z, 0-9, - and _ are allowed"
            )
        if names.count(name) > 1:
            raise ConfigError(f"upstream {name} is configured twice")
    for entry in entries[:-1]:
        if "*" in entry.models:
            raise ConfigError(
                f"upstream {entry.name} takes all models, so those after it would get none; "
                'give it models = ["..."] in batchyard.toml'
            )
    return tuple(_upstream(entry, environment) for entry in entries)


def _upstream(entry: _Upstream, environment: Mapping[str, str]) -> UpstreamConfig:
    parts = _split(entry.url, f"upstream {entry.name}")
    engine = _engine(entry)
    if parts.scheme not in {"http", "https", SIMULATED, engines.SCHEME}:
        raise ConfigError(
            f"upstream {entry.name}: {shown(entry.url)} is not usable; "
            "an http or https URL, simulated: or vllm: is allowed"
        )
    if parts.scheme != SIMULATED and engine is None and (not parts.hostname or parts.username):
        raise ConfigError(
            f"upstream {entry.name}: {shown(parts.hostname or entry.url)}: a host is needed, and "
            "no user or password in the URL"
        )
    if not 1 <= entry.slots <= 100_000:
        raise ConfigError(f"upstream {entry.name}: slots from 1 to 100000 are allowed")
    _check_streaming(entry)
    return UpstreamConfig(
        name=entry.name,
        # Many write /v1, and none means it twice.
        url=entry.url if engine else entry.url.rstrip("/").removesuffix("/v1"),
        models=tuple(entry.models),
        key=_key(entry, parts, environment),
        slots=engine.max_num_seqs if engine else entry.slots,
        # Who sets the one means both; left alone, what streams has longer.
        timeout_s=entry.timeout or limits.UPSTREAM_TIMEOUT_S,
        stream_timeout_s=entry.timeout or limits.UPSTREAM_STREAM_TIMEOUT_S,
        first_byte_timeout_s=entry.first_byte_timeout,
        idle_timeout_s=entry.idle_timeout,
        stream_above_tokens=_stream_above(entry),
        fetches_urls=_is_hosted(parts) if entry.fetches_urls is None else entry.fetches_urls,
        limits=_limits(entry),
        engine=engine,
    )


def _engine(entry: _Upstream) -> engines.Settings | None:
    """Return the settings of an upstream whose model is inside the worker; None for any other."""
    if not engines.is_engine(entry.url):
        return None
    try:
        found = engines.Settings.parse(entry.url, entry.slots)
    except ConfigError as error:
        raise ConfigError(f"upstream {entry.name}: {error}") from None
    if entry.key_env is not None or entry.fetches_urls is not None:
        raise ConfigError(
            f"upstream {entry.name}: key_env and fetches_urls are not for a model in the process"
        )
    return found


def _check_engines(
    upstreams: tuple[UpstreamConfig, ...], workers: int
) -> tuple[UpstreamConfig, ...]:
    """Return the upstreams; refuse several workers in front of one model: each would load it."""
    names = [each.name for each in upstreams if each.engine is not None]
    if names and workers > 1:
        raise ConfigError(
            f"upstream {names[0]}: each worker loads the model, so workers {workers} is not "
            "allowed; start a process with --role worker for each GPU"
        )
    return upstreams


def _limits(entry: _Upstream) -> tuple[Limit, ...]:
    """Return the ceilings of an upstream: one over all its models, and those of its tables."""
    whole = _Limit(
        ["*"],
        entry.requests_per_minute,
        entry.input_tokens_per_minute,
        entry.output_tokens_per_minute,
    )
    found = []
    for index, each in enumerate([whole, *entry.limit]):
        where = f"upstream {entry.name}" + (f", limit {index}" if index else "")
        amounts = {
            "requests_per_minute": each.requests_per_minute,
            "input_tokens_per_minute": each.input_tokens_per_minute,
            "output_tokens_per_minute": each.output_tokens_per_minute,
        }
        for name, amount in amounts.items():
            if amount is not None and not 1 <= amount <= 10**12:
                raise ConfigError(f"{where}: {name} {amount}: 1 to {10**12} are allowed")
        is_empty = all(amount is None for amount in amounts.values())
        if index and (is_empty or not each.models):
            raise ConfigError(f"{where}: models and one of {', '.join(amounts)} are needed")
        if not is_empty:
            found.append(Limit(tuple(each.models), *amounts.values()))
    return tuple(found)


def _check_streaming(entry: _Upstream) -> None:
    timeouts = {
        "timeout": entry.timeout,
        "first_byte_timeout": entry.first_byte_timeout,
        "idle_timeout": entry.idle_timeout,
    }
    for name, seconds in timeouts.items():
        if seconds is not None and not 1 <= seconds <= 86_400:
            article = "an" if name[0] in "ai" else "a"
            allowed = f"{article} {name} from 1 to 86400 seconds is allowed"
            raise ConfigError(f"upstream {entry.name}: {allowed}")
    above = entry.stream_above_tokens
    if above != "never" and (isinstance(above, str) or above < 0):
        raise ConfigError(
            f"upstream {entry.name}: stream_above_tokens {shown(above)}: a whole number from 0, or "
            '"never", is allowed'
        )


def _stream_above(entry: _Upstream) -> int | None:
    above = entry.stream_above_tokens
    return above if isinstance(above, int) else None


def _key(entry: _Upstream, url: SplitResult, environment: Mapping[str, str]) -> str | None:
    """Return an upstream's key. `ANTHROPIC_API_KEY` goes to its own host only, unless named."""
    if entry.key_env is not None:
        key = environment.get(entry.key_env)
        if not key:
            raise ConfigError(f"upstream {entry.name}: {entry.key_env} is not set")
        return key
    own = _key_variable(entry.name)
    if environment.get(own):
        return environment[own]
    return environment.get("ANTHROPIC_API_KEY") if _is_hosted(url) else None


def _key_variable(name: str) -> str:
    return f"BATCHYARD_UPSTREAM_{name.upper().replace('-', '_')}_KEY"


def _is_hosted(url: SplitResult) -> bool:
    return (url.scheme, url.hostname) == ("https", "api.anthropic.com")
