"""From the bytes of a shard to its requests, with all that can be told before one is sent. Pure.

It is done for a whole shard at once, while its bytes are at hand, and in a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import limits, validate
from batchyard.dispatch.prefix import Reader, shared_marks
from batchyard.dispatch.shard import Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchyard.segments.requests import Record


def requests_of(records: Iterable[Record], version: str, workspace: str) -> list[Request]:
    """Return the requests of a shard, in its order.

    Args:
        records: the id and the accepted params of each.
        version: `anthropic-version` of the create call.
        workspace: whose cache entries they may share.
    """
    reader = Reader()
    requests = []
    for custom_id, params in records:
        known = None
        if len(params) <= limits.MESSAGE_BODY_BYTES_MAX:
            known = validate.read_ordinary(params, version)
        if known is not None and not known.has_blocks:
            # Nearly all are like that: nothing is wrong, and nothing is to be cached.
            requests.append(Request(custom_id, params, (), known.max_tokens))
            continue
        prefix = reader.read(params)
        marks = shared_marks(prefix, workspace) if prefix else ()
        most = None if known is None else known.max_tokens
        requests.append(Request(custom_id, params, marks, most))
    return requests
