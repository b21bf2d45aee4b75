"""The mark by which a batch is known to be of one run and no other: on the id of one request.

Two runs over the same documents have the same ids, even when their prompts differ. So one request
of each batch, the first with room for it, carries four characters of the digest of the whole
create body behind its id (`a_Dmd_R0-7f3a`). All other ids stay as they are. Pure, but for reading
a file of results.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from batchyard.client.planning.plan import Request, Shard

_CHARS = 4
_ROUND = re.compile(r"_R([0-9]{1,6})$")
_TAG = re.compile(r"_R([0-9]{1,6})-([0-9a-f]{4})$")


class _Id(msgspec.Struct, gc=False):
    custom_id: str


_id = msgspec.json.Decoder(_Id)


def tagged(shard: Shard) -> Shard:
    """Return the shard with the mark on one of its ids; as it was when no id has room for it."""
    tag = shard.sha256[:_CHARS]
    for at, request in enumerate(shard.requests):
        custom_id = _with(plain(request.custom_id), tag)
        if len(custom_id) > limits.CUSTOM_ID_CHARS_MAX:
            continue
        body = b'{"custom_id":"%b","params":%b}' % (custom_id.encode(), bytes(request.params))
        size = shard.size + len(body) - len(request.body)
        if size > limits.BATCH_BODY_BYTES_MAX:
            return shard
        requests: list[Request] = [*shard.requests]
        requests[at] = replace(request, custom_id=custom_id, body=body)
        return type(shard)(shard.index, requests, size)
    return shard


def plain(custom_id: str) -> str:
    """Return an id without its mark."""
    found = _TAG.search(custom_id)
    if found is None:
        return custom_id
    round_ = int(found[1])
    return custom_id[: found.start()] + (f"_R{round_}" if round_ else "")


def _with(custom_id: str, tag: str) -> str:
    return f"{custom_id}-{tag}" if _ROUND.search(custom_id) else f"{custom_id}_R0-{tag}"


def confirms(results: Path, ids: Collection[str]) -> bool:
    """Whether a file of results is that of a batch of these ids.

    It is when it has the marked id; when it has that id with another mark, or none, it is of
    another run. Without any of these, as when a line is missing, it is when it has ids of the
    batch and no others: a round of another run over the same documents shares only some of them.

    Args:
        results: as received.
        ids: of all requests of the batch.
    """
    marked = {plain(each): each for each in ids if _TAG.search(each)}
    known = unknown = 0
    with results.open("rb") as file:
        for line in file:
            try:
                custom_id = _id.decode(line).custom_id
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            ours = marked.get(plain(custom_id))
            if ours is not None:
                return ours == custom_id
            known += custom_id in ids
            unknown += custom_id not in ids
    return known > 0 and unknown == 0
