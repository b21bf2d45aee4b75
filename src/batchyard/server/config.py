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

[[upstream]]
name = "claude"
url = "https://api.anthropic.com"
models = ["claude-*"]
key_env = "ANTHROPIC_API_KEY"
slots = 64
timeout = 3600
fetches_urls = true
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import msgspec

from batchyard import limits
from batchyard.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIMULATED = "simulated"
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
    fetches_urls: bool = False

    @property
    def is_simulated(self) -> bool:
        """Whether it is the simulated model."""
        return urlsplit(self.url).scheme == SIMULATED


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
    upstreams: tuple[UpstreamConfig, ...]


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


class _Upstream(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    url: str
    models: list[str] = msgspec.field(default_factory=lambda: ["*"])
    key_env: str | None = None
    slots: int = limits.POOL_SLOTS_DEFAULT
    timeout: float = limits.UPSTREAM_TIMEOUT_S
    fetches_urls: bool | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    server: _Server = msgspec.field(default_factory=_Server)
    upstream: list[_Upstream] = []


def load(
    *,
    file: Path | None,
    environment: Mapping[str, str],
    host: str | None = None,
    port: int | None = None,
    data: Path | None = None,
    upstreams: Sequence[str] = (),
) -> Config:
    """Put the settings together.

    Args:
        file: `batchyard.toml`, if any.
        environment: for `BATCHYARD_*` and the keys of upstreams.
        host: flag.
        port: flag.
        data: flag.
        upstreams: flags, `NAME=URL` each; they replace those of the file.

    Raises:
        ConfigError: what is wrong, where, and what is allowed.
    """
    settings = _read(file)
    server = settings.server
    named = upstreams or _listed(environment, "UPSTREAMS")
    entries = [_flag(text) for text in named] or settings.upstream
    hosts = _listed(environment, "ALLOWED_HOSTS") or server.allowed_hosts
    return Config(
        host=host or environment.get("BATCHYARD_HOST") or server.host or "127.0.0.1",
        port=_port(port, environment.get("BATCHYARD_PORT"), server.port),
        data=data or Path(environment.get("BATCHYARD_DATA") or server.data or "batchyard-data"),
        public_url=_public_url(environment.get("BATCHYARD_PUBLIC_URL") or server.public_url),
        allowed_hosts=frozenset(name.lower() for name in hosts),
        requests_per_minute=_count(
            "requests_per_minute",
            environment.get("BATCHYARD_REQUESTS_PER_MINUTE"),
            server.requests_per_minute,
            limits.REQUESTS_PER_MINUTE_DEFAULT,
        ),
        queued_requests=_count(
            "queued_requests",
            environment.get("BATCHYARD_QUEUED_REQUESTS"),
            server.queued_requests,
            limits.QUEUED_REQUESTS_DEFAULT,
        ),
        disk_reserve_bytes=limits.MIB
        * _count(
            "disk_reserve_mb",
            environment.get("BATCHYARD_DISK_RESERVE_MB"),
            server.disk_reserve_mb,
            limits.DISK_RESERVE_BYTES_DEFAULT // limits.MIB,
        ),
        models=_path(environment.get("BATCHYARD_MODELS") or server.models),
        upstreams=_upstreams(entries, environment),
    )


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


def _count(name: str, environment: str | None, file: int | None, default: int) -> int:
    value: object = environment or (default if file is None else file)
    text = str(value)
    count = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
    if count < 1:
        raise ConfigError(f"{name} {shown(value)}: a whole number from 1 is allowed")
    return count


def _port(flag: int | None, environment: str | None, file: int | None) -> int:
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
        return urlsplit(url)
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
    if parts.scheme not in {"http", "https", SIMULATED}:
        raise ConfigError(
            f"upstream {entry.name}: {shown(entry.url)} is not usable; "
            "an http or https URL or simulated: is allowed"
        )
    if parts.scheme != SIMULATED and (not parts.hostname or parts.username):
        raise ConfigError(
            f"upstream {entry.name}: {shown(parts.hostname or entry.url)}: a host is needed, and "
            "no user or password in the URL"
        )
    if not 1 <= entry.slots <= 100_000:
        raise ConfigError(f"upstream {entry.name}: slots from 1 to 100000 are allowed")
    if not 1 <= entry.timeout <= 86_400:
        raise ConfigError(f"upstream {entry.name}: a timeout from 1 to 86400 seconds is allowed")
    return UpstreamConfig(
        name=entry.name,
        url=entry.url.rstrip("/").removesuffix("/v1"),  # many write it, and none means it twice
        models=tuple(entry.models),
        key=_key(entry, parts, environment),
        slots=entry.slots,
        timeout_s=entry.timeout,
        fetches_urls=_is_hosted(parts) if entry.fetches_urls is None else entry.fetches_urls,
    )


def _key(entry: _Upstream, url: SplitResult, environment: Mapping[str, str]) -> str | None:
    """Return an upstream's key. `ANTHROPIC_API_KEY` goes to its own host only, unless named."""
    if entry.key_env is not None:
        key = environment.get(entry.key_env)
        if not key:
            raise ConfigError(f"upstream {entry.name}: {entry.key_env} is not set")
        return key
    own = f"BATCHYARD_UPSTREAM_{entry.name.upper().replace('-', '_')}_KEY"
    if environment.get(own):
        return environment[own]
    return environment.get("ANTHROPIC_API_KEY") if _is_hosted(url) else None


def _is_hosted(url: SplitResult) -> bool:
    return (url.scheme, url.hostname) == ("https", "api.anthropic.com")
