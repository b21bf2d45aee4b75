"""What was asked for, as the journal keeps it: checked, and free of keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchyard.client.problems import InputError
from batchyard.client.results import formats
from batchyard.client.running import changed, journal

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from batchyard.client.inputs.documents import Sources
    from batchyard.client.planning.plan import Plan
    from batchyard.client.results import schema as schemas
    from batchyard.client.running.journal import Config


def config_of(
    approved: Plan,
    *,
    prompt: Path,
    system: Path | None,
    base_url: str | None,
    local: bool,
    upstreams: tuple[str, ...],
    sources: Sources | None = None,
) -> Config:
    """Return what the journal keeps of a run.

    Raises:
        InputError: options exclude each other, or the address is not one.
    """
    url, upstreams = server_of(base_url=base_url, local=local, upstreams=upstreams)
    settings = approved.settings
    return journal.Config(
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
        base_url=url,
        upstreams=upstreams,
        params=dict(settings.params),
        override=settings.override,
        cache=settings.cache,
        schema=None if settings.schema is None else dict(settings.schema),
        name=settings.name,
        sources=() if sources is None else changed.places(sources),
        id_field=None if sources is None else sources.id_field,
        encoding=None if sources is None else sources.encoding,
        folder=str(Path.cwd()),
    )


def server_of(
    *, base_url: str | None, local: bool, upstreams: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the address of the server, None for one of our own, and the upstreams of that one.

    Raises:
        InputError: options exclude each other, or an address is none.
    """
    from batchyard.client.api import checked_url  # noqa: PLC0415 - the HTTP client
    from batchyard.client.running.local import check_upstreams, default_upstreams  # noqa: PLC0415

    if not local:
        if upstreams:
            raise InputError("--upstream belongs to the server of --local")
        return checked_url(base_url), ()
    if base_url:
        raise InputError("--local starts a server of its own; it excludes --base-url")
    upstreams = upstreams or default_upstreams()
    check_upstreams(upstreams)
    return None, upstreams


def saving_of(
    wanted: Iterable[str],
    schema: schemas.Schema | None,
    audit: str | os.PathLike[str] | None,
    *,
    delete: bool,
    has_name: bool,
) -> journal.Saving:
    """Return what the journal keeps of how answers are written.

    Raises:
        InputError: a format does not fit, or the audit record would have no folder.
    """
    path = None if audit is None else Path(audit).absolute()
    if path is not None and not path.parent.is_dir():
        raise InputError(f"the audit record {path} cannot be written: there is no such folder")
    checked = formats.checked(wanted, has_schema=schema is not None)
    if has_name and formats.EACH.isdisjoint(checked):
        raise InputError("--name is for files of documents, which --format md or json writes")
    return journal.Saving(
        formats=checked,
        audit=None if path is None else str(path),
        delete=delete,
    )
