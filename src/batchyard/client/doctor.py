"""Checks of a machine, a key and a server before a run: one finding each, with what to do.

Nothing here costs anything or changes anything at a server: the list of batches is read, once.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import urllib.request
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from batchyard import __version__, limits
from batchyard.client.answers import ApiError, Unreachable
from batchyard.client.problems import InputError, JournalError
from batchyard.client.running import at_once, registry
from batchyard.client.running.folder import Files
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchyard.client.answers import Page
    from batchyard.client.api import Api
    from batchyard.client.running.journal import Config

Level = Literal["ok", "warn", "FAIL"]

SKEW_WARN_S = 30
DISK_WARN_BYTES, DISK_FAIL_BYTES = 1024 * limits.MIB, 100 * limits.MIB
FILES_WARN, FILES_FAIL = 256, 64
_PYTHON_MIN = (3, 11)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_NO_KEY = "none"  # shows whether anybody answers; no server takes it for a key of somebody
_EXTRAS = (
    ("data", ("pyarrow", "sqlalchemy"), "Parquet files and sql: sources"),
    ("schema", ("jsonschema_rs",), "--schema with a JSON Schema file"),
)
_CERTIFICATE = ("certificate", "tls", "ssl", "handshake")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `remedy` is what to do about it, empty where it is ok."""

    name: str
    level: Level
    text: str
    remedy: str = ""


def examine(
    out: Path | None = None, *, base_url: str | None = None, api_key: str | None = None
) -> Iterator[Finding]:
    """Yield what every check finds, as it is made; raises nothing.

    Args:
        out: the output folder of a run, there already or not; None for the folder of now.
        base_url: default that of the run in `out`, `ANTHROPIC_BASE_URL`, else the hosted API.
        api_key: default `ANTHROPIC_API_KEY`.
    """
    yield _versions()
    yield from _extras()
    yield _descriptors()
    folder = out or Path()
    yield from _disk(folder)
    yield _known_runs()
    config: Config | None = None
    if out is not None:
        try:
            state = Files(out).read_state()
        except (JournalError, OSError) as error:
            yield Finding("run", "FAIL", f"the journal of {out} cannot be read: {error}")
        else:
            config = state.config and at_once.behind(state.config)
            yield _run(out, state.run, registry.word(state, is_running=False))
    if config is not None and config.local and base_url is None:
        yield Finding("server", "ok", "the run has a server of its own, which it starts (--local)")
        return
    url = base_url or (config.base_url if config is not None else None)
    yield from _server(url, api_key or os.environ.get("ANTHROPIC_API_KEY"))


# The machine


def _versions() -> Finding:
    python = ".".join(map(str, sys.version_info[:3]))
    text = f"batchyard {__version__}, Python {python}, {_installed('anthropic')}"
    if sys.version_info[:2] < _PYTHON_MIN:
        return Finding("versions", "FAIL", text, "Python 3.11 or later is needed")
    return Finding("versions", "ok", text)


def _installed(package: str) -> str:
    try:
        return f"{package} SDK {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} SDK not installed (not needed)"


def _extras() -> Iterator[Finding]:
    for extra, modules, what in _EXTRAS:
        missing = [name for name in modules if util.find_spec(name) is None]
        text = f"batchyard[{extra}] is installed: {what}"
        if missing:
            text = f"not installed: {what} need it; pip install 'batchyard[{extra}]'"
        yield Finding(f"extra {extra}", "ok", text)


def _descriptors() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,} open files"
    if soft == resource.RLIM_INFINITY or soft >= FILES_WARN:
        return Finding("open files", "ok", text)
    level: Level = "warn" if soft >= FILES_FAIL else "FAIL"
    return Finding("open files", level, text, "raise it in this shell: ulimit -n 1024")


def _disk(folder: Path) -> Iterator[Finding]:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        yield Finding("folder", "FAIL", f"{there} is not a folder", "give another one")
        return
    how = "" if there == folder else f" ({folder} is made when a run starts)"
    try:
        with tempfile.TemporaryFile(dir=there, prefix=".batchyard-doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(there).free
    except OSError as error:
        remedy = "choose a folder that you may write in, or free some space"
        yield Finding("folder", "FAIL", f"{there}: {error.strerror or error}", remedy)
        return
    yield Finding("folder", "ok", f"{there.absolute()} can be written{how}")
    text = f"{free // limits.MIB:,} MiB free"
    remedy = "free some: a run keeps requests and results, about twice the size of its inputs"
    if free >= DISK_WARN_BYTES:
        yield Finding("disk", "ok", text)
    else:
        yield Finding("disk", "warn" if free >= DISK_FAIL_BYTES else "FAIL", text, remedy)


def _known_runs() -> Finding:
    path = registry.location()
    try:
        count = len(registry.known())
    except OSError as error:
        text = f"{path} cannot be read: {error.strerror}"
        return Finding(
            "list of runs", "warn", text, "`batchyard ls` shows nothing; runs still work"
        )
    return Finding("list of runs", "ok", f"{count:,} in {path}")


def _run(out: Path, run: str, word: str) -> Finding:
    return Finding("run", "ok", f"{out}: {word}" if run else f"{out} holds no run yet")


# The server


def _server(url: str | None, key: str | None) -> Iterator[Finding]:
    """Yield what can be said of the address, the key and the server."""
    from batchyard.client.api import Api, checked_url  # noqa: PLC0415 - the HTTP client

    try:
        base_url = checked_url(url)
    except InputError as error:
        yield Finding("base URL", "FAIL", error.message, "correct --base-url or ANTHROPIC_BASE_URL")
        return
    yield _proxy(base_url)
    has_key = bool(key)
    if key is None or not key.strip():
        yield Finding(
            "key", "FAIL", "ANTHROPIC_API_KEY is not set",
            "export ANTHROPIC_API_KEY=…; a yard without keys of its own takes any",
        )  # fmt: skip
        key, has_key = _NO_KEY, False
    elif key != key.strip() or not key.isprintable() or not key.isascii():
        yield Finding(
            "key", "FAIL", "the key holds white space or characters that no key has",
            "set ANTHROPIC_API_KEY again, without line end and quotes",
        )  # fmt: skip
        return
    api = Api(base_url, key, pause=lambda _: True)
    try:
        for finding in _asked(api, has_key=has_key):
            # A refusal may repeat what it refuses.
            yield replace(finding, text=finding.text.replace(key, "(the key)"))
    finally:
        api.close()


def _asked(api: Api, *, has_key: bool) -> Iterator[Finding]:
    page: Page | None = None
    failure: ApiError | None = None
    try:
        page = api.list_page(limit=20)
    except Unreachable as error:
        yield _unreachable(api.base_url, error.message)
        return
    except ApiError as error:
        failure = error
    yield _address(api.base_url, failure)
    yield _encryption(api.base_url)
    if has_key:
        yield _key(failure)
    yield _kind(api, failure)
    if api.skew_us is not None:
        yield _skew(api.skew_us)
    if page is not None:
        yield _results_url(api.base_url, page)


def _unreachable(base_url: str, message: str) -> Finding:
    if any(word in message.lower() for word in _CERTIFICATE):
        remedy = "check the clock of this machine, and the certificate of the proxy or server"
        return Finding("TLS", "FAIL", message, remedy)
    remedy = "check the address, the network, and the proxy variables"
    if urlsplit(base_url).hostname in _LOOPBACK:
        remedy = "start the server: `batchyard serve`, or use --local"
    return Finding("base URL", "FAIL", message, remedy)


def _address(base_url: str, failure: ApiError | None) -> Finding:
    status = 200 if failure is None else failure.http_status
    if 300 <= status < 400:
        return Finding("base URL", "FAIL", f"{base_url} redirects", "give the final address")
    if failure is not None and (status == 404 or not failure.kind):
        text = f"{base_url} answers, but is no Messages API: {failure.message}"
        return Finding("base URL", "FAIL", text, "the address goes without /v1 and what follows it")
    if status >= 500 or status == 429:
        assert failure is not None
        text = f"{base_url} is in trouble: {failure.message}"
        return Finding("base URL", "warn", text, "try again; a run waits and tries again too")
    return Finding("base URL", "ok", f"{base_url} answers")


def _encryption(base_url: str) -> Finding:
    parts = urlsplit(base_url)
    if parts.scheme == "https":
        return Finding("TLS", "ok", "the certificate is accepted")
    if parts.hostname in _LOOPBACK:
        return Finding("TLS", "ok", "none, and none is needed on this machine")
    return Finding(
        "TLS", "warn", "the key and the documents travel unencrypted", "use an https:// address"
    )


def _key(failure: ApiError | None) -> Finding:
    if failure is None:
        return Finding("key", "ok", "accepted")
    if failure.http_status in {401, 403}:
        remedy = "is it the key of this server, and of a workspace that is not archived?"
        return Finding("key", "FAIL", f"refused: {failure.message}", remedy)
    if failure.http_status == 402 or failure.kind == "billing_error":
        return Finding("key", "FAIL", failure.message, "pay or add credit, then start again")
    return Finding("key", "warn", "not known: the server did not look at it", "try again")


def _kind(api: Api, failure: ApiError | None) -> Finding:
    if api.is_yard:
        text = "a batchyard server: it knows idempotency keys and live progress"
    elif failure is None:
        text = "not a batchyard: a lost create call is looked for in the list of batches"
    else:
        text = "not a batchyard, as far as its refusal tells"
    return Finding("server", "ok", text)


def _skew(skew_us: int) -> Finding:
    seconds = round(skew_us / limits.SECOND_US)
    if abs(seconds) <= SKEW_WARN_S:
        return Finding("clock", "ok", f"within {max(1, abs(seconds))} s of the server's")
    word = "behind" if seconds > 0 else "ahead of"
    return Finding(
        "clock", "warn", f"{abs(seconds):,} s {word} the server's",
        "set the clock (NTP); times shown here are wrong, the run follows the server's",
    )  # fmt: skip


def _results_url(base_url: str, page: Page) -> Finding:
    urls = [b.results_url for b in page.data if b.has_ended and isinstance(b.results_url, str)]
    if not urls:
        return Finding("results", "ok", "no ended batch in the list, so no results_url to look at")
    theirs, ours = _origin(urls[0]), _origin(base_url)
    if theirs == ours:
        return Finding("results", "ok", f"results_url is at {ours}, as the base URL")
    return Finding(
        "results", "warn", f"results_url is at {shown(theirs)}, the base URL at {ours}",
        "runs use the base URL; official clients would send the key there: see that it is yours",
    )  # fmt: skip


def _origin(url: str) -> str:
    """Return scheme, host and port, with the port that a scheme has by itself."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return url
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _proxy(base_url: str) -> Finding:
    """Tell which proxy variables count, without the passwords that they may hold."""
    parts = urlsplit(base_url)
    proxies = urllib.request.getproxies_environment()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if named is None:
        return Finding("proxy", "ok", "none is set")
    address = urlsplit(named if "://" in named else f"http://{named}")
    where = f"{address.hostname}:{address.port}" if address.port else str(address.hostname)
    host = parts.hostname or ""
    if host in _LOOPBACK:
        return Finding("proxy", "ok", f"{where} is set, and not used for this machine")
    if urllib.request.proxy_bypass_environment(host, proxies):  # type: ignore[attr-defined]
        return Finding("proxy", "ok", f"{where} is set, and not used for {host} (NO_PROXY)")
    return Finding("proxy", "ok", f"{where} is used for {host}")
