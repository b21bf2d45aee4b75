"""Deleting what the server keeps of a run, on request, when all of it is on disk here.

A batch goes only after its results were checked to be whole, its reports and every table were
written, and each deletion is noted. What was never downloaded is never deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import crash
from batchyard.client.answers import ApiError, Unreachable
from batchyard.client.problems import NeedsAttention
from batchyard.client.results import collect
from batchyard.client.running import at_once, journal
from batchyard.client.running.journal import Phase
from batchyard.client.running.updates import Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.client.api import Api
    from batchyard.client.running.folder import Journal


def delete_copies(
    writer: Journal, apis: tuple[Api, Api | None], tell: Callable[[Update], None]
) -> None:
    """Delete every batch of a run at its server; one of a server before that is kept, and named.

    Args:
        writer: of the run.
        apis: its server, and the one behind it when that is a yard before another.
        tell: gets what a screen may show.

    Raises:
        NeedsAttention: one could not be deleted; doing it again tries the others no second time.
    """
    failures: list[str] = []
    config = writer.state.config
    assert config is not None
    # With none behind, both are the same.
    at = {at_once.behind(config).base_url: apis[1], config.base_url: apis[0]}
    for shard in writer.state.shards:
        batch = shard.batch
        if shard.phase is not Phase.COLLECTED or batch is None or batch in shard.deleted:
            continue
        api = at.get(shard.server)
        if api is None:
            # Another server does not have it, and its 404 would pass for a deletion.
            place = shard.server or "the server of its own"
            text = f"batch {batch} is kept at {place}, where the run was before"
            tell(Update(kind="notice", shard=shard.index, text=text))
            continue
        if not collect.is_whole(writer.files.results(shard.index), shard.requests):
            text = f"batch {batch} is kept at the server: its results here are not complete"
            tell(Update(kind="notice", shard=shard.index, text=text))
            continue
        try:
            api.delete(batch)
        except ApiError as error:
            if error.http_status != 404:  # else it is gone already: an answer was lost
                failures.append(f"{batch}: {error.message}")
                continue
        except Unreachable as error:
            failures.append(f"{batch}: {error.message}")
            continue
        crash.point("batch_deleted")
        writer.record(journal.Deleted(shard=shard.index, batch=batch))
        tell(Update(kind="notice", shard=shard.index, text=f"{batch} deleted at the server"))
    if failures:
        listed = "\n".join(f"  {failure}" for failure in failures)
        raise NeedsAttention(
            "everything is saved, but not every batch could be deleted at the server; the same "
            f"command tries again\n{listed}"
        )
